package io.github.edgegemma.engine;

import java.util.ArrayList;
import java.util.Collections;
import java.util.List;

/** A decoder graph: docs/artifact.md describes its inputs and outputs. */
public final class DecoderSpec {
    /** The graph. */
    public final String file;

    /** The file with its weights. */
    public final String data;

    /** Everything it takes. */
    public final List<TensorSpec> inputs;

    /** Everything it gives. */
    public final List<TensorSpec> outputs;

    /** One for each layer that owns its keys and values. */
    public final List<KvBuffer> kv;

    /** Tokens that a sliding layer sees, the newest included. */
    public final int slidingWindow;

    DecoderSpec(JsonObject json) throws JsonException {
        file = json.string("file");
        data = json.string("data");
        inputs = TensorSpec.list(json.objects("inputs"));
        outputs = TensorSpec.list(json.objects("outputs"));
        List<KvBuffer> buffers = new ArrayList<KvBuffer>();
        for (JsonObject object : json.objects("kv")) {
            buffers.add(new KvBuffer(object));
        }
        kv = Collections.unmodifiableList(buffers);
        slidingWindow = json.count("sliding_window");
        if (kv.isEmpty() || slidingWindow < 1) {
            throw json.unexpected("kv", "without buffers or window", "both");
        }
        json.done();
    }

    /** Type of the KV cache of the global layers; where no layer is global, of all. */
    ElementType globalKv() {
        for (KvBuffer buffer : kv) {
            if (buffer.kind.equals(KvBuffer.GLOBAL)) {
                return buffer.dtype;
            }
        }
        return kv.get(0).dtype;
    }

    /** Whether a buffer is of this kind. */
    boolean has(String kind) {
        for (KvBuffer buffer : kv) {
            if (buffer.kind.equals(kind)) {
                return true;
            }
        }
        return false;
    }

    /** Keys and values of one layer: [batch, heads, rows, headDim] each. */
    public static final class KvBuffer {
        static final String SLIDING = "sliding";
        static final String GLOBAL = "global";

        /** The layer that owns it. */
        public final int layer;

        /** "sliding": rows of the window; "global": rows of the context. */
        public final String kind;

        /** Type of its elements. */
        public final ElementType dtype;

        /** Heads of keys and values. */
        public final int heads;

        /** Elements of a row. */
        public final int headDim;

        /** Name of the input for keys. */
        public final String pastKey;

        /** Name of the input for values. */
        public final String pastValue;

        /** Names of the outputs whose memory is that of the keys. */
        public final List<String> presentKey;

        /** Names of the outputs whose memory is that of the values. */
        public final List<String> presentValue;

        KvBuffer(JsonObject json) throws JsonException {
            layer = json.count("layer");
            kind = json.string("kind");
            dtype = TensorSpec.type(json, "dtype");
            heads = json.count("heads");
            headDim = json.count("head_dim");
            pastKey = json.string("past_key");
            pastValue = json.string("past_value");
            presentKey = Collections.unmodifiableList(json.strings("present_key"));
            presentValue = Collections.unmodifiableList(json.strings("present_value"));
            if (!kind.equals(SLIDING) && !kind.equals(GLOBAL)) {
                throw json.unexpected("kind", kind, "sliding or global");
            }
            json.done();
        }
    }
}
