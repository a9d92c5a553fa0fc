package io.github.edgegemma.demo.core;

/** A failure of the app's own. */
public final class DemoException extends Exception {
    private static final long serialVersionUID = 1L;

    /** What the user is told. */
    public final transient Failure failure;

    /** Without more to say than the kind. */
    public DemoException(Failure.Kind kind) {
        this(kind, "");
    }

    /** With more about it, in English. */
    public DemoException(Failure.Kind kind, String detail) {
        super(kind + ": " + detail);
        this.failure = new Failure(kind, detail);
    }
}
