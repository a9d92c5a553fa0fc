package io.github.edgegemma.demo.core;

/** 16 kHz, mono, 16 bits. */
public interface Microphone {
    /** Samples in a second. */
    int RATE = 16_000;

    /** Begins to record. */
    void start() throws DemoException;

    /** Waits for samples, writes them to the front of {@code block} and says how many they are. */
    int read(short[] block) throws DemoException;

    /** Ends the recording; without a start before it does nothing. */
    void stop();
}
