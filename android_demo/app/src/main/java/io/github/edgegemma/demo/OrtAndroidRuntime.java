package io.github.edgegemma.demo;

import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import io.github.edgegemma.engine.OnnxException;
import io.github.edgegemma.engine.OnnxRuntime;
import io.github.edgegemma.engine.OnnxSession;
import io.github.edgegemma.engine.SessionSettings;
import java.io.File;

/** ONNX Runtime through its official Java binding. */
final class OrtAndroidRuntime implements OnnxRuntime {
    private final OrtEnvironment environment;

    OrtAndroidRuntime() throws OnnxException {
        environment = OrtEnvironment.getEnvironment();
        try {
            environment.setTelemetry(false);
        } catch (OrtException thrown) {
            throw new OnnxException("ONNX Runtime cannot be started: " + thrown.getMessage(), thrown);
        }
    }

    @Override
    public String version() {
        return environment.getVersion();
    }

    @Override
    public OnnxSession open(File model, SessionSettings settings) throws OnnxException {
        try (OrtSession.SessionOptions options = new OrtSession.SessionOptions()) {
            options.setMemoryPatternOptimization(false);
            options.addConfigEntry("session.force_spinning_stop", "1");
            if (settings.threads > 0) {
                options.setIntraOpNumThreads(settings.threads);
            }
            return new OrtAndroidSession(environment, environment.createSession(model.getPath(), options));
        } catch (OrtException thrown) {
            throw new OnnxException(
                    "ONNX Runtime " + version() + " cannot load " + model.getName() + ": " + thrown.getMessage(),
                    thrown);
        }
    }
}
