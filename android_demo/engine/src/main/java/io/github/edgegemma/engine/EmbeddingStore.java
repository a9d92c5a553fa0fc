package io.github.edgegemma.engine;

import java.io.Closeable;
import java.io.File;
import java.io.IOException;
import java.io.RandomAccessFile;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;

/** embeddings.bin, of which one record is read for each token: nothing is mapped. */
final class EmbeddingStore implements Closeable {
    private final File file;
    private final EmbeddingSpec spec;
    private final EmbeddingSpec.RowField embedding;
    private final EmbeddingSpec.RowField perLayer;
    private final RandomAccessFile source;
    private final ByteBuffer record;

    EmbeddingStore(File file, EmbeddingSpec spec) throws ArtifactException {
        this.file = file;
        this.spec = spec;
        embedding = spec.field("embedding");
        perLayer = spec.field("per_layer");
        record = ByteBuffer.allocate(spec.recordBytes).order(ByteOrder.LITTLE_ENDIAN);
        try {
            source = new RandomAccessFile(file, "r");
        } catch (IOException error) {
            throw new ArtifactException(
                    file + " cannot be opened: " + error.getMessage() + "; copy or export the artifact again", error);
        }
    }

    /**
     * Writes what the decoder takes for a token, at the positions of the buffers.
     *
     * @param embeds gets hiddenSize values
     * @param rows gets layers · perLayerWidth values
     * @throws PromptException if the id is outside the vocabulary
     */
    void read(int id, FloatBuffer embeds, FloatBuffer rows) throws EngineException {
        if (id < 0 || id >= spec.records) {
            throw new PromptException("token id " + id + " is outside the vocabulary of " + spec.records + " ids");
        }
        record.clear();
        long start = (long) id * spec.recordBytes;
        try {
            while (record.hasRemaining()) {
                if (source.getChannel().read(record, start + record.position()) < 0) {
                    throw new ArtifactException(file + " ends inside the record at byte " + start
                            + ": copy or export the artifact again");
                }
            }
        } catch (IOException error) {
            throw new ArtifactException(
                    file + " cannot be read: " + error.getMessage() + "; copy or export the artifact again", error);
        }
        dequantize(record, embedding, embeds);
        dequantize(record, perLayer, rows);
    }

    @Override
    public void close() {
        try {
            source.close();
        } catch (IOException ignored) {
            // nothing was written
        }
    }

    /** One vector of a record; see {@link EmbeddingSpec.RowField}. */
    static void dequantize(ByteBuffer record, EmbeddingSpec.RowField field, FloatBuffer out) {
        float scale = 0;
        for (int i = 0; i < field.values; i++) {
            if (field.bits == 32) {
                out.put(record.getFloat(field.offset + 4 * i));
                continue;
            }
            if (i % field.block == 0) {
                scale = half(record.getShort(field.scaleOffset + 2 * (i / field.block)));
            }
            int code;
            if (field.bits == 8) {
                code = record.get(field.offset + i);
            } else {
                int pair = record.get(field.offset + i / 2) & 0xFF;
                code = (i % 2 == 0 ? pair & 15 : pair >> 4) - 8;
            }
            out.put(code * scale);
        }
    }

    /** The value of an IEEE half-precision number; exact, since every one is a float, too. */
    static float half(short bits) {
        int exponent = bits >> 10 & 31;
        int fraction = bits & 1023;
        float magnitude;
        if (exponent == 0) {
            magnitude = fraction * 0x1p-24f;
        } else if (exponent == 31) {
            magnitude = fraction == 0 ? Float.POSITIVE_INFINITY : Float.NaN;
        } else {
            magnitude = Float.intBitsToFloat(exponent + 112 << 23 | fraction << 13);
        }
        return bits < 0 ? -magnitude : magnitude;
    }
}
