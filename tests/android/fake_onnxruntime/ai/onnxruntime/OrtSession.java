package ai.onnxruntime;

import java.util.HashMap;
import java.util.Map;

public class OrtSession implements AutoCloseable {
    public final String modelPath;
    public final SessionOptions options;
    public Map<String, ? extends OnnxTensorLike> inputs;
    public Map<String, ? extends OnnxValue> outputs;
    public OrtException refusal;
    public int closed;

    OrtSession(String modelPath, SessionOptions options) {
        this.modelPath = modelPath;
        this.options = options;
    }

    public Result run(
            Map<String, ? extends OnnxTensorLike> inputs, Map<String, ? extends OnnxValue> pinnedOutputs)
            throws OrtException {
        this.inputs = inputs;
        this.outputs = pinnedOutputs;
        if (refusal != null) {
            throw refusal;
        }
        return new Result();
    }

    @Override
    public void close() throws OrtException {
        closed++;
    }

    public static class SessionOptions implements AutoCloseable {
        public int threads;
        public boolean memoryPattern = true;
        public final Map<String, String> entries = new HashMap<>();

        public void setIntraOpNumThreads(int numThreads) throws OrtException {
            threads = numThreads;
        }

        public void addConfigEntry(String configKey, String configValue) throws OrtException {
            entries.put(configKey, configValue);
        }

        public void setMemoryPatternOptimization(boolean memoryPatternOptimization) throws OrtException {
            memoryPattern = memoryPatternOptimization;
        }

        @Override
        public void close() {}
    }

    public static class Result implements AutoCloseable {
        @Override
        public void close() {}
    }
}
