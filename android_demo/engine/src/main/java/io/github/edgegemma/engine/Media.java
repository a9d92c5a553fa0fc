package io.github.edgegemma.engine;

import java.nio.ByteBuffer;
import java.nio.FloatBuffer;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;

/** An image or a clip of a prompt: what its encoder takes, and where its soft tokens go. */
final class Media {
    private static final float PEAK = 2; // +6 dB: what is beyond is not meant for [-1, 1]

    final Part.Kind kind;

    /** audio: float32 [samples]; image: uint8 [height, width, 3]. */
    final Tensor data;

    /** Tells it from every other one. */
    final long fingerprint;

    /** Soft tokens. */
    final int tokens;

    /** The place of the first one in the prompt. */
    int start;

    private Media(Part.Kind kind, Tensor data, int tokens) {
        this.kind = kind;
        this.data = data;
        this.tokens = tokens;
        MessageDigest digest;
        try {
            digest = MessageDigest.getInstance("SHA-256");
        } catch (NoSuchAlgorithmException impossible) {
            throw new AssertionError(impossible); // every Java has it
        }
        digest.update(data.toString().getBytes());
        digest.update(data.data());
        fingerprint = ByteBuffer.wrap(digest.digest()).getLong();
    }

    /** The place behind the last soft token. */
    int end() {
        return start + tokens;
    }

    /** A key for the n-th soft token, below 0: ids are not. */
    long key(int n) {
        return (fingerprint + n) | Long.MIN_VALUE;
    }

    /** Checks a part and copies what its encoder takes. */
    static Media of(Part part, Manifest manifest) throws PromptException {
        return part.kind == Part.Kind.AUDIO ? clip(part.samples, manifest.audio) : image(part, manifest.vision);
    }

    private static Media clip(float[] samples, AudioSpec spec) throws PromptException {
        if (spec == null) {
            throw new PromptException(
                    "this artifact has no audio encoder: export a checkpoint that has an audio tower");
        }
        if (samples == null || samples.length == 0) {
            throw new PromptException("the clip holds no samples; expected a sound: record it again");
        }
        if (samples.length > spec.maxSamples) {
            throw new PromptException("the clip has " + samples.length + " samples; expected at most "
                    + spec.maxSamples + " (" + (double) spec.maxSamples / spec.sampleRate + " s): cut it");
        }
        for (float sample : samples) {
            if (!(sample >= -PEAK && sample <= PEAK)) {
                throw new PromptException("the clip has the sample " + sample
                        + "; expected numbers in [-1, 1]: divide by the full scale, 32768 for 16 bits");
            }
        }
        Tensor data = Tensor.allocate(ElementType.FLOAT32, Math.max(samples.length, spec.minSamples));
        FloatBuffer out = data.data().asFloatBuffer();
        out.put(samples);
        return new Media(Part.Kind.AUDIO, data, spec.tokens(data.elements()));
    }

    private static Media image(Part part, VisionSpec spec) throws PromptException {
        if (spec == null) {
            throw new PromptException(
                    "this artifact has no vision encoder: export a checkpoint that has a vision tower");
        }
        long bytes = 3L * part.width * part.height;
        if (part.width < 1 || part.height < 1 || part.rgb == null || part.rgb.length != bytes) {
            throw new PromptException("the image of " + part.width + " x " + part.height + " has "
                    + (part.rgb == null ? 0 : part.rgb.length) + " bytes; expected three for each pixel");
        }
        Tensor data = Tensor.allocate(ElementType.UINT8, part.height, part.width, 3);
        data.data().put(part.rgb);
        return new Media(Part.Kind.IMAGE, data, spec.softTokens);
    }
}
