package io.github.edgegemma.engine;

import java.io.Closeable;
import java.io.File;
import java.nio.FloatBuffer;
import java.nio.LongBuffer;
import java.util.LinkedHashMap;
import java.util.Map;

/** Runs the decoder graph; knows tokens only as embeddings. */
final class Decoder implements Closeable {
    private static final String[] KINDS = {DecoderSpec.KvBuffer.SLIDING, DecoderSpec.KvBuffer.GLOBAL};

    private final DecoderSpec spec;
    private final KvBuffers cache;
    private final OnnxSession session;
    private final boolean elastic;
    private final int hidden;
    private final int layers;
    private final int width;
    private final Tensor embeds; // [1, chunk, H]
    private final Tensor perLayer; // [1, chunk, L, P]
    private final Tensor positions; // [1, chunk]
    private final Tensor level = Tensor.allocate(ElementType.INT64, 1);
    private final Tensor logits; // [1, 1, V]
    private final Map<String, Tensor> inputs = new LinkedHashMap<String, Tensor>();
    private final Map<String, Tensor> outputs = new LinkedHashMap<String, Tensor>();

    Decoder(
            File graph,
            DecoderSpec spec,
            Manifest manifest,
            KvBuffers cache,
            int chunk,
            OnnxRuntime runtime,
            SessionSettings settings)
            throws OnnxException {
        this.spec = spec;
        this.cache = cache;
        elastic = !manifest.levels.isEmpty();
        hidden = manifest.embeddings.hiddenSize;
        layers = manifest.embeddings.layers;
        width = manifest.embeddings.perLayerWidth;
        embeds = Tensor.allocate(ElementType.FLOAT32, 1, chunk, hidden);
        perLayer = Tensor.allocate(ElementType.FLOAT32, 1, chunk, layers, width);
        positions = Tensor.allocate(ElementType.INT64, 1, chunk);
        logits = Tensor.allocate(ElementType.FLOAT32, 1, 1, manifest.vocabSize);
        cache.bind(inputs, outputs);
        outputs.put("logits", logits);
        Tensor one = Tensor.allocate(ElementType.INT64, 1);
        one.data().asLongBuffer().put(1);
        inputs.put("num_logits", one);
        for (String kind : KINDS) {
            if (spec.has(kind)) {
                inputs.put(kind + "_rows", Tensor.allocate(ElementType.INT32, 1));
            }
        }
        if (elastic) {
            inputs.put("level", level);
            setLevel(manifest.levels.size() - 1);
        }
        session = runtime.open(graph, settings);
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
     * @return logits of the last one, float32 [V]; they stay until the next call
     */
    FloatBuffer forward(int tokens) throws OnnxException {
        int start = cache.length();
        cache.extend(tokens);
        inputs.put("inputs_embeds", embeds.reshaped(1, tokens, hidden));
        inputs.put("per_layer_inputs", perLayer.reshaped(1, tokens, layers, width));
        LongBuffer places = positions.data().asLongBuffer();
        for (int i = 0; i < tokens; i++) {
            places.put(start + i);
        }
        inputs.put("position_ids", positions.reshaped(1, tokens));
        for (String kind : KINDS) {
            if (spec.has(kind)) {
                inputs.get(kind + "_rows").data().asIntBuffer().put(cache.rows(kind));
            }
        }
        session.run(inputs, outputs);
        return logits.data().asFloatBuffer();
    }

    @Override
    public void close() {
        session.close();
    }
}
