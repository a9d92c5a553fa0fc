package ai.onnxruntime;

public final class OrtEnvironment implements AutoCloseable {
    public static final OrtEnvironment ONE = new OrtEnvironment();

    public boolean telemetry = true;
    public OrtSession session;
    public OrtException refusal;

    public static OrtEnvironment getEnvironment() {
        return ONE;
    }

    public String getVersion() {
        return "1.32.0";
    }

    public void setTelemetry(boolean sendTelemetry) throws OrtException {
        telemetry = sendTelemetry;
    }

    public OrtSession createSession(String modelPath, OrtSession.SessionOptions options) throws OrtException {
        if (refusal != null) {
            throw refusal;
        }
        session = new OrtSession(modelPath, options);
        return session;
    }

    @Override
    public void close() {}
}
