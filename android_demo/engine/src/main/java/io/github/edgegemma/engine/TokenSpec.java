package io.github.edgegemma.engine;

import java.util.LinkedHashMap;
import java.util.Map;

/** Special token ids. */
public final class TokenSpec {
    /** Begins every prompt. */
    public final int bos;

    /** Fills batches. */
    public final int pad;

    /** By name: boi, image, eoi, boa, audio, eoa; those that the checkpoint has. */
    public final Map<String, Integer> media;

    private final int[] stop;

    TokenSpec(JsonObject json) throws JsonException {
        bos = json.count("bos");
        pad = json.count("pad");
        stop = json.counts("stop");
        media = new LinkedHashMap<String, Integer>();
        JsonObject ids = json.object("media");
        for (String name : ids.keys()) {
            media.put(name, ids.count(name));
        }
        json.done();
    }

    /** Ids that end an answer. */
    public int[] stop() {
        return stop.clone();
    }

    /** Whether an id ends an answer. */
    boolean ends(int id) {
        for (int end : stop) {
            if (id == end) {
                return true;
            }
        }
        return false;
    }
}
