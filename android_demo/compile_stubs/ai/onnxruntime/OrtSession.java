package ai.onnxruntime;

import java.util.Map;

public class OrtSession implements AutoCloseable {
    OrtSession() {}

    public Result run(
            Map<String, ? extends OnnxTensorLike> inputs, Map<String, ? extends OnnxValue> pinnedOutputs)
            throws OrtException {
        throw new UnsupportedOperationException();
    }

    @Override
    public void close() throws OrtException {
        throw new UnsupportedOperationException();
    }

    public static class SessionOptions implements AutoCloseable {
        public void setIntraOpNumThreads(int numThreads) throws OrtException {
            throw new UnsupportedOperationException();
        }

        public void addConfigEntry(String configKey, String configValue) throws OrtException {
            throw new UnsupportedOperationException();
        }

        public void setMemoryPatternOptimization(boolean memoryPatternOptimization) throws OrtException {
            throw new UnsupportedOperationException();
        }

        @Override
        public void close() {
            throw new UnsupportedOperationException();
        }
    }

    public static class Result implements AutoCloseable {
        Result() {}

        @Override
        public void close() {
            throw new UnsupportedOperationException();
        }
    }
}
