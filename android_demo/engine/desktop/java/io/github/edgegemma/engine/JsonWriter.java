package io.github.edgegemma.engine;

import java.util.Map;

/** Writes maps, lists, arrays of ints and doubles, strings, numbers, booleans and null; ASCII only. */
final class JsonWriter {
    private JsonWriter() {}

    static String write(Object value) {
        StringBuilder out = new StringBuilder();
        append(value, out);
        return out.toString();
    }

    private static void append(Object value, StringBuilder out) {
        if (value instanceof Map) {
            String separator = "{";
            for (Map.Entry<?, ?> entry : ((Map<?, ?>) value).entrySet()) {
                out.append(separator);
                quote((String) entry.getKey(), out);
                out.append(':');
                append(entry.getValue(), out);
                separator = ",";
            }
            out.append(separator.equals("{") ? "{}" : "}");
        } else if (value instanceof Iterable) {
            out.append('[');
            int length = out.length();
            for (Object item : (Iterable<?>) value) {
                out.append(out.length() > length ? "," : "");
                append(item, out);
            }
            out.append(']');
        } else if (value instanceof int[]) {
            out.append(java.util.Arrays.toString((int[]) value));
        } else if (value instanceof double[]) {
            out.append(java.util.Arrays.toString((double[]) value));
        } else if (value instanceof String) {
            quote((String) value, out);
        } else {
            out.append(value);
        }
    }

    private static void quote(String text, StringBuilder out) {
        out.append('"');
        for (char c : text.toCharArray()) {
            if (c < ' ' || c > '~' || c == '"' || c == '\\') {
                out.append(String.format("\\u%04x", (int) c));
            } else {
                out.append(c);
            }
        }
        out.append('"');
    }
}
