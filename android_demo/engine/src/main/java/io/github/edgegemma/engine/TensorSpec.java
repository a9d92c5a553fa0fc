package io.github.edgegemma.engine;

import java.util.ArrayList;
import java.util.Collections;
import java.util.List;

/** An input or output of a graph. */
public final class TensorSpec {
    /** Its name. */
    public final String name;

    /** Type of its elements. */
    public final ElementType dtype;

    /** Its dimensions: a Long each, or a String for one that changes. */
    public final List<Object> shape;

    TensorSpec(JsonObject json) throws JsonException {
        name = json.string("name");
        dtype = type(json, "dtype");
        List<Object> dimensions = new ArrayList<Object>();
        for (Object dimension : json.list("shape")) {
            if (!(dimension instanceof Long) && !(dimension instanceof String)) {
                throw json.unexpected("shape", dimension, "numbers and names");
            }
            dimensions.add(dimension);
        }
        shape = Collections.unmodifiableList(dimensions);
        json.done();
    }

    /** The number at a place of the shape; 0 where it changes. */
    int fixed(int place) {
        Object dimension = place < shape.size() ? shape.get(place) : null;
        return dimension instanceof Long ? ((Long) dimension).intValue() : 0;
    }

    static ElementType type(JsonObject json, String key) throws JsonException {
        String name = json.string(key);
        ElementType type = ElementType.named(name);
        if (type == null) {
            throw json.unexpected(key, name, "a type that this engine knows");
        }
        return type;
    }

    static List<TensorSpec> list(List<JsonObject> objects) throws JsonException {
        List<TensorSpec> specs = new ArrayList<TensorSpec>();
        for (JsonObject object : objects) {
            specs.add(new TensorSpec(object));
        }
        return Collections.unmodifiableList(specs);
    }
}
