package io.github.edgegemma.engine;

/** Text as Python sees it, so that prompts are equal. */
final class Texts {
    private Texts() {}

    /** Without whitespace at both ends, as str.strip() does: String.trim() knows ASCII only. */
    static String strip(String text) {
        int start = 0;
        while (start < text.length() && isSpace(text.charAt(start))) {
            start++;
        }
        return text.substring(start, Math.max(start, stripEnd(text)));
    }

    /** Where the text ends without the whitespace behind it. */
    static int stripEnd(String text) {
        int end = text.length();
        while (end > 0 && isSpace(text.charAt(end - 1))) {
            end--;
        }
        return end;
    }

    /** As str.isspace() of a character; all of them are in the basic plane. */
    static boolean isSpace(char c) {
        return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 || c == 0x1680
                || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F
                || c == 0x3000;
    }
}
