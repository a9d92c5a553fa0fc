package io.github.edgegemma.engine;

/** A flag that another thread sets to end an answer: before its next token, or chunk of the prompt. */
public final class Cancel {
    private volatile boolean set;

    /** Ends the answer. */
    public void cancel() {
        set = true;
    }

    /** Whether {@link #cancel()} was called. */
    public boolean isCancelled() {
        return set;
    }
}
