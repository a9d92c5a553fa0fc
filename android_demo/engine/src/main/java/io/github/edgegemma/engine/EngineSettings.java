package io.github.edgegemma.engine;

/** How an artifact is opened. Immutable: each {@code with…} gives a changed copy. */
public final class EngineSettings {
    /** Most tokens of prompt and answer together; 0: 4096, or the model's limit where it is less. */
    public final int context;

    /** Tokens of a prompt that are computed at once; more are faster and take more memory. */
    public final int chunk;

    /** Threads for one operator; 0 leaves it to ONNX Runtime. */
    public final int threads;

    /** "float16" or "int8": the KV cache of the full-attention layers; null: as the recipe has it. */
    public final String globalKv;

    private EngineSettings(int context, int chunk, int threads, String globalKv) {
        this.context = context;
        this.chunk = chunk;
        this.threads = threads;
        this.globalKv = globalKv;
    }

    /** The model's context up to 4096 tokens, chunks of 128, the library's threads, the recipe's cache. */
    public static EngineSettings defaults() {
        return new EngineSettings(0, 128, 0, null);
    }

    /** With another {@link #context}. */
    public EngineSettings withContext(int tokens) {
        return new EngineSettings(tokens, chunk, threads, globalKv);
    }

    /** With another {@link #chunk}. */
    public EngineSettings withChunk(int tokens) {
        return new EngineSettings(context, tokens, threads, globalKv);
    }

    /** With another number of {@link #threads}. */
    public EngineSettings withThreads(int count) {
        return new EngineSettings(context, chunk, count, globalKv);
    }

    /** With another {@link #globalKv}. */
    public EngineSettings withGlobalKv(String type) {
        return new EngineSettings(context, chunk, threads, type);
    }
}
