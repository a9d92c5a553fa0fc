package io.github.edgegemma.engine;

import java.io.File;
import java.io.FileInputStream;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** manifest.json: everything that is to be known of an artifact; docs/artifact.md describes it. */
public final class Manifest {
    /** The format that this engine reads. */
    public static final int FORMAT_VERSION = 6;

    static final String FILE = "manifest.json";

    private static final String AGAIN = "; copy or export the artifact again";

    /** The edge-gemma version that wrote it. */
    public final String generator;

    /** The oldest ONNX Runtime that can run it. */
    public final String minimumOnnxruntime;

    /** The checkpoint it was made from. */
    public final String sourceName;

    /** Of the checkpoint; may be null. */
    public final String sourceRevision;

    /** Name of the sub-model; may be null. */
    public final String submodel;

    /** Name of the quantization recipe. */
    public final String recipe;

    /** Parameter counts of the text model. */
    public final Map<String, Long> parameters;

    /** The narrowest first, the last is the whole model; empty: not elastic. */
    public final List<LevelSpec> levels;

    /** Ids of the vocabulary. */
    public final int vocabSize;

    /** Most tokens of a conversation. */
    public final int maxContext;

    /** Special ids. */
    public final TokenSpec tokens;

    /** The decoder as the recipe has it. */
    public final DecoderSpec decoder;

    /** The same with an int8 KV cache of the global layers; may be null. */
    public final DecoderSpec decoderInt8Kv;

    /** Null where there is no audio encoder. */
    public final AudioSpec audio;

    /** Null where there is no vision encoder. */
    public final VisionSpec vision;

    /** The embedding records. */
    public final EmbeddingSpec embeddings;

    /** The tokenizer's files. */
    public final TokenizerSpec tokenizer;

    /** The file with the chat template. */
    public final String chatTemplate;

    /** What the decoder needs in memory, in bytes. */
    public final Map<String, Long> memory;

    /** Context length to bytes of peak resident memory. */
    public final Map<String, Long> memoryEstimate;

    /** Bytes of every file of the artifact. */
    public final Map<String, Long> files;

    private Manifest(JsonObject json) throws JsonException {
        json.integer("format_version");
        generator = json.string("generator");
        minimumOnnxruntime = json.string("minimum_onnxruntime");
        JsonObject source = json.object("source");
        sourceName = source.string("name");
        sourceRevision = source.stringOrNull("revision");
        source.done();
        submodel = json.stringOrNull("submodel");
        recipe = json.string("recipe");
        json.object("recipe_details"); // for people; its keys are the recipe's own
        parameters = integers(json.object("parameters"), "text", "per_layer_embeddings", "effective");
        List<LevelSpec> list = new ArrayList<LevelSpec>();
        for (JsonObject level : json.objects("levels")) {
            list.add(new LevelSpec(level));
        }
        levels = Collections.unmodifiableList(list);
        vocabSize = json.count("vocab_size");
        maxContext = json.count("max_context");
        tokens = new TokenSpec(json.object("tokens"));
        decoder = new DecoderSpec(json.object("decoder"));
        JsonObject int8 = json.objectOrNull("decoder_int8_kv");
        decoderInt8Kv = int8 == null ? null : new DecoderSpec(int8);
        JsonObject hearing = json.objectOrNull("audio");
        audio = hearing == null ? null : new AudioSpec(hearing);
        JsonObject seeing = json.objectOrNull("vision");
        vision = seeing == null ? null : new VisionSpec(seeing);
        embeddings = new EmbeddingSpec(json.object("embeddings"));
        tokenizer = new TokenizerSpec(json.object("tokenizer"));
        chatTemplate = json.string("chat_template");
        memory = integers(
                json.object("memory"), "weights", "scales", "largest_matrix", "logits", "scratch_per_token",
                "scores_per_pair", "keys_per_token", "kv_per_token", "kv_per_window_row", "sliding_window",
                "tokenizer");
        JsonObject estimate = json.object("memory_estimate");
        memoryEstimate = integers(estimate, estimate.keys().toArray(new String[0]));
        Map<String, Long> sizes = new LinkedHashMap<String, Long>();
        JsonObject listed = json.object("files");
        for (String name : listed.keys()) {
            JsonObject file = listed.object(name);
            sizes.put(name, file.integer("bytes"));
            file.string("sha256");
            file.done();
        }
        files = Collections.unmodifiableMap(sizes);
        json.done();
    }

    /**
     * Reads the manifest of an artifact, and looks whether every file is there with its size.
     *
     * @throws ArtifactException if the folder is no artifact, its manifest is malformed or of another format,
     *     or a file is missing or has another size
     */
    public static Manifest read(File folder) throws ArtifactException {
        if (!folder.isDirectory()) {
            throw new ArtifactException(
                    folder + " is not a folder: expected an artifact made by `edge-gemma export`");
        }
        File file = new File(folder, FILE);
        if (!file.isFile()) {
            throw new ArtifactException(
                    folder + " has no " + FILE + ": expected an artifact made by `edge-gemma export`");
        }
        Manifest manifest;
        try {
            manifest = parse(file);
        } catch (IOException error) {
            throw new ArtifactException(file + " cannot be read: " + error.getMessage() + AGAIN, error);
        } catch (JsonException error) {
            throw new ArtifactException(file + ": " + error.getMessage() + AGAIN, error);
        }
        manifest.checkNames(file);
        manifest.checkSizes(folder);
        manifest.checkRecords(file);
        return manifest;
    }

    /** The decoder with this type of the global layers' KV cache; null: the recipe's own. */
    DecoderSpec decoder(String globalKv) throws PromptException {
        if (globalKv == null || globalKv.equals(decoder.globalKv().manifestName)) {
            return decoder;
        }
        if (decoderInt8Kv != null && globalKv.equals(decoderInt8Kv.globalKv().manifestName)) {
            return decoderInt8Kv;
        }
        String known = decoder.globalKv().manifestName
                + (decoderInt8Kv == null ? "" : " and " + decoderInt8Kv.globalKv().manifestName);
        throw new PromptException("globalKv is '" + globalKv + "': the artifact has " + known
                + ", choose of these or export it again with --global-kv");
    }

    /** The index of a level; null: the widest; -1 where the artifact is not elastic and none is asked for. */
    int level(String name) throws PromptException {
        if (name == null) {
            return levels.size() - 1;
        }
        StringBuilder known = new StringBuilder();
        for (int i = 0; i < levels.size(); i++) {
            if (levels.get(i).name.equals(name)) {
                return i;
            }
            known.append(i == 0 ? "" : ", ").append(levels.get(i).name);
        }
        throw new PromptException("there is no level '" + name + "': this artifact "
                + (levels.isEmpty() ? "is not elastic and has no levels" : "has the levels " + known));
    }

    private static Manifest parse(File file) throws IOException, JsonException, ArtifactException {
        Object value;
        try {
            value = Json.parse(text(file));
        } catch (JsonException error) {
            throw new JsonException("not valid JSON: " + error.getMessage());
        }
        Object version = value instanceof Map ? ((Map<?, ?>) value).get("format_version") : null;
        if (!(version instanceof Long)) {
            throw new ArtifactException(
                    file + " has no format_version: expected an artifact made by `edge-gemma export`");
        }
        if ((Long) version != FORMAT_VERSION) {
            throw new ArtifactException(file + " has format version " + version + ", this engine reads "
                    + FORMAT_VERSION + ": "
                    + ((Long) version > FORMAT_VERSION
                            ? "update the app"
                            : "export the artifact again with a newer edge-gemma"));
        }
        return new Manifest(new JsonObject(value, ""));
    }

    /** A whole text file, which is small. */
    static String text(File file) throws IOException {
        byte[] bytes = new byte[(int) Math.min(file.length(), 1 << 26)];
        FileInputStream in = new FileInputStream(file);
        try {
            int done = 0;
            for (int n = 0; n >= 0 && done < bytes.length; done += Math.max(n, 0)) {
                n = in.read(bytes, done, bytes.length - done);
            }
            return StandardCharsets.UTF_8.newDecoder().decode(ByteBuffer.wrap(bytes, 0, done)).toString();
        } catch (CharacterCodingException error) {
            throw new IOException("it is not UTF-8 text", error);
        } finally {
            in.close();
        }
    }

    private void checkNames(File file) throws ArtifactException {
        List<String> needed = new ArrayList<String>();
        Collections.addAll(needed, embeddings.file, chatTemplate, tokenizer.file, tokenizer.original);
        needed.addAll(decoder.files());
        if (decoderInt8Kv != null) {
            needed.addAll(decoderInt8Kv.files());
        }
        if (audio != null) {
            Collections.addAll(needed, audio.file, audio.data);
        }
        if (vision != null) {
            Collections.addAll(needed, vision.file, vision.data);
        }
        for (String name : needed) {
            if (!files.containsKey(name)) {
                throw new ArtifactException(file + " uses '" + name + "' and does not list it under files" + AGAIN);
            }
        }
        for (String name : files.keySet()) {
            if (name.isEmpty() || name.equals(".") || name.equals("..") || name.indexOf('/') >= 0
                    || name.indexOf('\\') >= 0) {
                throw new ArtifactException(
                        file + " names the file '" + name + "': expected a plain name inside the folder");
            }
        }
    }

    private void checkSizes(File folder) throws ArtifactException {
        for (Map.Entry<String, Long> entry : files.entrySet()) {
            File file = new File(folder, entry.getKey());
            if (!file.isFile()) {
                throw new ArtifactException(file + " is missing" + AGAIN.replace(';', ':'));
            }
            if (file.length() != entry.getValue()) {
                throw new ArtifactException(file + " has " + file.length() + " bytes, expected " + entry.getValue()
                        + AGAIN.replace(';', ':'));
            }
        }
    }

    private void checkRecords(File file) throws ArtifactException {
        if (embeddings.records != vocabSize
                || (long) embeddings.records * embeddings.recordBytes != files.get(embeddings.file)
                || !embeddings.fits()) {
            throw new ArtifactException(file + ": its embeddings cannot be right" + AGAIN);
        }
    }

    private static Map<String, Long> integers(JsonObject json, String... keys) throws JsonException {
        Map<String, Long> values = new LinkedHashMap<String, Long>();
        for (String key : keys) {
            values.put(key, json.integer(key));
        }
        json.done();
        return Collections.unmodifiableMap(values);
    }
}
