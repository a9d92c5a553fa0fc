package io.github.edgegemma.demo.core;

final class PictureTest {
    private PictureTest() {}

    /** Opaque pixels whose red is 16·y + x, so that each is told from all others. */
    private static final Picture.Rows COORDINATES = (y, argb) -> {
        for (int x = 0; x < argb.length; x++) {
            argb[x] = 0xFF000000 | (16 * y + x) << 16 | x << 8 | y;
        }
    };

    /** Prints, for each orientation, width, height and reds of a 3×2 image: pytest compares with Pillow's. */
    public static void main(String[] arguments) {
        for (int orientation = 1; orientation <= 8; orientation++) {
            Picture picture = Picture.upright(COORDINATES, 3, 2, orientation);
            StringBuilder line = new StringBuilder(picture.width + " " + picture.height);
            for (int i = 0; i < picture.rgb.length; i += 3) {
                line.append(' ').append(picture.rgb[i] & 0xFF);
            }
            System.out.println(line);
        }
    }

    static void coloursAreRedGreenBlue() {
        Picture.Rows one = (y, argb) -> argb[0] = 0xFFFA8005;
        Runner.equal(new byte[] {(byte) 0xFA, (byte) 0x80, 5}, Picture.upright(one, 1, 1, 1).rgb);
    }

    static void anUnknownOrientationIsUpright() {
        Runner.equal(
                Picture.upright(COORDINATES, 3, 2, 1).rgb, Picture.upright(COORDINATES, 3, 2, 0).rgb);
    }

    static void transparencyIsOnWhite() {
        int[] pixels = {0x00123456, 0x80000000, 0xFF000000};
        Picture.Rows row = (y, argb) -> System.arraycopy(pixels, 0, argb, 0, 3);
        byte half = 127;
        Runner.equal(
                new byte[] {-1, -1, -1, half, half, half, 0, 0, 0}, Picture.upright(row, 3, 1, 1).rgb);
    }

    static void largePhotosAreDecodedSmaller() {
        Runner.equal(1, Picture.sampleSize(2000, 1500));
        Runner.equal(2, Picture.sampleSize(2001, 1500));
        Runner.equal(4, Picture.sampleSize(8000, 6000)); // 48 million pixels
        Runner.equal(16, Picture.sampleSize(30_000, 20_000));
        Runner.equal(1, Picture.sampleSize(1, 1));
    }
}
