package io.github.edgegemma.engine;

import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.PriorityQueue;

/** Byte-pair encoding: the characters of a text, merged by rank and then from the left. */
final class BytePairs {
    private final Vocabulary vocabulary;

    BytePairs(Vocabulary vocabulary) {
        this.vocabulary = vocabulary;
    }

    /** The ids of a text, which is valid Unicode. */
    int[] merge(String text) {
        int[] ids = characters(text);
        int count = ids.length;
        // rank · 2³² + the place of the left token, of every pair that merges: the smallest goes first
        PriorityQueue<Long> queue = new PriorityQueue<Long>();
        int[] following = new int[count];
        int[] previous = new int[count];
        for (int i = 0; i < count; i++) {
            following[i] = i + 1;
            previous[i] = i - 1;
        }
        for (int i = 0; i + 1 < count; i++) {
            offer(queue, ids, i, i + 1);
        }
        while (!queue.isEmpty()) {
            long top = queue.remove();
            int at = (int) top;
            int right = following[at];
            if (ids[at] < 0 || right == count) {
                continue; // its tokens have merged with others
            }
            long found = vocabulary.merge(ids[at], ids[right]);
            if (found == Vocabulary.NONE || found >>> 32 != top >>> 32) {
                continue;
            }
            ids[at] = (int) found;
            ids[right] = -1;
            right = following[right];
            following[at] = right;
            if (right < count) {
                previous[right] = at;
                offer(queue, ids, at, right);
            }
            if (previous[at] >= 0) {
                offer(queue, ids, previous[at], at);
            }
        }
        int kept = 0;
        for (int id : ids) {
            if (id >= 0) {
                ids[kept++] = id;
            }
        }
        return Arrays.copyOf(ids, kept);
    }

    private void offer(PriorityQueue<Long> queue, int[] ids, int left, int right) {
        long found = vocabulary.merge(ids[left], ids[right]);
        if (found != Vocabulary.NONE) {
            queue.add((found >>> 32) << 32 | left);
        }
    }

    /** The id of each character, or those of its bytes. */
    private int[] characters(String text) {
        int[] ids = new int[4 * text.length()];
        int count = 0;
        for (int i = 0; i < text.length(); ) {
            int codePoint = text.codePointAt(i);
            int length = Character.charCount(codePoint);
            int id = vocabulary.character(codePoint);
            if (id >= 0) {
                ids[count++] = id;
            } else {
                for (byte value : text.substring(i, i + length).getBytes(StandardCharsets.UTF_8)) {
                    ids[count++] = vocabulary.byteIds[value & 0xFF];
                }
            }
            i += length;
        }
        return Arrays.copyOf(ids, count);
    }
}
