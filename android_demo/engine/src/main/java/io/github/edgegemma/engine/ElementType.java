package io.github.edgegemma.engine;

/** Types of tensor elements, by the names that manifests have for them. */
public enum ElementType {
    /** IEEE single precision. */
    FLOAT32("float32", 4),
    /** IEEE half precision; Java has no type for it. */
    FLOAT16("float16", 2),
    /** Signed bytes. */
    INT8("int8", 1),
    /** Unsigned bytes. */
    UINT8("uint8", 1),
    /** Signed, 32 bits. */
    INT32("int32", 4),
    /** Signed, 64 bits. */
    INT64("int64", 8);

    /** As manifest.json and numpy write it. */
    public final String manifestName;

    /** Size of an element. */
    public final int bytes;

    ElementType(String manifestName, int bytes) {
        this.manifestName = manifestName;
        this.bytes = bytes;
    }

    /** The type of this name, or null. */
    static ElementType named(String name) {
        for (ElementType type : values()) {
            if (type.manifestName.equals(name)) {
                return type;
            }
        }
        return null;
    }
}
