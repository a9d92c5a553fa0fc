package io.github.edgegemma.engine;

/** JSON that is malformed, or does not have the shape that was expected; the message says where. */
final class JsonException extends Exception {
    private static final long serialVersionUID = 1L;

    JsonException(String message) {
        super(message);
    }
}
