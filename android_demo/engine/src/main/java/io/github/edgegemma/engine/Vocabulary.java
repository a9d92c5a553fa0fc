package io.github.edgegemma.engine;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

/** The tokens of a byte-pair tokenizer, and which of them merge. */
final class Vocabulary {
    /** A token that is found in a text as it stands, before any merging. */
    static final class Added {
        final int id;
        final String text;
        final boolean special;
        /** Found after spaces have become "▁". */
        final boolean normalized;

        Added(int id, String text, boolean special, boolean normalized) {
            this.id = id;
            this.text = text;
            this.special = special;
            this.normalized = normalized;
        }
    }

    static final long NONE = -1;

    final List<Added> added = new ArrayList<Added>();
    final int[] byteIds = new int[256];
    private String[] texts = new String[0];
    private int ids;
    private int tokens;
    private final Map<Integer, Integer> characters = new HashMap<Integer, Integer>();
    private final LongMap merges = new LongMap();

    /** One more than the largest id. */
    int ids() {
        return ids;
    }

    /** How many ids have a token. */
    int tokens() {
        return tokens;
    }

    /** The text of a token; null where there is none. */
    String text(int id) {
        return id >= 0 && id < ids ? texts[id] : null;
    }

    /** The id of a character's token; -1 where it has none. */
    int character(int codePoint) {
        Integer id = characters.get(codePoint);
        return id == null ? -1 : id;
    }

    /** rank · 2³² + the id of the merged token; NONE where two tokens do not merge. */
    long merge(int left, int right) {
        return merges.get((long) left << 32 | right);
    }

    /** Adds a token of the model. */
    void addToken(int id, String text) {
        setText(id, text);
        if (text.codePointCount(0, text.length()) == 1) {
            characters.put(text.codePointAt(0), id);
        }
    }

    /** Adds a token that is not merged. */
    void addAdded(Added token) {
        setText(token.id, token.text);
        added.add(token);
    }

    void addMerge(int rank, int left, int right, int merged) {
        merges.put((long) left << 32 | right, (long) rank << 32 | merged);
    }

    private void setText(int id, String text) {
        if (id >= texts.length) {
            texts = Arrays.copyOf(texts, Math.max(id + 1, 2 * texts.length));
        }
        ids = Math.max(ids, id + 1);
        if (texts[id] == null) {
            tokens++;
        }
        texts[id] = text;
    }
}
