package io.github.edgegemma.engine;

import java.io.Closeable;
import java.io.File;
import java.nio.FloatBuffer;
import java.nio.LongBuffer;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** Runs the decoder's graphs; knows tokens only as embeddings. */
final class Decoder implements Closeable {
    private static final String[] KINDS = {DecoderSpec.KvBuffer.SLIDING, DecoderSpec.KvBuffer.GLOBAL};

    private final DecoderSpec spec;
    private final KvBuffers cache;
    private final List<OnnxSession> sessions = new ArrayList<OnnxSession>();
    private final int hidden;
    private final int layers;
    private final int width;
    private final Tensor embeds; // [1, chunk, H]
    private final Tensor perLayer; // [1, chunk, L, P]
    private final Tensor positions; // [1, chunk]
    private final Tensor level = Tensor.allocate(ElementType.INT64, 1);
    private final Tensor logits; // [1, 1, V]
    private final Map<String, Tensor> tensors = new LinkedHashMap<String, Tensor>(); // of all graphs, by name
    private final Map<TensorSpec, Tensor> handedOn = new LinkedHashMap<TensorSpec, Tensor>(); // of a whole chunk

    Decoder(
            File artifact,
            DecoderSpec spec,
            Manifest manifest,
            KvBuffers cache,
            int chunk,
            OnnxRuntime runtime,
            SessionSettings settings)
            throws OnnxException {
        this.spec = spec;
        this.cache = cache;
        hidden = manifest.embeddings.hiddenSize;
        layers = manifest.embeddings.layers;
        width = manifest.embeddings.perLayerWidth;
        embeds = Tensor.allocate(ElementType.FLOAT32, 1, chunk, hidden);
        perLayer = Tensor.allocate(ElementType.FLOAT32, 1, chunk, layers, width);
        positions = Tensor.allocate(ElementType.INT64, 1, chunk);
        logits = Tensor.allocate(ElementType.FLOAT32, 1, 1, manifest.vocabSize);
        cache.bind(tensors);
        tensors.put("logits", logits);
        Tensor one = Tensor.allocate(ElementType.INT64, 1);
        one.data().asLongBuffer().put(1);
        tensors.put("num_logits", one);
        for (String kind : KINDS) {
            if (spec.has(kind)) {
                tensors.put(kind + "_rows", Tensor.allocate(ElementType.INT32, 1));
            }
        }
        tensors.put("level", level); // only elastic graphs take it
        setLevel(manifest.levels.size() - 1);
        for (GraphSpec graph : spec.graphs) {
            for (TensorSpec output : graph.outputs) {
                if (!tensors.containsKey(output.name)) {
                    handedOn.put(output, Tensor.allocate(output.dtype, shape(output, chunk)));
                }
            }
        }
        try {
            for (GraphSpec graph : spec.graphs) {
                sessions.add(runtime.open(new File(artifact, graph.file), settings));
            }
        } catch (OnnxException error) {
            close();
            throw error;
        }
    }

    /** Which level of an elastic artifact computes from now on; the conversation stays. */
    void setLevel(int index) {
        level.data().asLongBuffer().put(index);
    }

    /** Where embeddings of the next tokens go, float32 [chunk, H]. */
    FloatBuffer embeds() {
        return embeds.data().asFloatBuffer();
    }

    /** Where their per-layer rows go, float32 [chunk, L, P]. */
    FloatBuffer perLayer() {
        return perLayer.data().asFloatBuffer();
    }

    /**
     * Appends tokens, whose rows are in place, to the conversation.
     *
     * @param wanted whether logits are; without, only keys and values are computed
     * @return logits of the last one, float32 [V]; they stay until the next call
     */
    FloatBuffer forward(int tokens, boolean wanted) throws OnnxException {
        int start = cache.length();
        cache.extend(tokens);
        tensors.put("inputs_embeds", embeds.reshaped(1, tokens, hidden));
        tensors.put("per_layer_inputs", perLayer.reshaped(1, tokens, layers, width));
        LongBuffer places = positions.data().asLongBuffer();
        for (int i = 0; i < tokens; i++) {
            places.put(start + i);
        }
        tensors.put("position_ids", positions.reshaped(1, tokens));
        for (String kind : KINDS) {
            if (spec.has(kind)) {
                tensors.get(kind + "_rows").data().asIntBuffer().put(cache.rows(kind));
            }
        }
        for (Map.Entry<TensorSpec, Tensor> entry : handedOn.entrySet()) {
            TensorSpec output = entry.getKey();
            tensors.put(output.name, entry.getValue().reshaped(shape(output, tokens)));
        }
        for (int i = 0; i < (wanted ? sessions.size() : 1); i++) {
            GraphSpec graph = spec.graphs.get(i);
            sessions.get(i).run(named(graph.inputs), named(graph.outputs));
        }
        return logits.data().asFloatBuffer();
    }

    @Override
    public void close() {
        for (OnnxSession session : sessions) {
            session.close();
        }
    }

    private Map<String, Tensor> named(List<TensorSpec> specs) {
        Map<String, Tensor> found = new LinkedHashMap<String, Tensor>();
        for (TensorSpec tensor : specs) {
            found.put(tensor.name, tensors.get(tensor.name));
        }
        return found;
    }

    /** Of so many tokens of one conversation. */
    private static long[] shape(TensorSpec tensor, int tokens) {
        long[] shape = new long[tensor.shape.size()];
        for (int i = 0; i < shape.length; i++) {
            Object dimension = tensor.shape.get(i);
            shape[i] = "batch".equals(dimension) ? 1 : "tokens".equals(dimension) ? tokens : tensor.fixed(i);
        }
        return shape;
    }
}
