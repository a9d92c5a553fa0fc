package io.github.edgegemma.demo.core;

import java.io.File;
import java.io.IOException;
import java.io.RandomAccessFile;
import java.nio.file.Files;

final class ArtifactFolderTest {
    private ArtifactFolderTest() {}

    private static File folder() throws IOException {
        return Files.createTempDirectory("artifact").toFile();
    }

    /** A file of this size that takes no room on disk. */
    private static void write(File folder, String name, long size) throws IOException {
        try (RandomAccessFile file = new RandomAccessFile(new File(folder, name), "rw")) {
            file.setLength(size);
        }
    }

    static void aFolderWithoutAManifestIsRefused() throws Exception {
        File folder = folder();
        Runner.refuses(
                Failure.Kind.NO_ARTIFACT, folder.getPath(), () -> new ArtifactFolder(folder).requireManifest());
        File missing = new File(folder, "missing");
        Runner.refuses(Failure.Kind.NO_ARTIFACT, "missing", () -> new ArtifactFolder(missing).requireManifest());
        write(folder, "manifest.json", 2);
        new ArtifactFolder(folder).requireManifest();
    }

    static void weightsThatDoNotFitAreRefused() throws Exception {
        File folder = folder();
        write(folder, "decoder.data", 1500L << 20);
        write(folder, "audio_encoder.onnx.data", 600L << 20);
        write(folder, "embeddings.bin", 3000L << 20); // stays on storage
        ArtifactFolder artifact = new ArtifactFolder(folder);
        artifact.requireMemory(1500L << 20);
        Runner.refuses(
                Failure.Kind.TOO_LITTLE_MEMORY,
                "1500 MiB, and 1400 MiB are free",
                () -> artifact.requireMemory(1400L << 20));
    }
}
