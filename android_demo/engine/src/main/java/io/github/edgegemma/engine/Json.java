package io.github.edgegemma.engine;

import java.io.IOException;
import java.io.StringReader;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** Small JSON texts as trees: Map, List, String, Long, Double, Boolean and null. */
final class Json {
    private Json() {}

    /** The value of a whole text. */
    static Object parse(String text) throws JsonException {
        JsonReader reader = new JsonReader(new StringReader(text));
        try {
            Object value = value(reader);
            reader.end();
            return value;
        } catch (IOException impossible) {
            throw new AssertionError(impossible); // the text is in memory
        }
    }

    /** The next value of a reader. */
    static Object value(JsonReader reader) throws IOException, JsonException {
        switch (reader.peek()) {
            case '{':
                Map<String, Object> object = new LinkedHashMap<String, Object>();
                reader.begin('{');
                while (reader.more()) {
                    object.put(reader.name(), value(reader)); // of equal names the last counts, as in Python
                }
                return object;
            case '[':
                List<Object> array = new ArrayList<Object>();
                reader.begin('[');
                while (reader.more()) {
                    array.add(value(reader));
                }
                return array;
            case '"':
                return reader.string();
            case 't':
            case 'f':
            case 'n':
                return reader.literal();
            default:
                return reader.number();
        }
    }
}
