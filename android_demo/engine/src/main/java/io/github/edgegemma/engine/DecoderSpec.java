package io.github.edgegemma.engine;

import java.util.ArrayList;
import java.util.Collections;
import java.util.List;

/** A decoder: graphs that run in turn. docs/artifact.md describes their inputs and outputs. */
public final class DecoderSpec {
    /** The first writes keys and values; those behind it are there for the logits alone. */
    public final List<GraphSpec> graphs;

    /** The file with the weights of them all. */
    public final String data;

    /** One for each layer that owns its keys and values. */
    public final List<KvBuffer> kv;

    /** Tokens that a sliding layer sees, the newest included. */
    public final int slidingWindow;

    DecoderSpec(JsonObject json) throws JsonException {
        List<GraphSpec> parts = new ArrayList<GraphSpec>();
        for (JsonObject object : json.objects("graphs")) {
            parts.add(new GraphSpec(object));
        }
        graphs = Collections.unmodifiableList(parts);
        data = json.string("data");
        List<KvBuffer> buffers = new ArrayList<KvBuffer>();
        for (JsonObject object : json.objects("kv")) {
            buffers.add(new KvBuffer(object));
        }
        kv = Collections.unmodifiableList(buffers);
        slidingWindow = json.count("sliding_window");
        if (graphs.isEmpty() || kv.isEmpty() || slidingWindow < 1) {
            throw json.unexpected("kv", "without graphs, buffers or window", "all three");
        }
        json.done();
    }

    /** The graphs and their weights. */
    List<String> files() {
        List<String> names = new ArrayList<String>();
        for (GraphSpec graph : graphs) {
            names.add(graph.file);
        }
        names.add(data);
        return names;
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
