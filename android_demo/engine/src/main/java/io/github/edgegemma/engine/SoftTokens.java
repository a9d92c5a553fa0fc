package io.github.edgegemma.engine;

import java.nio.FloatBuffer;

/** Rows that take the place of the embeddings of a prompt's ids. */
final class SoftTokens {
    /** The place of the first one in the prompt. */
    final int start;

    /** How many. */
    final int tokens;

    private final Tensor rows; // float32 [tokens, H]

    SoftTokens(int start, Tensor rows) {
        this.start = start;
        this.tokens = (int) rows.shape()[0];
        this.rows = rows;
    }

    /** Writes the row of a place of the prompt; nothing where it has none. */
    void write(int place, FloatBuffer out) {
        if (place >= start && place < start + tokens) {
            int width = (int) rows.shape()[1];
            FloatBuffer row = rows.data().asFloatBuffer();
            row.position((place - start) * width);
            row.limit((place - start + 1) * width);
            out.put(row);
        }
    }
}
