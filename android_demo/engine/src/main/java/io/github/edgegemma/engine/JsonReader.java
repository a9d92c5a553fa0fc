package io.github.edgegemma.engine;

import java.io.IOException;
import java.io.Reader;

/**
 * Reads JSON (RFC 8259) from the first character to the last, a value at a time, so that a large file is never
 * in memory as a tree.
 *
 * <p>An object is read as {@code begin('{'); while (more()) { name(); value }}, an array as
 * {@code begin('['); while (more()) { value }}, and {@link #end()} comes last. Nothing beyond the standard is
 * taken: no comments, no trailing commas, no NaN.
 */
final class JsonReader {
    private static final int DEEPEST = 64;
    private static final int NONE = -1;

    private final Reader in;
    private final char[] closing = new char[DEEPEST];
    private final boolean[] started = new boolean[DEEPEST];
    private int depth;
    private final char[] buffer = new char[1 << 13];
    private int at;
    private int filled;
    private long before;

    JsonReader(Reader in) {
        this.in = in;
    }

    /** Goes into an object or an array. */
    void begin(char open) throws IOException, JsonException {
        expect(open);
        if (depth == DEEPEST) {
            throw fault("values nested more than " + DEEPEST + " deep");
        }
        closing[depth] = open == '{' ? '}' : ']';
        started[depth++] = false;
    }

    /** Whether there is another element; goes out of the object or array if not. */
    boolean more() throws IOException, JsonException {
        int next = peek();
        boolean first = !started[depth - 1];
        started[depth - 1] = true;
        if (next == closing[depth - 1]) {
            at++;
            depth--;
            return false;
        }
        if (!first) {
            expect(',');
        }
        return true;
    }

    /** The name of the next value of an object. */
    String name() throws IOException, JsonException {
        String name = string();
        expect(':');
        return name;
    }

    /** The first character of the next value, which stays; -1 at the end. */
    int peek() throws IOException {
        int c = look();
        while (c == ' ' || c == '\n' || c == '\r' || c == '\t') {
            at++;
            c = look();
        }
        return c;
    }

    /** A string. */
    String string() throws IOException, JsonException {
        expect('"');
        StringBuilder text = new StringBuilder();
        while (true) {
            int c = read();
            if (c == '"') {
                return text.toString();
            }
            if (c == '\\') {
                text.append(escaped());
            } else if (c < ' ') {
                throw fault(c == NONE ? "a string without an end" : "a control character in a string");
            } else {
                text.append((char) c);
            }
        }
    }

    /** A number: a Long where it is whole and fits, else a Double. */
    Number number() throws IOException, JsonException {
        peek();
        StringBuilder text = new StringBuilder();
        boolean whole = true;
        for (int c = look(); c >= '0' && c <= '9' || c == '-' || c == '+' || c == '.' || c == 'e' || c == 'E';
                c = look()) {
            whole &= c != '.' && c != 'e' && c != 'E';
            text.append((char) c);
            at++;
        }
        if (!isNumber(text)) {
            throw fault("'" + text + "' where a value was expected");
        }
        try {
            return whole ? (Number) Long.valueOf(text.toString()) : (Number) Double.valueOf(text.toString());
        } catch (NumberFormatException beyond) {
            return Double.valueOf(text.toString());
        }
    }

    /** true, false or null. */
    Boolean literal() throws IOException, JsonException {
        int first = peek();
        String word = first == 't' ? "true" : first == 'f' ? "false" : "null";
        for (int i = 0; i < word.length(); i++) {
            if (read() != word.charAt(i)) {
                throw fault("a word that is no value");
            }
        }
        return first == 'n' ? null : Boolean.valueOf(first == 't');
    }

    /** Passes a value over. */
    void skip() throws IOException, JsonException {
        int c = peek();
        if (c == '{') {
            begin('{');
            while (more()) {
                name();
                skip();
            }
        } else if (c == '[') {
            begin('[');
            while (more()) {
                skip();
            }
        } else if (c == '"') {
            string();
        } else if (c == 't' || c == 'f' || c == 'n') {
            literal();
        } else {
            number();
        }
    }

    /** Nothing but white space is left. */
    void end() throws IOException, JsonException {
        if (peek() != NONE) {
            throw fault("something behind the value");
        }
    }

    /** An error at this place. */
    JsonException fault(String found) {
        return new JsonException(found + " near character " + (before + at));
    }

    private char escaped() throws IOException, JsonException {
        int c = read();
        switch (c) {
            case '"':
            case '\\':
            case '/':
                return (char) c;
            case 'b':
                return '\b';
            case 'f':
                return '\f';
            case 'n':
                return '\n';
            case 'r':
                return '\r';
            case 't':
                return '\t';
            case 'u':
                int code = 0;
                for (int i = 0; i < 4; i++) {
                    int digit = Character.digit((char) read(), 16);
                    if (digit < 0) {
                        throw fault("an escape that is none");
                    }
                    code = code << 4 | digit;
                }
                return (char) code;
            default:
                throw fault("an escape that is none");
        }
    }

    /** Whether a text is -?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)? */
    private static boolean isNumber(CharSequence text) {
        int i = text.length() > 0 && text.charAt(0) == '-' ? 1 : 0;
        int end = digits(text, i);
        if (end == i || text.charAt(i) == '0' && end > i + 1) {
            return false;
        }
        i = end;
        if (i < text.length() && text.charAt(i) == '.') {
            end = digits(text, i + 1);
            if (end == i + 1) {
                return false;
            }
            i = end;
        }
        if (i < text.length() && (text.charAt(i) == 'e' || text.charAt(i) == 'E')) {
            i++;
            if (i < text.length() && (text.charAt(i) == '-' || text.charAt(i) == '+')) {
                i++;
            }
            end = digits(text, i);
            if (end == i) {
                return false;
            }
            i = end;
        }
        return i == text.length();
    }

    private static int digits(CharSequence text, int from) {
        int i = from;
        while (i < text.length() && text.charAt(i) >= '0' && text.charAt(i) <= '9') {
            i++;
        }
        return i;
    }

    private void expect(char wanted) throws IOException, JsonException {
        int c = peek();
        if (c != wanted) {
            throw fault((c == NONE ? "the end" : "'" + (char) c + "'") + " where '" + wanted + "' was expected");
        }
        at++;
    }

    private int read() throws IOException {
        int c = look();
        at++;
        return c;
    }

    private int look() throws IOException {
        if (at < filled) {
            return buffer[at];
        }
        if (filled == NONE) {
            return NONE;
        }
        before += filled;
        at = 0;
        filled = in.read(buffer);
        return filled == NONE ? NONE : buffer[0];
    }
}
