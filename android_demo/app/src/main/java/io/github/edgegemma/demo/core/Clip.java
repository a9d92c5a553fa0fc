package io.github.edgegemma.demo.core;

/** A recording that grows up to a limit. */
public final class Clip {
    private final float[] samples;
    private int count;

    /** An empty recording of at most so many samples. */
    public Clip(int limit) {
        this.samples = new float[limit];
    }

    /** Takes samples of 16 bits, as many as there is room for. */
    public void append(short[] block, int length) {
        int taken = Math.min(length, samples.length - count);
        for (int i = 0; i < taken; i++) {
            samples[count + i] = block[i] / 32768f;
        }
        count += taken;
    }

    /** Whether there is no room left. */
    public boolean isFull() {
        return count == samples.length;
    }

    /** Samples there are. */
    public int length() {
        return count;
    }

    /** What was recorded, in [-1, 1]. */
    public float[] samples() {
        float[] all = new float[count];
        System.arraycopy(samples, 0, all, 0, count);
        return all;
    }
}
