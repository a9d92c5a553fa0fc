package io.github.edgegemma.engine;

import java.util.ArrayList;
import java.util.Collections;
import java.util.List;

/** embeddings.bin: one record for each id; record i starts at i · recordBytes. */
public final class EmbeddingSpec {
    private static final int SCALE_BYTES = 2;

    /** Its name. */
    public final String file;

    /** How many there are. */
    public final int records;

    /** Bytes of each. */
    public final int recordBytes;

    /** Values of an embedding. */
    public final int hiddenSize;

    /** Layers of the decoder. */
    public final int layers;

    /** Values of one layer's row. */
    public final int perLayerWidth;

    /** The vectors in a record. */
    public final List<RowField> fields;

    EmbeddingSpec(JsonObject json) throws JsonException {
        file = json.string("file");
        records = json.count("records");
        recordBytes = json.count("record_bytes");
        hiddenSize = json.count("hidden_size");
        layers = json.count("layers");
        perLayerWidth = json.count("per_layer_width");
        List<RowField> list = new ArrayList<RowField>();
        for (JsonObject object : json.objects("fields")) {
            list.add(new RowField(object));
        }
        fields = Collections.unmodifiableList(list);
        json.done();
    }

    /** The field of this name; null if there is none. */
    RowField field(String name) {
        for (RowField field : fields) {
            if (field.name.equals(name)) {
                return field;
            }
        }
        return null;
    }

    /** Whether the fields are the two that there must be, and lie inside a record. */
    boolean fits() {
        RowField embedding = field("embedding");
        RowField perLayer = field("per_layer");
        return fields.size() == 2
                && embedding != null
                && perLayer != null
                && embedding.values == hiddenSize
                && perLayer.values == (long) layers * perLayerWidth
                && embedding.fits(recordBytes)
                && perLayer.fits(recordBytes);
    }

    /**
     * One vector. bits 32: float32 values at {@code offset}. bits 8: signed bytes. bits 4: two values in a
     * byte, the low half first, each stored plus 8. With 8 and 4, float16 scales at {@code scaleOffset}, one
     * for {@code block} values: value = code · scale.
     */
    public static final class RowField {
        /** "embedding" or "per_layer". */
        public final String name;

        /** Bytes from the start of the record. */
        public final int offset;

        /** How many there are. */
        public final int values;

        /** 4, 8 or 32. */
        public final int bits;

        /** Values that share a scale. */
        public final int block;

        /** Bytes from the start of the record. */
        public final int scaleOffset;

        RowField(JsonObject json) throws JsonException {
            name = json.string("name");
            offset = json.count("offset");
            values = json.count("values");
            bits = json.count("bits");
            block = json.count("block");
            scaleOffset = json.count("scale_offset");
            json.done();
        }

        private boolean fits(int recordBytes) {
            if (offset > recordBytes - (long) values * bits / 8) {
                return false;
            }
            if (bits == 32) {
                return true;
            }
            return (bits == 4 || bits == 8)
                    && block > 0
                    && values % block == 0
                    && scaleOffset <= recordBytes - (long) values / block * SCALE_BYTES;
        }
    }
}
