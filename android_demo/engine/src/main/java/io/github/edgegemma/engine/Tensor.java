package io.github.edgegemma.engine;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.Arrays;

/** Memory with a type and a shape: what graphs read and write. */
public final class Tensor {
    /** Type of the elements. */
    public final ElementType type;

    private final long[] shape;
    private final ByteBuffer data;

    private Tensor(ElementType type, long[] shape, ByteBuffer data) {
        this.type = type;
        this.shape = shape;
        this.data = data;
    }

    /** A new tensor of zeros. */
    public static Tensor allocate(ElementType type, long... shape) {
        return new Tensor(type, shape.clone(), ByteBuffer.allocateDirect(size(type, shape)));
    }

    /** The dimensions, a copy. */
    public long[] shape() {
        return shape.clone();
    }

    /**
     * The memory: direct, in native byte order, from its first to its last byte. Each call gives a view with
     * a position and a limit of its own.
     */
    public ByteBuffer data() {
        ByteBuffer view = data.duplicate().order(ByteOrder.nativeOrder());
        view.clear();
        return view;
    }

    /** A view of the first bytes of the same memory under another shape, which may be smaller. */
    public Tensor reshaped(long... smaller) {
        int size = size(type, smaller);
        if (size > data.capacity()) {
            throw new IllegalArgumentException(
                    "shape " + Arrays.toString(smaller) + " does not fit " + data.capacity() + " bytes");
        }
        ByteBuffer view = data();
        view.limit(size);
        return new Tensor(type, smaller.clone(), view.slice());
    }

    /** The number of elements. */
    public int elements() {
        return data.capacity() / type.bytes;
    }

    @Override
    public String toString() {
        return type.manifestName + Arrays.toString(shape);
    }

    private static int size(ElementType type, long[] shape) {
        long size = type.bytes;
        for (long dimension : shape) {
            if (dimension < 0) {
                throw new IllegalArgumentException("a dimension of " + Arrays.toString(shape) + " is negative");
            }
            size = Math.multiplyExact(size, dimension);
        }
        return Math.toIntExact(size);
    }
}
