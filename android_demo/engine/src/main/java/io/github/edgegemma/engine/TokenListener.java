package io.github.edgegemma.engine;

/** Hears an answer while it is made. */
public interface TokenListener {
    /**
     * The next piece of the text; joined, the pieces are the answer's text. Called on the thread that asked.
     *
     * @return false to end the answer here
     */
    boolean onText(String piece);
}
