package io.github.edgegemma.engine;

import java.util.ArrayList;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;

/** An object of which every key has to be known: each is taken once, then {@link #done()} looks for others. */
final class JsonObject {
    private final Map<?, ?> values;
    private final String where;
    private final Set<String> taken = new HashSet<String>();

    /** An object at a place, "" for the top. */
    JsonObject(Object value, String where) throws JsonException {
        this.where = where.isEmpty() ? "the top level" : where;
        if (!(value instanceof Map)) {
            throw new JsonException(this.where + " is " + brief(value) + ", expected an object");
        }
        values = (Map<?, ?>) value;
    }

    /** The names of all keys. */
    Set<String> keys() {
        Set<String> keys = new TreeSet<String>();
        for (Object key : values.keySet()) {
            keys.add((String) key);
        }
        return keys;
    }

    /** Any value at all. */
    Object any(String key) throws JsonException {
        if (!values.containsKey(key)) {
            throw new JsonException("missing key '" + key + "' at " + where);
        }
        taken.add(key);
        return values.get(key);
    }

    String string(String key) throws JsonException {
        Object value = any(key);
        if (!(value instanceof String)) {
            throw unexpected(key, value, "a string");
        }
        return (String) value;
    }

    /** A string, or null. */
    String stringOrNull(String key) throws JsonException {
        return any(key) == null ? null : string(key);
    }

    boolean bool(String key) throws JsonException {
        Object value = any(key);
        if (!(value instanceof Boolean)) {
            throw unexpected(key, value, "true or false");
        }
        return (Boolean) value;
    }

    long integer(String key) throws JsonException {
        Object value = any(key);
        if (!(value instanceof Long)) {
            throw unexpected(key, value, "a whole number");
        }
        return (Long) value;
    }

    /** A whole number from 0 to what an int holds. */
    int count(String key) throws JsonException {
        long value = integer(key);
        if (value < 0 || value > Integer.MAX_VALUE) {
            throw unexpected(key, value, "a count");
        }
        return (int) value;
    }

    /** A token's id, or whatever else is a count. */
    int[] counts(String key) throws JsonException {
        List<?> list = list(key);
        int[] counts = new int[list.size()];
        for (int i = 0; i < counts.length; i++) {
            Object value = list.get(i);
            if (!(value instanceof Long) || (Long) value < 0 || (Long) value > Integer.MAX_VALUE) {
                throw unexpected(key + "[" + i + "]", value, "a count");
            }
            counts[i] = ((Long) value).intValue();
        }
        return counts;
    }

    List<String> strings(String key) throws JsonException {
        List<String> strings = new ArrayList<String>();
        for (Object value : list(key)) {
            if (!(value instanceof String)) {
                throw unexpected(key + "[" + strings.size() + "]", value, "a string");
            }
            strings.add((String) value);
        }
        return strings;
    }

    List<?> list(String key) throws JsonException {
        Object value = any(key);
        if (!(value instanceof List)) {
            throw unexpected(key, value, "a list");
        }
        return (List<?>) value;
    }

    JsonObject object(String key) throws JsonException {
        return new JsonObject(any(key), path(key));
    }

    /** An object, or null. */
    JsonObject objectOrNull(String key) throws JsonException {
        return any(key) == null ? null : object(key);
    }

    List<JsonObject> objects(String key) throws JsonException {
        List<JsonObject> objects = new ArrayList<JsonObject>();
        for (Object value : list(key)) {
            objects.add(new JsonObject(value, path(key) + "[" + objects.size() + "]"));
        }
        return objects;
    }

    /** All keys were taken, or this throws. */
    void done() throws JsonException {
        for (String key : keys()) {
            if (!taken.contains(key)) {
                throw new JsonException("unknown key '" + key + "' at " + where);
            }
        }
    }

    /** An error about a value. */
    JsonException unexpected(String key, Object value, String expected) {
        return new JsonException(path(key) + " is " + brief(value) + ", expected " + expected);
    }

    private String path(String key) {
        return where.equals("the top level") ? key : where + "." + key;
    }

    private static String brief(Object value) {
        if (value instanceof Map) {
            return "an object";
        }
        String text = value instanceof String ? "'" + value + "'" : String.valueOf(value);
        return text.length() <= 40 ? text : text.substring(0, 40) + "…";
    }
}
