package io.github.edgegemma.engine;

import java.lang.reflect.Field;
import java.lang.reflect.Modifier;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** The fields of a manifest as JSON values, under the names that manifest.json has for them. */
final class Fields {
    private Fields() {}

    static Object of(Object value) throws IllegalAccessException {
        if (value == null || value instanceof String || value instanceof Number || value instanceof int[]) {
            return value;
        }
        if (value instanceof ElementType) {
            return ((ElementType) value).manifestName;
        }
        if (value instanceof List) {
            List<Object> list = new ArrayList<Object>();
            for (Object item : (List<?>) value) {
                list.add(of(item));
            }
            return list;
        }
        Map<String, Object> fields = new LinkedHashMap<String, Object>();
        if (value instanceof Map) {
            for (Map.Entry<?, ?> entry : ((Map<?, ?>) value).entrySet()) {
                fields.put((String) entry.getKey(), of(entry.getValue()));
            }
            return fields;
        }
        for (Field field : value.getClass().getDeclaredFields()) {
            if (!Modifier.isStatic(field.getModifiers())) {
                field.setAccessible(true);
                fields.put(field.getName().replaceAll("([A-Z])", "_$1").toLowerCase(), of(field.get(value)));
            }
        }
        return fields;
    }
}
