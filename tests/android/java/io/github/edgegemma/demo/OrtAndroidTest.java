package io.github.edgegemma.demo;

import ai.onnxruntime.OnnxJavaType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import io.github.edgegemma.demo.core.Runner;
import io.github.edgegemma.engine.ElementType;
import io.github.edgegemma.engine.OnnxException;
import io.github.edgegemma.engine.OnnxSession;
import io.github.edgegemma.engine.SessionSettings;
import io.github.edgegemma.engine.Tensor;
import java.io.File;
import java.nio.FloatBuffer;
import java.util.Collections;
import java.util.HashMap;
import java.util.Map;

/** The app's side of ONNX Runtime's Java binding, over a binding that remembers what it was asked. */
final class OrtAndroidTest {
    private OrtAndroidTest() {}

    private static OnnxSession open(int threads) throws OnnxException {
        return new OrtAndroidRuntime().open(new File("decoder_kv.onnx"), new SessionSettings(threads));
    }

    private static void refuses(String message, Runner.Step step) throws Exception {
        try {
            step.run();
        } catch (OnnxException thrown) {
            Runner.equal(true, thrown.getMessage().contains(message));
            return;
        }
        throw new AssertionError("nothing was refused");
    }

    static void graphsAreOpenedAsTheEngineWants() throws Exception {
        open(3);
        OrtSession session = OrtEnvironment.ONE.session;
        Runner.equal("decoder_kv.onnx", session.modelPath);
        Runner.equal(3, session.options.threads);
        Runner.equal(false, session.options.memoryPattern);
        Runner.equal(Collections.singletonMap("session.force_spinning_stop", "1"), session.options.entries);
        Runner.equal(false, OrtEnvironment.ONE.telemetry);
        Runner.equal("1.32.0", new OrtAndroidRuntime().version());
    }

    static void aGraphThatDoesNotLoadIsNamed() throws Exception {
        OrtEnvironment.ONE.refusal = new OrtException("bad magic");
        refuses("cannot load decoder_kv.onnx: bad magic", () -> open(0));
        OrtEnvironment.ONE.refusal = null;
    }

    static void eachTypeKeepsItsMemory() throws Exception {
        Map<ElementType, OnnxJavaType> types = new HashMap<>();
        types.put(ElementType.FLOAT32, OnnxJavaType.FLOAT);
        types.put(ElementType.FLOAT16, OnnxJavaType.FLOAT16);
        types.put(ElementType.INT8, OnnxJavaType.INT8);
        types.put(ElementType.UINT8, OnnxJavaType.UINT8);
        types.put(ElementType.INT32, OnnxJavaType.INT32);
        types.put(ElementType.INT64, OnnxJavaType.INT64);
        for (ElementType type : ElementType.values()) {
            Tensor tensor = Tensor.allocate(type, 2, 3);
            open(0).run(Collections.singletonMap("x", tensor), Collections.<String, Tensor>emptyMap());
            OnnxTensor lent = (OnnxTensor) OrtEnvironment.ONE.session.inputs.get("x");
            Runner.equal(types.get(type), lent.type);
            Runner.equal(new long[] {2, 3}, lent.shape);
        }
    }

    static void whatTheGraphWritesTheEngineReads() throws Exception {
        Tensor logits = Tensor.allocate(ElementType.FLOAT32, 1, 4);
        open(0).run(Collections.<String, Tensor>emptyMap(), Collections.singletonMap("logits", logits));
        OnnxTensor lent = (OnnxTensor) OrtEnvironment.ONE.session.outputs.get("logits");
        ((FloatBuffer) lent.data).put(3, 1.5f);
        Runner.equal(1.5f, logits.data().getFloat(12));
    }

    static void keysAndValuesStayWhereTheyAre() throws Exception {
        Tensor keys = Tensor.allocate(ElementType.FLOAT16, 1, 2, 8, 4);
        open(0).run(Collections.singletonMap("past_key.0", keys), Collections.singletonMap("present_key.0", keys));
        OrtSession session = OrtEnvironment.ONE.session;
        Runner.equal(true, session.inputs.get("past_key.0") == session.outputs.get("present_key.0"));
    }

    static void nothingStaysLent() throws Exception {
        Tensor tensor = Tensor.allocate(ElementType.INT64, 1);
        OnnxSession session = open(0);
        session.run(Collections.singletonMap("x", tensor), Collections.singletonMap("y", tensor));
        Runner.equal(0, OnnxTensor.open);
        OrtEnvironment.ONE.session.refusal = new OrtException("no such node");
        refuses(
                "no such node",
                () -> session.run(Collections.singletonMap("x", tensor), Collections.<String, Tensor>emptyMap()));
        Runner.equal(0, OnnxTensor.open);
    }

    static void closingTwiceClosesOnce() throws Exception {
        OnnxSession session = open(0);
        session.close();
        session.close();
        Runner.equal(1, OrtEnvironment.ONE.session.closed);
        refuses(
                "closed",
                () -> session.run(Collections.<String, Tensor>emptyMap(), Collections.<String, Tensor>emptyMap()));
    }
}
