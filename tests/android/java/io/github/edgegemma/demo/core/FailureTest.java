package io.github.edgegemma.demo.core;

import io.github.edgegemma.engine.ArtifactException;
import io.github.edgegemma.engine.OnnxException;
import io.github.edgegemma.engine.PromptException;

final class FailureTest {
    private FailureTest() {}

    private static void is(Failure.Kind kind, String detail, Throwable thrown) {
        Failure failure = Failure.of(thrown);
        Runner.equal(kind, failure.kind);
        Runner.equal(detail, failure.detail);
    }

    static void eachErrorHasItsSentence() {
        is(Failure.Kind.BAD_ARTIFACT, "format 9", new ArtifactException("format 9"));
        is(Failure.Kind.REFUSED, "no room", new PromptException("no room"));
        is(Failure.Kind.CANNOT_SEE, "", new DemoException(Failure.Kind.CANNOT_SEE));
        is(Failure.Kind.BAD_PICTURE, "torn", new DemoException(Failure.Kind.BAD_PICTURE, "torn"));
        is(Failure.Kind.REFUSED, "IllegalStateException", new IllegalStateException());
    }

    static void memoryIsToldFromOtherErrors() {
        is(Failure.Kind.TOO_LITTLE_MEMORY, "Java heap space", new OutOfMemoryError("Java heap space"));
        is(Failure.Kind.TOO_LITTLE_MEMORY, "x: std::bad_alloc", new OnnxException("x: std::bad_alloc"));
        String words = "Failed to allocate memory for requested buffer";
        is(Failure.Kind.TOO_LITTLE_MEMORY, words, new ArtifactException(words));
        is(Failure.Kind.REFUSED, "no such node", new OnnxException("no such node"));
    }
}
