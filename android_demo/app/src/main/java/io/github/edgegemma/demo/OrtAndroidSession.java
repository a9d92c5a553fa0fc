package io.github.edgegemma.demo;

import ai.onnxruntime.OnnxJavaType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import io.github.edgegemma.engine.OnnxException;
import io.github.edgegemma.engine.OnnxSession;
import io.github.edgegemma.engine.Tensor;
import java.nio.ByteBuffer;
import java.util.HashMap;
import java.util.IdentityHashMap;
import java.util.Map;

/** A graph in the official binding. Tensors are lent to it: it reads and writes the engine's own memory. */
final class OrtAndroidSession implements OnnxSession {
    private final OrtEnvironment environment;
    private OrtSession session;

    OrtAndroidSession(OrtEnvironment environment, OrtSession session) {
        this.environment = environment;
        this.session = session;
    }

    @Override
    public void run(Map<String, Tensor> inputs, Map<String, Tensor> outputs) throws OnnxException {
        if (session == null) {
            throw new OnnxException("the graph is closed");
        }
        // One OnnxTensor for each Tensor, under however many names.
        Map<Tensor, OnnxTensor> lent = new IdentityHashMap<Tensor, OnnxTensor>();
        try {
            // All outputs are pinned, so the result holds none of its own.
            session.run(lend(inputs, lent), lend(outputs, lent)).close();
        } catch (OrtException thrown) {
            throw new OnnxException("ONNX Runtime cannot run the graph: " + thrown.getMessage(), thrown);
        } finally {
            for (OnnxTensor tensor : lent.values()) {
                tensor.close();
            }
        }
    }

    @Override
    public void close() {
        if (session == null) {
            return;
        }
        try {
            session.close();
        } catch (OrtException thrown) {
            throw new IllegalStateException("ONNX Runtime cannot close the graph: " + thrown.getMessage(), thrown);
        } finally {
            session = null;
        }
    }

    private Map<String, OnnxTensor> lend(Map<String, Tensor> tensors, Map<Tensor, OnnxTensor> lent)
            throws OrtException {
        Map<String, OnnxTensor> named = new HashMap<String, OnnxTensor>();
        for (Map.Entry<String, Tensor> entry : tensors.entrySet()) {
            OnnxTensor tensor = lent.get(entry.getValue());
            if (tensor == null) {
                tensor = wrap(entry.getValue());
                lent.put(entry.getValue(), tensor);
            }
            named.put(entry.getKey(), tensor);
        }
        return named;
    }

    /** The same memory. Views of the type tell the binding how many elements there are; bytes do for the rest. */
    private OnnxTensor wrap(Tensor tensor) throws OrtException {
        ByteBuffer data = tensor.data();
        long[] shape = tensor.shape();
        switch (tensor.type) {
            case FLOAT32:
                return OnnxTensor.createTensor(environment, data.asFloatBuffer(), shape);
            case INT32:
                return OnnxTensor.createTensor(environment, data.asIntBuffer(), shape);
            case INT64:
                return OnnxTensor.createTensor(environment, data.asLongBuffer(), shape);
            case FLOAT16:
                return OnnxTensor.createTensor(environment, data, shape, OnnxJavaType.FLOAT16);
            case INT8:
                return OnnxTensor.createTensor(environment, data, shape, OnnxJavaType.INT8);
            case UINT8:
                return OnnxTensor.createTensor(environment, data, shape, OnnxJavaType.UINT8);
            default:
                throw new IllegalArgumentException("no type of ONNX Runtime is " + tensor.type.manifestName);
        }
    }
}
