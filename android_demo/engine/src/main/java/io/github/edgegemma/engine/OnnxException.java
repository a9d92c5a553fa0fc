package io.github.edgegemma.engine;

/** ONNX Runtime cannot load or run a graph. */
public class OnnxException extends EngineException {
    private static final long serialVersionUID = 1L;

    /** With a message. */
    public OnnxException(String message) {
        super(message);
    }

    /** With a message and what was caught. */
    public OnnxException(String message, Throwable cause) {
        super(message, cause);
    }
}
