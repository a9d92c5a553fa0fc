package io.github.edgegemma.engine;

/** The messages or a setting cannot be used as given. */
public class PromptException extends EngineException {
    private static final long serialVersionUID = 1L;

    /** With a message. */
    public PromptException(String message) {
        super(message);
    }

    /** With a message and what was caught. */
    public PromptException(String message, Throwable cause) {
        super(message, cause);
    }
}
