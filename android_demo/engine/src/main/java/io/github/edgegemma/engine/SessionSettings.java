package io.github.edgegemma.engine;

/**
 * How a graph is to be loaded. Implementations also turn memory patterns off
 * ({@code SessionOptions.setMemoryPatternOptimization(false)}), since shapes change from run to run.
 */
public final class SessionSettings {
    /** Threads for one operator; 0 leaves it to the library. */
    public final int threads;

    /** Settings with so many threads for one operator. */
    public SessionSettings(int threads) {
        this.threads = threads;
    }
}
