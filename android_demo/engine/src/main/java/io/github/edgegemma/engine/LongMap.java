package io.github.edgegemma.engine;

/** A hash map from long to long, both at least 0, without an object for each of half a million entries. */
final class LongMap {
    private long[] keys = new long[1 << 10]; // each plus 1, so that 0 is an empty place
    private long[] values = new long[1 << 10];
    private int size;

    /** The value of a key, -1 where it has none. */
    long get(long key) {
        int at = place(keys, key);
        return keys[at] == 0 ? -1 : values[at];
    }

    void put(long key, long value) {
        if (2 * size >= keys.length) {
            grow();
        }
        int at = place(keys, key);
        if (keys[at] == 0) {
            size++;
        }
        keys[at] = key + 1;
        values[at] = value;
    }

    /** Where a key is, or the empty place where it belongs. */
    private static int place(long[] keys, long key) {
        long mixed = (key + 1) * 0x9E3779B97F4A7C15L; // Knuth's multiplicative hashing: the high bits are mixed
        int at = (int) (mixed >>> 32) & keys.length - 1;
        while (keys[at] != 0 && keys[at] != key + 1) {
            at = at + 1 & keys.length - 1;
        }
        return at;
    }

    private void grow() {
        long[] oldKeys = keys;
        long[] oldValues = values;
        keys = new long[2 * oldKeys.length];
        values = new long[2 * oldKeys.length];
        for (int i = 0; i < oldKeys.length; i++) {
            if (oldKeys[i] != 0) {
                int at = place(keys, oldKeys[i] - 1);
                keys[at] = oldKeys[i];
                values[at] = oldValues[i];
            }
        }
    }
}
