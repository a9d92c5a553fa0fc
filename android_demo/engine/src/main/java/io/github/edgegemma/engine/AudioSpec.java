package io.github.edgegemma.engine;

/** The audio encoder: a clip in, its soft tokens out. */
public final class AudioSpec {
    /** The graph. */
    public final String file;

    /** The file with its weights. */
    public final String data;

    /** float32 [samples], mono, in [-1, 1]. */
    public final TensorSpec input;

    /** float32 [tokens, H]. */
    public final TensorSpec output;

    /** Hz. */
    public final int sampleRate;

    /** Shorter clips need silence behind them. */
    public final int minSamples;

    /** Longer ones must be cut. */
    public final int maxSamples;

    /** The graph pads a clip with zeros to a multiple of this. */
    public final int padMultiple;

    /** Samples of a frame of the spectrogram. */
    public final int frame;

    /** Samples from one frame to the next. */
    public final int hop;

    /** Frames that make a soft token. */
    public final int framesPerToken;

    /** Places of a clip in a prompt. */
    public final int softTokens;

    /** The id at the places behind a clip's own soft tokens. */
    public final int fillToken;

    /** Bytes that encoding the longest clip takes, an estimate. */
    public final long memory;

    AudioSpec(JsonObject json) throws JsonException {
        file = json.string("file");
        data = json.string("data");
        input = new TensorSpec(json.object("input"));
        output = new TensorSpec(json.object("output"));
        sampleRate = json.count("sample_rate");
        minSamples = json.count("min_samples");
        maxSamples = json.count("max_samples");
        padMultiple = json.count("pad_multiple");
        frame = json.count("frame");
        hop = json.count("hop");
        framesPerToken = json.count("frames_per_token");
        softTokens = json.count("soft_tokens");
        fillToken = json.count("fill_token");
        memory = json.integer("memory");
        if (padMultiple < 1 || hop < 1 || framesPerToken < 1) {
            throw json.unexpected("hop", Math.min(hop, Math.min(padMultiple, framesPerToken)), "at least 1");
        }
        json.done();
    }

    /** Soft tokens of a clip of so many samples. */
    public int tokens(int samples) {
        int padded = ceil(samples, padMultiple) * padMultiple;
        return ceil((padded - frame) / hop + 1, framesPerToken);
    }

    private static int ceil(int value, int divisor) {
        return (value + divisor - 1) / divisor;
    }
}
