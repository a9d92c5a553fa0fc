package ai.onnxruntime;

public final class OrtEnvironment implements AutoCloseable {
    OrtEnvironment() {}

    public static OrtEnvironment getEnvironment() {
        throw new UnsupportedOperationException();
    }

    public String getVersion() {
        throw new UnsupportedOperationException();
    }

    public void setTelemetry(boolean sendTelemetry) throws OrtException {
        throw new UnsupportedOperationException();
    }

    public OrtSession createSession(String modelPath, OrtSession.SessionOptions options) throws OrtException {
        throw new UnsupportedOperationException();
    }

    @Override
    public void close() {
        throw new UnsupportedOperationException();
    }
}
