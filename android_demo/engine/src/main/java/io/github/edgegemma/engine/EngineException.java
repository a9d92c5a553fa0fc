package io.github.edgegemma.engine;

/** Whatever the engine refuses or fails at. The message is one sentence that can be shown to users. */
public class EngineException extends Exception {
    private static final long serialVersionUID = 1L;

    /** With a message. */
    public EngineException(String message) {
        super(message);
    }

    /** With a message and what was caught. */
    public EngineException(String message, Throwable cause) {
        super(message, cause);
    }
}
