package io.github.edgegemma.desktop;

import io.github.edgegemma.engine.ElementType;
import io.github.edgegemma.engine.OnnxException;
import io.github.edgegemma.engine.OnnxRuntime;
import io.github.edgegemma.engine.OnnxSession;
import io.github.edgegemma.engine.SessionSettings;
import io.github.edgegemma.engine.Tensor;
import java.io.File;
import java.nio.ByteBuffer;
import java.util.Map;

/** ONNX Runtime's shared library, for tests on a desktop. */
public final class NativeOnnxRuntime implements OnnxRuntime {
    /**
     * Loads both libraries; once in a process.
     *
     * @param shim made of onnx_shim.c
     * @param library libonnxruntime.so
     */
    public NativeOnnxRuntime(File shim, File library) throws OnnxException {
        System.load(shim.getAbsolutePath());
        initialize(library.getAbsolutePath());
    }

    @Override
    public String version() {
        return libraryVersion();
    }

    @Override
    public OnnxSession open(File model, SessionSettings settings) throws OnnxException {
        return new Session(createSession(model.getPath(), settings.threads));
    }

    private static final class Session implements OnnxSession {
        private long handle;

        Session(long handle) {
            this.handle = handle;
        }

        @Override
        public void run(Map<String, Tensor> inputs, Map<String, Tensor> outputs) throws OnnxException {
            if (handle == 0) {
                throw new OnnxException("the session was closed: open the graph again");
            }
            Arguments in = new Arguments(inputs);
            Arguments out = new Arguments(outputs);
            runSession(
                    handle, in.names, in.buffers, in.types, in.shapes, out.names, out.buffers, out.types, out.shapes);
        }

        @Override
        public void close() {
            if (handle != 0) {
                releaseSession(handle);
                handle = 0;
            }
        }
    }

    /** Tensors as the shim takes them. */
    private static final class Arguments {
        final String[] names;
        final ByteBuffer[] buffers;
        final int[] types;
        final long[][] shapes;

        Arguments(Map<String, Tensor> tensors) {
            int count = tensors.size();
            names = new String[count];
            buffers = new ByteBuffer[count];
            types = new int[count];
            shapes = new long[count][];
            int i = 0;
            for (Map.Entry<String, Tensor> entry : tensors.entrySet()) {
                Tensor tensor = entry.getValue();
                names[i] = entry.getKey();
                buffers[i] = tensor.data();
                types[i] = onnxType(tensor.type);
                shapes[i++] = tensor.shape();
            }
        }
    }

    /** ONNX's number of a type (TensorProto.DataType). */
    private static int onnxType(ElementType type) {
        switch (type) {
            case FLOAT32:
                return 1;
            case UINT8:
                return 2;
            case INT8:
                return 3;
            case INT32:
                return 6;
            case INT64:
                return 7;
            case FLOAT16:
                return 10;
            default:
                throw new AssertionError(type);
        }
    }

    private static native void initialize(String library) throws OnnxException;

    private static native String libraryVersion();

    private static native long createSession(String model, int threads) throws OnnxException;

    private static native void releaseSession(long session);

    private static native void runSession(
            long session,
            String[] inputNames,
            ByteBuffer[] inputs,
            int[] inputTypes,
            long[][] inputShapes,
            String[] outputNames,
            ByteBuffer[] outputs,
            int[] outputTypes,
            long[][] outputShapes)
            throws OnnxException;
}
