package io.github.edgegemma.engine;

import io.github.edgegemma.desktop.NativeOnnxRuntime;
import java.io.BufferedReader;
import java.io.File;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.util.ArrayList;
import java.util.Base64;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * Answers test cases: a JSON object a line comes in, another goes out. It is in the engine's package so that
 * tests see its parts. tests/jvm/jvm.py holds the other end.
 */
public final class Cases {
    private final OnnxRuntime runtime;
    private File folder;
    private EngineSettings settings;
    private Engine engine;
    private Tokenizer tokenizer;

    private Cases(OnnxRuntime runtime) {
        this.runtime = runtime;
    }

    /** Arguments: the shim, and ONNX Runtime's shared library. */
    public static void main(String[] arguments) throws IOException, EngineException {
        Cases cases = new Cases(new NativeOnnxRuntime(new File(arguments[0]), new File(arguments[1])));
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        PrintStream out = new PrintStream(System.out, true, "US-ASCII");
        for (String line = in.readLine(); line != null; line = in.readLine()) {
            Map<String, Object> result = new LinkedHashMap<String, Object>();
            try {
                JsonObject asked = new JsonObject(Json.parse(line), "");
                cases.answer(asked.string("op"), asked, result);
            } catch (EngineException error) {
                result.put("error", error.getClass().getSimpleName());
                result.put("message", error.getMessage());
            } catch (Exception error) {
                error.printStackTrace();
                result.put("error", error.toString());
                result.put("message", "");
            }
            out.println(JsonWriter.write(result));
        }
    }

    private void answer(String op, JsonObject asked, Map<String, Object> result) throws Exception {
        if (op.equals("open")) {
            open(asked);
        } else if (op.equals("tokenizer")) {
            tokenizer = new Tokenizer(new File(asked.string("file")));
            result.put("ids", tokenizer.ids());
            result.put("tokens", tokenizer.tokens());
        } else if (op.equals("encode")) {
            result.put("ids", tokenizer.encode(asked.string("text")));
        } else if (op.equals("decode")) {
            decode(asked.counts("ids"), result);
        } else if (op.equals("json")) {
            result.put("value", Json.parse(asked.string("text")));
        } else if (op.equals("manifest")) {
            result.put("manifest", Fields.of(Manifest.read(new File(asked.string("artifact")))));
        } else if (op.equals("rows")) {
            rows(asked.counts("ids"), result);
        } else if (op.equals("candidates")) {
            candidates(asked, result);
        } else if (op.equals("stop")) {
            stop(asked, result);
        } else if (op.equals("prompt")) {
            result.put("ids", engine.encode(messages(asked)));
        } else if (op.equals("chat")) {
            chat(asked, result);
        } else if (op.equals("transcribe")) {
            Language language = language(asked.stringOrNull("language"));
            put(engine.transcribe(samples(asked), language, null), result);
        } else if (op.equals("translate")) {
            Language target = Language.of(asked.string("target"));
            Answer answer = engine.translate(samples(asked), target, language(asked.stringOrNull("language")), null);
            put(answer, result);
            Tasks.Translation read = Tasks.readTranslation(answer.text, target);
            result.put("transcription", read.transcription);
            result.put("translation", read.translation);
        } else if (op.equals("describe")) {
            Part image = image(asked);
            put(
                    engine.describe(
                            image.rgb,
                            image.width,
                            image.height,
                            asked.stringOrNull("question"),
                            GenerationSettings.greedy(),
                            null),
                    result);
        } else if (op.equals("language")) {
            result.put("name", Language.of(asked.string("name")).name);
            List<String> known = new ArrayList<String>();
            for (Language language : Language.known()) {
                known.add(language.name);
            }
            result.put("known", known);
        } else if (op.equals("reenter")) {
            reenter(messages(asked), result);
        } else if (op.equals("follow")) {
            follow(asked, result);
        } else {
            throw new IllegalArgumentException(op);
        }
    }

    private void open(JsonObject asked) throws EngineException, JsonException {
        if (engine != null) {
            engine.close();
            engine = null;
        }
        folder = new File(asked.string("artifact"));
        settings = EngineSettings.defaults().withThreads(1);
        if (asked.keys().contains("context")) {
            settings = settings.withContext((int) asked.integer("context"));
        }
        if (asked.keys().contains("chunk")) {
            settings = settings.withChunk((int) asked.integer("chunk"));
        }
        if (asked.keys().contains("global_kv")) {
            settings = settings.withGlobalKv(asked.string("global_kv"));
        }
        engine = Engine.open(folder, runtime, settings);
    }

    private void decode(int[] ids, Map<String, Object> result) {
        Tokenizer.Stream stream = tokenizer.stream();
        List<String> pieces = new ArrayList<String>();
        for (int id : ids) {
            pieces.add(stream.push(id));
        }
        pieces.add(stream.flush());
        result.put("text", tokenizer.decode(ids));
        result.put("pieces", pieces);
    }

    private void rows(int[] ids, Map<String, Object> result) throws EngineException {
        Manifest manifest = engine.manifest();
        EmbeddingSpec spec = manifest.embeddings;
        EmbeddingStore store = new EmbeddingStore(new File(folder, spec.file), spec);
        try {
            FloatBuffer embeds = FloatBuffer.allocate(ids.length * spec.hiddenSize);
            FloatBuffer perLayer = FloatBuffer.allocate(ids.length * spec.layers * spec.perLayerWidth);
            for (int id : ids) {
                store.read(id, embeds, perLayer);
            }
            result.put("embeds", base64(embeds.array()));
            result.put("per_layer", base64(perLayer.array()));
        } finally {
            store.close();
        }
    }

    private static String base64(float[] values) {
        ByteBuffer bytes = ByteBuffer.allocate(4 * values.length).order(ByteOrder.LITTLE_ENDIAN);
        bytes.asFloatBuffer().put(values);
        return Base64.getEncoder().encodeToString(bytes.array());
    }

    private static FloatBuffer floats(String base64) {
        ByteBuffer bytes = ByteBuffer.wrap(Base64.getDecoder().decode(base64)).order(ByteOrder.LITTLE_ENDIAN);
        float[] values = new float[bytes.remaining() / 4];
        bytes.asFloatBuffer().get(values);
        return FloatBuffer.wrap(values);
    }

    private void candidates(JsonObject asked, Map<String, Object> result) throws EngineException, JsonException {
        Sampler sampler = new Sampler(generation(asked));
        FloatBuffer logits = floats(asked.string("logits"));
        Sampler.Candidates found = sampler.candidates(logits);
        int[] drawn = new int[asked.count("draws")];
        for (int i = 0; i < drawn.length; i++) {
            drawn[i] = sampler.sample(logits);
        }
        result.put("ids", found.ids);
        result.put("probabilities", found.probabilities);
        result.put("drawn", drawn);
    }

    private static void stop(JsonObject asked, Map<String, Object> result) throws EngineException, JsonException {
        StopStrings stops = new StopStrings(asked.strings("stops"));
        List<String> pieces = new ArrayList<String>();
        for (String piece : asked.strings("pieces")) {
            pieces.add(stops.push(piece));
        }
        result.put("stopped", stops.stopped());
        pieces.add(stops.flush());
        result.put("pieces", pieces);
    }

    private void chat(JsonObject asked, Map<String, Object> result) throws Exception {
        final List<String> pieces = new ArrayList<String>();
        final int most = asked.keys().contains("listen") ? asked.count("listen") : Integer.MAX_VALUE;
        TokenListener listener = new TokenListener() {
            @Override
            public boolean onText(String piece) {
                pieces.add(piece);
                return pieces.size() < most;
            }
        };
        put(engine.chat(messages(asked), generation(asked), listener), result);
        result.put("pieces", pieces);
    }

    /** What happens to a listener that asks, or closes, while it hears; and to whoever asks after closing. */
    private void reenter(final List<Message> messages, final Map<String, Object> result) throws Exception {
        TokenListener listener = new TokenListener() {
            @Override
            public boolean onText(String piece) {
                try {
                    engine.chat(messages, GenerationSettings.greedy(), null);
                } catch (EngineException error) {
                    result.put("asked", error.getClass().getSimpleName() + ": " + error.getMessage());
                }
                try {
                    engine.close();
                } catch (IllegalStateException error) {
                    result.put("closed", error.getClass().getSimpleName() + ": " + error.getMessage());
                }
                return true;
            }
        };
        put(engine.chat(messages, GenerationSettings.greedy(), listener), result);
        engine.close();
        engine.close();
        try {
            engine.chat(messages, GenerationSettings.greedy(), null);
        } catch (EngineException error) {
            result.put("after", error.getClass().getSimpleName() + ": " + error.getMessage());
        }
        engine = null;
    }

    private static void put(Answer answer, Map<String, Object> result) {
        result.put("ids", answer.ids());
        result.put("text", answer.text);
        result.put("reason", answer.finishReason.name().toLowerCase());
        result.put("prompt_tokens", answer.promptTokens);
        result.put("reused_tokens", answer.reusedTokens);
    }

    /** The logits before each id of a given answer to a prompt: for comparison along a reference. */
    private void follow(JsonObject asked, Map<String, Object> result) throws Exception {
        Manifest manifest = engine.manifest();
        int context = engine.context();
        int chunk = Math.min(settings.chunk, context);
        DecoderSpec spec = manifest.decoder(settings.globalKv);
        SessionSettings sessions = new SessionSettings(settings.threads);
        KvBuffers cache = new KvBuffers(spec, context, chunk);
        EmbeddingStore store = new EmbeddingStore(new File(folder, manifest.embeddings.file), manifest.embeddings);
        Decoder decoder = new Decoder(folder, spec, manifest, cache, chunk, runtime, sessions);
        try {
            GenerationSettings made = generation(asked);
            if (made.level != null) {
                decoder.setLevel(manifest.level(made.level));
            }
            Generator generator = new Generator(decoder, store, cache, manifest.embeddings, chunk);
            Prompt prompt = Prompt.of(messages(asked), manifest, new Tokenizer(
                    new File(folder, manifest.tokenizer.original)));
            List<SoftTokens> soft = new Encoders(folder, manifest, runtime, sessions).encode(prompt.media);
            List<String> rows = new ArrayList<String>();
            FloatBuffer logits = generator.prefill(prompt.ids, prompt.keys, soft, null);
            for (int id : asked.counts("ids")) {
                float[] row = new float[manifest.vocabSize];
                logits.get(row);
                rows.add(base64(row));
                logits = generator.step(id);
            }
            result.put("logits", rows);
        } finally {
            decoder.close();
            store.close();
        }
    }

    private static GenerationSettings generation(JsonObject asked) throws JsonException {
        GenerationSettings made = GenerationSettings.greedy();
        if (!asked.keys().contains("settings")) {
            return made;
        }
        JsonObject given = asked.object("settings");
        for (String key : given.keys()) {
            if (key.equals("max_new_tokens")) {
                made = made.withMaxNewTokens((int) given.integer(key));
            } else if (key.equals("temperature")) {
                made = made.withTemperature(((Number) given.any(key)).doubleValue());
            } else if (key.equals("top_k")) {
                made = made.withTopK((int) given.integer(key));
            } else if (key.equals("top_p")) {
                made = made.withTopP(((Number) given.any(key)).doubleValue());
            } else if (key.equals("seed")) {
                made = made.withSeed(given.integer(key));
            } else if (key.equals("stop")) {
                made = made.withStop(given.strings(key));
            } else if (key.equals("level")) {
                made = made.withLevel(given.string(key));
            } else if (key.equals("cancelled") && given.bool(key)) {
                Cancel cancel = new Cancel();
                cancel.cancel();
                made = made.withCancel(cancel);
            }
        }
        given.done();
        return made;
    }

    private static List<Message> messages(JsonObject asked) throws JsonException, IOException {
        List<Message> messages = new ArrayList<Message>();
        for (JsonObject message : asked.objects("messages")) {
            List<Part> parts = new ArrayList<Part>();
            for (JsonObject part : message.objects("parts")) {
                if (part.keys().contains("text")) {
                    parts.add(Part.text(part.stringOrNull("text")));
                } else if (part.keys().contains("audio")) {
                    parts.add(Part.audio(samples(part)));
                } else {
                    parts.add(image(part));
                }
            }
            messages.add(new Message(Message.Role.valueOf(message.string("role").toUpperCase()), parts));
        }
        return messages;
    }

    private static Language language(String name) throws PromptException {
        return name == null ? null : Language.of(name);
    }

    /** The samples of a file of float32. */
    private static float[] samples(JsonObject asked) throws JsonException, IOException {
        ByteBuffer bytes = ByteBuffer.wrap(Files.readAllBytes(new File(asked.string("audio")).toPath()));
        float[] samples = new float[bytes.remaining() / 4];
        bytes.order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer().get(samples);
        return samples;
    }

    private static Part image(JsonObject asked) throws JsonException, IOException {
        byte[] rgb = Files.readAllBytes(new File(asked.string("image")).toPath());
        return Part.image(rgb, asked.count("width"), asked.count("height"));
    }
}
