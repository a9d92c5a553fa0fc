package io.github.edgegemma.engine;

import java.io.File;
import java.util.ArrayList;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** The audio and the vision encoder: each is loaded when a prompt needs it, and gone when that is encoded. */
final class Encoders {
    private static final int REMEMBERED = 4; // results, 2 MiB each at most

    private final File folder;
    private final Manifest manifest;
    private final OnnxRuntime runtime;
    private final SessionSettings settings;
    private final LinkedHashMap<Long, Tensor> results = new LinkedHashMap<Long, Tensor>(); // the oldest first

    Encoders(File folder, Manifest manifest, OnnxRuntime runtime, SessionSettings settings) {
        this.folder = folder;
        this.manifest = manifest;
        this.runtime = runtime;
        this.settings = settings;
    }

    /** The soft tokens of each; equal clips or images are encoded once, all clips before all images. */
    List<SoftTokens> encode(List<Media> media) throws OnnxException {
        Map<Long, Tensor> found = new LinkedHashMap<Long, Tensor>();
        for (Media item : media) {
            if (results.containsKey(item.fingerprint)) {
                found.put(item.fingerprint, results.get(item.fingerprint));
            }
        }
        if (manifest.audio != null) {
            encodeAll(media, Part.Kind.AUDIO, manifest.audio.file, manifest.audio.input, manifest.audio.output, found);
        }
        if (manifest.vision != null) {
            encodeAll(
                    media, Part.Kind.IMAGE, manifest.vision.file, manifest.vision.input, manifest.vision.output, found);
        }
        List<SoftTokens> soft = new ArrayList<SoftTokens>();
        for (Media item : media) {
            Tensor rows = found.get(item.fingerprint);
            soft.add(new SoftTokens(item.start, rows));
            results.remove(item.fingerprint);
            results.put(item.fingerprint, rows);
        }
        while (results.size() > REMEMBERED) {
            results.remove(results.keySet().iterator().next());
        }
        return soft;
    }

    private void encodeAll(
            List<Media> media,
            Part.Kind kind,
            String graph,
            TensorSpec input,
            TensorSpec output,
            Map<Long, Tensor> found)
            throws OnnxException {
        OnnxSession session = null;
        try {
            for (Media item : media) {
                if (item.kind != kind || found.containsKey(item.fingerprint)) {
                    continue;
                }
                if (session == null) {
                    session = runtime.open(new File(folder, graph), settings);
                }
                Tensor rows = Tensor.allocate(ElementType.FLOAT32, item.tokens, manifest.embeddings.hiddenSize);
                session.run(
                        Collections.singletonMap(input.name, item.data), Collections.singletonMap(output.name, rows));
                found.put(item.fingerprint, rows);
            }
        } finally {
            if (session != null) {
                session.close();
            }
        }
    }
}
