package io.github.edgegemma.demo.core;

/** An upright image as the engine takes it: rows from the top, three bytes for each pixel. */
public final class Picture {
    /** The encoder scales to less than a million pixels; more only cost memory. */
    public static final int MOST_PIXELS = 3_000_000;

    /** Where pixels come from, a row at a time, so that an image is in memory once. */
    public interface Rows {
        /** Writes row {@code y} as Android has colours: alpha, red, green and blue in 8 bits each, not premultiplied. */
        void read(int y, int[] argb);
    }

    /** Reads a picture; this may take a while. */
    public interface Source {
        /** The picture. */
        Picture read() throws DemoException;
    }

    /** uint8 [height, width, 3]. */
    public final byte[] rgb;

    /** Columns. */
    public final int width;

    /** Rows. */
    public final int height;

    private Picture(int width, int height) {
        this.width = width;
        this.height = height;
        this.rgb = new byte[3 * width * height];
    }

    /** The power of two by which a decoder is to divide both sides for at most {@link #MOST_PIXELS}. */
    public static int sampleSize(int width, int height) {
        int size = 1;
        while ((long) (width / size) * (height / size) > MOST_PIXELS) {
            size *= 2;
        }
        return size;
    }

    /**
     * Turns an image upright and puts what is transparent on white.
     *
     * @param orientation as EXIF has it, 1 to 8; anything else is taken for 1
     */
    public static Picture upright(Rows rows, int width, int height, int orientation) {
        boolean lying = orientation >= 5 && orientation <= 8;
        Picture picture = lying ? new Picture(height, width) : new Picture(width, height);
        int[] row = new int[width];
        for (int y = 0; y < height; y++) {
            rows.read(y, row);
            for (int x = 0; x < width; x++) {
                picture.put(picture.place(x, y, orientation), row[x]);
            }
        }
        return picture;
    }

    /** Where the pixel that is stored at (x, y) belongs. */
    private int place(int x, int y, int orientation) {
        int right = width - 1;
        int bottom = height - 1;
        switch (orientation) {
            case 2:
                return y * width + right - x;
            case 3:
                return (bottom - y) * width + right - x;
            case 4:
                return (bottom - y) * width + x;
            case 5:
                return x * width + y;
            case 6:
                return x * width + right - y;
            case 7:
                return (bottom - x) * width + right - y;
            case 8:
                return (bottom - x) * width + y;
            default:
                return y * width + x;
        }
    }

    private void put(int place, int argb) {
        int alpha = argb >>> 24;
        rgb[3 * place] = onWhite(argb >> 16 & 0xFF, alpha);
        rgb[3 * place + 1] = onWhite(argb >> 8 & 0xFF, alpha);
        rgb[3 * place + 2] = onWhite(argb & 0xFF, alpha);
    }

    private static byte onWhite(int colour, int alpha) {
        return (byte) ((colour * alpha + 255 * (255 - alpha) + 127) / 255);
    }
}
