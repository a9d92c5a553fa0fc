package io.github.edgegemma.engine;

import java.io.File;

/**
 * ONNX Runtime, as far as the engine needs it.
 *
 * <p>The app implements this over the official Java binding, the desktop tests over the C API.
 */
public interface OnnxRuntime {
    /** The version of the library, such as "1.32.0". */
    String version();

    /**
     * Loads a graph. Weights in files beside it are found by their names.
     *
     * @throws OnnxException if it cannot be loaded
     */
    OnnxSession open(File model, SessionSettings settings) throws OnnxException;
}
