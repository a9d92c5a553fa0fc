package io.github.edgegemma.demo;

import android.content.Context;
import android.graphics.Bitmap;
import android.graphics.BitmapFactory;
import android.media.ExifInterface;
import android.net.Uri;
import io.github.edgegemma.demo.core.DemoException;
import io.github.edgegemma.demo.core.Failure;
import io.github.edgegemma.demo.core.Picture;
import java.io.File;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;

/** A picture that the user chose. Decoded smaller at once, so that one of 48 million pixels is never whole in memory. */
final class PhotoSource implements Picture.Source {
    private static final int UPRIGHT = 1;

    private final Context context;
    private final Uri uri;

    PhotoSource(Context context, Uri uri) {
        this.context = context;
        this.uri = uri;
    }

    /** A copy in a file can be read three times: for its size, its orientation and its pixels. */
    @Override
    public Picture read() throws DemoException {
        File copy = new File(context.getCacheDir(), "picture");
        try {
            copyTo(copy);
            return decode(copy.getPath());
        } catch (IOException | SecurityException thrown) {
            throw new DemoException(Failure.Kind.BAD_PICTURE, String.valueOf(thrown.getMessage()));
        } finally {
            copy.delete();
        }
    }

    private void copyTo(File copy) throws IOException {
        try (InputStream from = context.getContentResolver().openInputStream(uri)) {
            if (from == null) {
                throw new IOException("it is not there any more");
            }
            try (OutputStream to = new FileOutputStream(copy)) {
                byte[] block = new byte[1 << 16];
                for (int count = from.read(block); count >= 0; count = from.read(block)) {
                    to.write(block, 0, count);
                }
            }
        }
    }

    private static Picture decode(String path) throws IOException {
        BitmapFactory.Options options = new BitmapFactory.Options();
        options.inJustDecodeBounds = true;
        BitmapFactory.decodeFile(path, options);
        if (options.outWidth <= 0 || options.outHeight <= 0) {
            throw new IOException("its format is not known");
        }
        options.inJustDecodeBounds = false;
        options.inSampleSize = Picture.sampleSize(options.outWidth, options.outHeight);
        options.inPremultiplied = false;
        final Bitmap bitmap = BitmapFactory.decodeFile(path, options);
        if (bitmap == null) {
            throw new IOException("it is damaged");
        }
        try {
            return Picture.upright(
                    new Picture.Rows() {
                        @Override
                        public void read(int y, int[] argb) {
                            bitmap.getPixels(argb, 0, argb.length, 0, y, argb.length, 1);
                        }
                    },
                    bitmap.getWidth(),
                    bitmap.getHeight(),
                    orientation(path, options.outMimeType));
        } finally {
            bitmap.recycle();
        }
    }

    /** Android's decoder of HEIF and AVIF turns images itself; of other formats it leaves that to the app. */
    private static int orientation(String path, String mimeType) throws IOException {
        if (mimeType != null && mimeType.matches("image/(hei[cf]|avif).*")) {
            return UPRIGHT;
        }
        return new ExifInterface(path).getAttributeInt(ExifInterface.TAG_ORIENTATION, UPRIGHT);
    }
}
