package ai.onnxruntime;

import java.nio.Buffer;
import java.nio.ByteBuffer;
import java.nio.FloatBuffer;
import java.nio.IntBuffer;
import java.nio.LongBuffer;

public class OnnxTensor extends OnnxTensorLike {
    public static int open;

    public final Buffer data;
    public final long[] shape;
    public final OnnxJavaType type;

    private OnnxTensor(Buffer data, long[] shape, OnnxJavaType type, int bytes) throws OrtException {
        long elements = 1;
        for (long dimension : shape) {
            elements *= dimension;
        }
        if (!data.isDirect() || data.position() != 0 || data.remaining() != elements * bytes) {
            throw new OrtException("the buffer does not have the shape's elements");
        }
        this.data = data;
        this.shape = shape;
        this.type = type;
        open++;
    }

    public static OnnxTensor createTensor(OrtEnvironment env, FloatBuffer data, long[] shape)
            throws OrtException {
        return new OnnxTensor(data, shape, OnnxJavaType.FLOAT, 1);
    }

    public static OnnxTensor createTensor(OrtEnvironment env, IntBuffer data, long[] shape) throws OrtException {
        return new OnnxTensor(data, shape, OnnxJavaType.INT32, 1);
    }

    public static OnnxTensor createTensor(OrtEnvironment env, LongBuffer data, long[] shape)
            throws OrtException {
        return new OnnxTensor(data, shape, OnnxJavaType.INT64, 1);
    }

    public static OnnxTensor createTensor(OrtEnvironment env, ByteBuffer data, long[] shape, OnnxJavaType type)
            throws OrtException {
        return new OnnxTensor(data, shape, type, type == OnnxJavaType.FLOAT16 ? 2 : 1);
    }

    @Override
    public void close() {
        open--;
    }
}
