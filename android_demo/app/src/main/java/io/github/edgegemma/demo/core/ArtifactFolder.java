package io.github.edgegemma.demo.core;

import java.io.File;

/** What can be said about an artifact before the engine opens it. */
public final class ArtifactFolder {
    private final File folder;

    /** The folder, which need not exist. */
    public ArtifactFolder(File folder) {
        this.folder = folder;
    }

    /** Refuses a folder without an artifact. */
    public void requireManifest() throws DemoException {
        if (!new File(folder, "manifest.json").isFile()) {
            throw new DemoException(Failure.Kind.NO_ARTIFACT, folder.getPath());
        }
    }

    /**
     * Refuses a model whose weights are more than the memory that is free: Android would end the app without a
     * word. The largest of these files is the decoder's weights, and ONNX Runtime holds them packed anew.
     */
    public void requireMemory(long freeBytes) throws DemoException {
        long weights = 0;
        File[] files = folder.listFiles();
        for (File file : files == null ? new File[0] : files) {
            if (file.getName().endsWith(".data")) {
                weights = Math.max(weights, file.length());
            }
        }
        if (weights > freeBytes) {
            throw new DemoException(
                    Failure.Kind.TOO_LITTLE_MEMORY,
                    "the weights have " + mebibytes(weights) + ", and " + mebibytes(freeBytes) + " are free");
        }
    }

    private static String mebibytes(long bytes) {
        return (bytes >> 20) + " MiB";
    }
}
