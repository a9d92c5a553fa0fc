package io.github.edgegemma.demo.core;

import io.github.edgegemma.engine.ArtifactException;

/** Why something did not work, as far as the user can do something about it. */
public final class Failure {
    /** What went wrong; the screen has a sentence for each. */
    public enum Kind {
        /** The app was built without ONNX Runtime. */
        NO_RUNTIME,
        /** ONNX Runtime is there, and its native library is not for this processor. */
        WRONG_PROCESSOR,
        /** There is no artifact in the folder. */
        NO_ARTIFACT,
        /** The artifact is damaged, or of a format that the engine does not read. */
        BAD_ARTIFACT,
        /** The phone has too little memory. */
        TOO_LITTLE_MEMORY,
        /** The artifact has no audio encoder. */
        CANNOT_HEAR,
        /** The artifact has no vision encoder. */
        CANNOT_SEE,
        /** The user does not let the app record. */
        MICROPHONE_DENIED,
        /** The microphone does not record. */
        MICROPHONE_BROKEN,
        /** Nothing was recorded. */
        NOTHING_RECORDED,
        /** The picture cannot be read. */
        BAD_PICTURE,
        /** Anything else that the engine refuses. */
        REFUSED
    }

    /** What went wrong. */
    public final Kind kind;

    /** More about it, in English; may be empty. */
    public final String detail;

    /** A failure and more about it. */
    public Failure(Kind kind, String detail) {
        this.kind = kind;
        this.detail = detail;
    }

    /** What the user is told about what was thrown. */
    public static Failure of(Throwable thrown) {
        if (thrown instanceof DemoException) {
            return ((DemoException) thrown).failure;
        }
        if (thrown instanceof OutOfMemoryError || outOfMemory(thrown)) {
            return new Failure(Kind.TOO_LITTLE_MEMORY, message(thrown));
        }
        if (thrown instanceof ArtifactException) {
            return new Failure(Kind.BAD_ARTIFACT, message(thrown));
        }
        return new Failure(Kind.REFUSED, message(thrown));
    }

    /** ONNX Runtime says in words only that the system gave it no memory. */
    private static boolean outOfMemory(Throwable thrown) {
        String message = message(thrown);
        return message.contains("bad_alloc") || message.contains("Failed to allocate memory");
    }

    private static String message(Throwable thrown) {
        return thrown.getMessage() == null ? thrown.getClass().getSimpleName() : thrown.getMessage();
    }
}
