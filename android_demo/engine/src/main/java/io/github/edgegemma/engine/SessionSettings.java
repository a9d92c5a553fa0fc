package io.github.edgegemma.engine;

/**
 * How a graph is to be loaded. Implementations also turn memory patterns off
 * ({@code SessionOptions.setMemoryPatternOptimization(false)}), since shapes change from run to run, and let
 * threads rest behind each run ({@code addConfigEntry("session.force_spinning_stop", "1")}), since graphs with
 * threads of their own take turns.
 */
public final class SessionSettings {
    /** Threads for one operator; 0 leaves it to the library. */
    public final int threads;

    /** Settings with so many threads for one operator. */
    public SessionSettings(int threads) {
        this.threads = threads;
    }
}
