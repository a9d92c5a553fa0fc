package io.github.edgegemma.engine;

/** An artifact is missing, damaged, or none that this engine reads. */
public class ArtifactException extends EngineException {
    private static final long serialVersionUID = 1L;

    /** With a message. */
    public ArtifactException(String message) {
        super(message);
    }

    /** With a message and what was caught. */
    public ArtifactException(String message, Throwable cause) {
        super(message, cause);
    }
}
