package io.github.edgegemma.engine;

import java.nio.FloatBuffer;
import java.util.Arrays;
import java.util.List;

/** From ids to logits: one conversation, and what of it the KV buffers hold. Knows no text. */
final class Generator {
    private final Decoder decoder;
    private final EmbeddingStore store;
    private final KvBuffers cache;
    private final int hidden;
    private final int perLayer;
    private final int chunk;
    private long[] held = new long[0]; // one key for each row: an id, or a soft token's
    private int count;
    private int asked; // of these, the last prompt: what follows was said

    Generator(Decoder decoder, EmbeddingStore store, KvBuffers cache, EmbeddingSpec spec, int chunk) {
        this.decoder = decoder;
        this.store = store;
        this.cache = cache;
        this.chunk = chunk;
        hidden = spec.hiddenSize;
        perLayer = spec.layers * spec.perLayerWidth;
    }

    /**
     * How many places of a prompt with these keys are there already: all that is held, or all but the end of
     * what was said last, which may be read back in other ids. None where the buffers have more rows than
     * keys: an error came before they were written.
     */
    int reusable(long[] keys) {
        if (count != cache.length()) {
            return 0;
        }
        int most = Math.min(count, keys.length - 1);
        int alike = 0;
        while (alike < most && held[alike] == keys[alike]) {
            alike++;
        }
        return alike == count || alike >= Math.max(asked, cache.least()) ? alike : 0;
    }

    /**
     * Reads a prompt chunk by chunk, from the first place that is not there already.
     *
     * @param keys what is at each place; {@code ids} where no soft token is
     * @param soft the soft tokens of all places that {@link #reusable} leaves
     * @return logits behind the last token, float32 [V]; null if it was cancelled
     */
    FloatBuffer prefill(int[] ids, long[] keys, List<SoftTokens> soft, Cancel cancel) throws EngineException {
        int first = reusable(keys);
        if (first == 0) {
            cache.reset();
        } else {
            cache.truncate(first);
        }
        count = first;
        asked = keys.length;
        FloatBuffer logits = null;
        for (int start = first; start < ids.length; start += chunk) {
            if (cancel != null && cancel.isCancelled()) {
                return null;
            }
            int end = Math.min(start + chunk, ids.length);
            logits = feed(ids, keys, start, end, soft, end == ids.length);
        }
        return logits;
    }

    /** Appends a token of the answer; the logits behind it. */
    FloatBuffer step(int id) throws EngineException {
        return feed(new int[] {id}, new long[] {id}, 0, 1, null, true);
    }

    private FloatBuffer feed(
            int[] ids, long[] keys, int start, int end, List<SoftTokens> soft, boolean wanted)
            throws EngineException {
        FloatBuffer embeds = decoder.embeds();
        FloatBuffer rows = decoder.perLayer();
        for (int i = start; i < end; i++) {
            embeds.position((i - start) * hidden);
            rows.position((i - start) * perLayer);
            store.read(ids[i], embeds, rows);
            if (soft != null) {
                for (SoftTokens item : soft) {
                    embeds.position((i - start) * hidden);
                    item.write(i, embeds);
                }
            }
        }
        FloatBuffer logits = decoder.forward(end - start, wanted);
        if (count + end - start > held.length) {
            held = Arrays.copyOf(held, Math.max(2 * held.length, count + end - start));
        }
        System.arraycopy(keys, start, held, count, end - start);
        count += end - start;
        return logits;
    }
}
