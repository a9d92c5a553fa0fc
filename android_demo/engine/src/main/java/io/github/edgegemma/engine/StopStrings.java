package io.github.edgegemma.engine;

import java.util.List;

/**
 * Cuts a stream of text at the first stop string, however the text is cut into pieces: at the earliest
 * character that ends one, and where several end there at the longest. One object serves one stream.
 */
final class StopStrings {
    private final List<String> stops;
    private int longest = 1;
    private String held = "";
    private boolean stopped;

    StopStrings(List<String> stops) throws PromptException {
        this.stops = stops;
        for (String stop : stops) {
            if (stop == null || stop.isEmpty()) {
                throw new PromptException("a stop string is empty; expected some text");
            }
            longest = Math.max(longest, stop.length());
        }
    }

    /** Whether a stop string was met. */
    boolean stopped() {
        return stopped;
    }

    /** The text that is now safe to show. Text that may begin a stop string is held back. */
    String push(String piece) {
        if (stopped) {
            return "";
        }
        String text = held + piece;
        int firstEnd = Integer.MAX_VALUE;
        int cut = 0;
        for (String stop : stops) {
            int start = text.indexOf(stop);
            int end = start + stop.length();
            if (start >= 0 && (end < firstEnd || end == firstEnd && start < cut)) {
                firstEnd = end;
                cut = start;
            }
        }
        if (firstEnd < Integer.MAX_VALUE) {
            stopped = true;
            held = "";
            return text.substring(0, cut);
        }
        int safe = Math.max(0, text.length() - longest + 1);
        while (safe < text.length() && !beginsStop(text.substring(safe))) {
            safe++;
        }
        held = text.substring(safe);
        return text.substring(0, safe);
    }

    /** The text held back, at the end of the stream: no stop string came of it. */
    String flush() {
        String rest = held;
        held = "";
        return rest;
    }

    private boolean beginsStop(String text) {
        for (String stop : stops) {
            if (stop.startsWith(text)) {
                return true;
            }
        }
        return false;
    }
}
