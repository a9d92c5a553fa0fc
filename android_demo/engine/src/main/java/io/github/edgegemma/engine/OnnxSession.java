package io.github.edgegemma.engine;

import java.io.Closeable;
import java.util.Map;

/** A loaded graph. One thread at a time may run it. */
public interface OnnxSession extends Closeable {
    /**
     * Runs the graph, and returns when all of {@code outputs} are written.
     *
     * <p>No output is allocated: each one that is wanted is given as a tensor of its exact type and shape,
     * whose memory the graph writes. A tensor may be an input and an output at once, under two names; it is
     * then one memory for the graph, too (an OnnxTensor that is passed as an input and as a pinned output of
     * the official binding). That is how keys and values stay where they are.
     *
     * @param inputs by name; all inputs that the graph has
     * @param outputs by name
     * @throws OnnxException if a name, type or shape is not the graph's, or running fails
     */
    void run(Map<String, Tensor> inputs, Map<String, Tensor> outputs) throws OnnxException;

    /** Gives the memory back. A second call does nothing. */
    @Override
    void close();
}
