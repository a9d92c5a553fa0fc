package io.github.edgegemma.engine;

/** Part of a message: a text, a clip or an image. Media are not copied: leave them as they are. */
public final class Part {
    /** What a part is. */
    public enum Kind {
        /** A text. */
        TEXT,
        /** A clip. */
        AUDIO,
        /** An image. */
        IMAGE
    }

    final Kind kind;
    final String text;
    final float[] samples;
    final byte[] rgb;
    final int width;
    final int height;

    private Part(Kind kind, String text, float[] samples, byte[] rgb, int width, int height) {
        this.kind = kind;
        this.text = text;
        this.samples = samples;
        this.rgb = rgb;
        this.width = width;
        this.height = height;
    }

    /** A text. */
    public static Part text(String text) {
        return new Part(Kind.TEXT, text, null, null, 0, 0);
    }

    /** A clip: mono samples in [-1, 1] at the manifest's rate, which is 16 kHz. */
    public static Part audio(float[] samples) {
        return new Part(Kind.AUDIO, null, samples, null, 0, 0);
    }

    /** An image of any size: rows from the top, three bytes (red, green, blue) for each pixel. */
    public static Part image(byte[] rgb, int width, int height) {
        return new Part(Kind.IMAGE, null, null, rgb, width, height);
    }
}
