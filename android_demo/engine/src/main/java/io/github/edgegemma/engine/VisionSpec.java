package io.github.edgegemma.engine;

/** The vision encoder: an image in, its soft tokens out. */
public final class VisionSpec {
    /** The graph. */
    public final String file;

    /** The file with its weights. */
    public final String data;

    /** uint8 [height, width, 3], RGB, any size. */
    public final TensorSpec input;

    /** float32 [softTokens, H]. */
    public final TensorSpec output;

    /** Places of an image in a prompt. */
    public final int softTokens;

    /** Bytes that encoding an image takes, an estimate. */
    public final long memory;

    VisionSpec(JsonObject json) throws JsonException {
        file = json.string("file");
        data = json.string("data");
        input = new TensorSpec(json.object("input"));
        output = new TensorSpec(json.object("output"));
        softTokens = json.count("soft_tokens");
        memory = json.integer("memory");
        json.done();
    }
}
