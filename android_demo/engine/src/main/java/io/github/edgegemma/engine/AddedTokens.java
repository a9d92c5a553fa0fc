package io.github.edgegemma.engine;

import java.util.HashMap;
import java.util.Map;
import java.util.TreeMap;

/** Tokens that are found in a text as they stand: the leftmost first, and the longest there. */
final class AddedTokens {
    private final Map<String, Integer> ids = new HashMap<String, Integer>();
    // by first character the lengths of its tokens, the longest first
    private final Map<Character, TreeMap<Integer, Boolean>> lengths =
            new HashMap<Character, TreeMap<Integer, Boolean>>();

    void add(String text, int id) {
        ids.put(text, id);
        TreeMap<Integer, Boolean> known = lengths.get(text.charAt(0));
        if (known == null) {
            known = new TreeMap<Integer, Boolean>();
            lengths.put(text.charAt(0), known);
        }
        known.put(text.length(), true);
    }

    /** Length of the token that starts at a place; 0 where none does. */
    int lengthAt(String text, int at) {
        TreeMap<Integer, Boolean> known = lengths.get(text.charAt(at));
        if (known != null) {
            for (int length : known.descendingKeySet()) {
                if (at + length <= text.length() && ids.containsKey(text.substring(at, at + length))) {
                    return length;
                }
            }
        }
        return 0;
    }

    /** Where the next token starts, from a place on; the length of the text if there is none. */
    int next(String text, int from) {
        int at = from;
        while (at < text.length() && lengthAt(text, at) == 0) {
            at++;
        }
        return at;
    }

    /** The id of a token with exactly this text. */
    int id(String text) {
        return ids.get(text);
    }

    /** Whether a text is the beginning of a token, and not all of it. */
    boolean begins(String text) {
        for (String token : ids.keySet()) {
            if (token.length() > text.length() && token.startsWith(text)) {
                return true;
            }
        }
        return false;
    }

    /** Length of the longest token. */
    int longest() {
        int longest = 0;
        for (String token : ids.keySet()) {
            longest = Math.max(longest, token.length());
        }
        return longest;
    }
}
