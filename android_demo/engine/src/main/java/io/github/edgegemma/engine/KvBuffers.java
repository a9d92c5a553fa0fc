package io.github.edgegemma.engine;

import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;

/**
 * The keys and values that the decoder reads and writes in place; see edge_gemma.runtime.kv_cache, whose
 * places these are.
 *
 * <p>A global buffer has a row for each token of the context, a sliding one for window - 1 + chunk: when it is
 * full, the last window - 1 rows and a margin of older ones move to the front. Layers that share keys and
 * values have no buffer of their own: the graph reads those of the layer they share with.
 */
final class KvBuffers {
    private static final int MARGIN = 8;

    private static final class Layer {
        final DecoderSpec.KvBuffer spec;
        final Tensor key;
        final Tensor value;

        Layer(DecoderSpec.KvBuffer spec, Tensor key, Tensor value) {
            this.spec = spec;
            this.key = key;
            this.value = value;
        }
    }

    private final List<Layer> layers = new ArrayList<Layer>();
    private final int kept;
    private final int sliding;
    private final int context;
    private final int margin;
    private int length;
    private int oldest; // place in the conversation of the first row of the sliding buffers

    /** Buffers for up to {@code context} tokens, fed in chunks of up to {@code chunk}. */
    KvBuffers(DecoderSpec spec, int context, int chunk) {
        this.context = context;
        kept = Math.min(spec.slidingWindow - 1, context);
        sliding = kept + chunk;
        margin = Math.min(MARGIN, chunk / 2);
        for (DecoderSpec.KvBuffer buffer : spec.kv) {
            int rows = buffer.kind.equals(DecoderSpec.KvBuffer.GLOBAL) ? context : sliding;
            layers.add(new Layer(
                    buffer,
                    Tensor.allocate(buffer.dtype, 1, buffer.heads, rows, buffer.headDim),
                    Tensor.allocate(buffer.dtype, 1, buffer.heads, rows, buffer.headDim)));
        }
    }

    /** Puts every buffer among the graphs' inputs and outputs. */
    void bind(Map<String, Tensor> tensors) {
        for (Layer layer : layers) {
            tensors.put(layer.spec.pastKey, layer.key);
            tensors.put(layer.spec.pastValue, layer.value);
            for (String name : layer.spec.presentKey) {
                tensors.put(name, layer.key);
            }
            for (String name : layer.spec.presentValue) {
                tensors.put(name, layer.value);
            }
        }
    }

    /** Tokens of the conversation so far. */
    int length() {
        return length;
    }

    /** Rows in use, by kind of buffer. */
    int rows(String kind) {
        return kind.equals(DecoderSpec.KvBuffer.GLOBAL) ? length : length - oldest;
    }

    /** Forgets the conversation; the buffers stay. */
    void reset() {
        length = 0;
        oldest = 0;
    }

    /** The shortest length that {@link #truncate} takes now: further back the window is gone. */
    int least() {
        return oldest == 0 ? 0 : oldest + kept;
    }

    /** Takes back all tokens but the first ones, at least {@link #least} of them. */
    void truncate(int first) {
        if (first < least() || first > length) {
            throw new IllegalArgumentException(length + " tokens cannot be cut to " + first);
        }
        length = first;
    }

    /** Makes room for new tokens, at most a chunk and what the context has left. */
    void extend(int tokens) {
        if (tokens > sliding - kept || length + tokens > context) {
            throw new IllegalArgumentException(
                    tokens + " tokens after " + length + " do not fit buffers for " + context);
        }
        // First of all: whoever fails from here on can tell by the length that rows are missing.
        length += tokens;
        if (length - oldest > sliding) {
            slide(tokens);
        }
    }

    /** Moves the window before the last tokens, and what the margin has room for, to the front. */
    private void slide(int tokens) {
        int used = length - oldest - tokens;
        int first = used - kept - Math.min(margin, sliding - kept - tokens);
        for (Layer layer : layers) {
            if (!layer.spec.kind.equals(DecoderSpec.KvBuffer.GLOBAL)) {
                moveRows(layer.key, first, used);
                moveRows(layer.value, first, used);
            }
        }
        oldest += first;
    }

    /** Moves rows first … last - 1 of each head to its start; a tensor is [1, heads, rows, headDim]. */
    private static void moveRows(Tensor tensor, int first, int last) {
        long[] shape = tensor.shape();
        int row = (int) shape[3] * tensor.type.bytes;
        int head = (int) shape[2] * row;
        byte[] moved = new byte[(last - first) * row]; // a copy: the two places may overlap
        ByteBuffer data = tensor.data();
        for (int i = 0; i < shape[1]; i++) {
            data.position(i * head + first * row);
            data.get(moved);
            data.position(i * head);
            data.put(moved);
        }
    }
}
