package io.github.edgegemma.demo.core;

final class ClipTest {
    private ClipTest() {}

    static void samplesAreScaledToOne() {
        Clip clip = new Clip(8);
        clip.append(new short[] {0, 16384, -32768, 32767, 99}, 4);
        Runner.equal(new float[] {0f, 0.5f, -1f, 32767 / 32768f}, clip.samples());
        Runner.equal(false, clip.isFull());
    }

    static void whatIsBeyondTheLimitIsDropped() {
        Clip clip = new Clip(3);
        clip.append(new short[] {1, 2}, 2);
        clip.append(new short[] {3, 4}, 2);
        clip.append(new short[] {5}, 1);
        Runner.equal(true, clip.isFull());
        Runner.equal(new float[] {1 / 32768f, 2 / 32768f, 3 / 32768f}, clip.samples());
    }

    static void nothingIsAnEmptyClip() {
        Clip clip = new Clip(3);
        clip.append(new short[2], 0);
        Runner.equal(0, clip.length());
        Runner.equal(new float[0], clip.samples());
    }
}
