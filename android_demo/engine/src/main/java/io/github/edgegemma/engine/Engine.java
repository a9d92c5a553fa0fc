package io.github.edgegemma.engine;

import java.io.Closeable;
import java.io.File;
import java.io.IOException;
import java.nio.FloatBuffer;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.concurrent.locks.ReentrantLock;

/**
 * A loaded artifact, and the story of an answer: messages, prompt, soft tokens, ids, text.
 *
 * <p>It answers one prompt at a time, on the calling thread. A prompt that continues the conversation before
 * it costs only its new tokens.
 */
public final class Engine implements Closeable {
    private static final int DEFAULT_CONTEXT = 4096;

    private final Manifest manifest;
    private final Tokenizer tokenizer;
    private final Encoders encoders;
    private final EmbeddingStore store;
    private final Decoder decoder;
    private final Generator generator;
    private final int context;
    private final ReentrantLock busy = new ReentrantLock();
    private boolean closed;

    private Engine(
            Manifest manifest,
            Tokenizer tokenizer,
            Encoders encoders,
            EmbeddingStore store,
            Decoder decoder,
            Generator generator,
            int context) {
        this.manifest = manifest;
        this.tokenizer = tokenizer;
        this.encoders = encoders;
        this.store = store;
        this.decoder = decoder;
        this.generator = generator;
        this.context = context;
    }

    /**
     * Opens an artifact and makes it ready to answer.
     *
     * @param artifact a folder made by {@code edge-gemma export}
     * @throws ArtifactException if it is missing, damaged, or needs a newer ONNX Runtime
     * @throws PromptException if a setting is out of range
     */
    public static Engine open(File artifact, OnnxRuntime runtime, EngineSettings settings)
            throws EngineException {
        Manifest manifest = Manifest.read(artifact);
        checkVersion(manifest.minimumOnnxruntime, runtime.version());
        checkTemplate(new File(artifact, manifest.chatTemplate));
        int context = settings.context > 0 ? settings.context : Math.min(DEFAULT_CONTEXT, manifest.maxContext);
        if (settings.context < 0 || context > manifest.maxContext) {
            throw new PromptException("context is " + settings.context + "; expected at most the "
                    + manifest.maxContext + " tokens of this model");
        }
        if (settings.chunk < 1 || settings.threads < 0) {
            throw new PromptException("chunk is " + settings.chunk + " and threads " + settings.threads
                    + "; expected at least 1 and 0");
        }
        int chunk = Math.min(settings.chunk, context);
        DecoderSpec spec = manifest.decoder(settings.globalKv);
        Tokenizer tokenizer = new Tokenizer(new File(artifact, manifest.tokenizer.original));
        if (tokenizer.ids() != manifest.tokenizer.ids || tokenizer.tokens() != manifest.tokenizer.tokens) {
            throw new ArtifactException(manifest.tokenizer.original + " has " + tokenizer.tokens()
                    + " tokens, expected " + manifest.tokenizer.tokens + ": copy or export the artifact again");
        }
        SessionSettings sessions = new SessionSettings(settings.threads);
        EmbeddingStore store =
                new EmbeddingStore(new File(artifact, manifest.embeddings.file), manifest.embeddings);
        try {
            KvBuffers cache = new KvBuffers(spec, context, chunk);
            Decoder decoder = new Decoder(artifact, spec, manifest, cache, chunk, runtime, sessions);
            return new Engine(
                    manifest,
                    tokenizer,
                    new Encoders(artifact, manifest, runtime, sessions),
                    store,
                    decoder,
                    new Generator(decoder, store, cache, manifest.embeddings, chunk),
                    context);
        } catch (EngineException error) {
            store.close();
            throw error;
        }
    }

    /** What the artifact says of itself. */
    public Manifest manifest() {
        return manifest;
    }

    /** Most tokens of prompt and answer together. */
    public int context() {
        return context;
    }

    /** Whether clips can be heard. */
    public boolean hears() {
        return manifest.audio != null;
    }

    /** Whether images can be seen. */
    public boolean sees() {
        return manifest.vision != null;
    }

    /** Most samples of a clip, at 16 kHz; 0 where clips cannot be heard. */
    public int maxSamples() {
        return hears() ? manifest.audio.maxSamples : 0;
    }

    /** Names of the levels of an elastic artifact, the narrowest first; empty where it is not. */
    public List<String> levels() {
        List<String> names = new ArrayList<String>();
        for (LevelSpec level : manifest.levels) {
            names.add(level.name);
        }
        return Collections.unmodifiableList(names);
    }

    /** The ids of a prompt, media included. */
    int[] encode(List<Message> messages) throws EngineException {
        return Prompt.of(messages, manifest, tokenizer).ids;
    }

    /**
     * Answers messages: user and model in turn, the last of them the user's.
     *
     * @param listener hears the text while it is made; may be null
     * @throws PromptException if the messages or a setting cannot be used, or leave no room for an answer
     */
    public Answer chat(List<Message> messages, GenerationSettings settings, TokenListener listener)
            throws EngineException {
        if (busy.isHeldByCurrentThread() || !busy.tryLock()) {
            throw new EngineException("the engine is answering another prompt: finish or cancel that one first");
        }
        try {
            if (closed) {
                throw new EngineException("this engine is closed: open the artifact again");
            }
            return answer(messages, settings, listener);
        } finally {
            busy.unlock();
        }
    }

    /**
     * Writes down what is said in a clip.
     *
     * @param samples16k mono in [-1, 1] at 16 kHz, at most {@link #maxSamples()}
     * @param language the language spoken; null lets the model find out
     */
    public Answer transcribe(float[] samples16k, Language language, TokenListener listener)
            throws EngineException {
        return transcribe(samples16k, language, GenerationSettings.greedy(), listener);
    }

    /** As above, with settings. */
    public Answer transcribe(
            float[] samples16k, Language language, GenerationSettings settings, TokenListener listener)
            throws EngineException {
        return ask(Part.audio(samples16k), Tasks.transcription(language), settings, listener);
    }

    /**
     * Writes down in {@code target} what is said in a clip. The text has the transcription, too:
     * {@link Tasks#readTranslation} tells them apart.
     *
     * @param source the language spoken; null lets the model find out
     */
    public Answer translate(float[] samples16k, Language target, Language source, TokenListener listener)
            throws EngineException {
        return translate(samples16k, target, source, GenerationSettings.greedy(), listener);
    }

    /** As above, with settings. */
    public Answer translate(
            float[] samples16k,
            Language target,
            Language source,
            GenerationSettings settings,
            TokenListener listener)
            throws EngineException {
        return ask(Part.audio(samples16k), Tasks.translation(target, source), settings, listener);
    }

    /**
     * Answers a question about an image.
     *
     * @param rgb rows from the top, three bytes for each pixel
     * @param question null: {@link Tasks#DESCRIBE}
     */
    public Answer describe(byte[] rgb, int width, int height, String question, TokenListener listener)
            throws EngineException {
        return describe(rgb, width, height, question, GenerationSettings.defaults(), listener);
    }

    /** As above, with settings. */
    public Answer describe(
            byte[] rgb,
            int width,
            int height,
            String question,
            GenerationSettings settings,
            TokenListener listener)
            throws EngineException {
        return ask(Part.image(rgb, width, height), question == null ? Tasks.DESCRIBE : question, settings, listener);
    }

    /**
     * Gives memory and files back; the engine cannot be used afterwards. It waits for an answer that is being
     * made on another thread: cancel that first. A second call does nothing.
     */
    @Override
    public void close() {
        if (busy.isHeldByCurrentThread()) {
            throw new IllegalStateException("a listener closes the engine: let it end the answer first");
        }
        busy.lock();
        try {
            if (!closed) {
                closed = true;
                decoder.close();
                store.close();
            }
        } finally {
            busy.unlock();
        }
    }

    private Answer ask(Part medium, String question, GenerationSettings settings, TokenListener listener)
            throws EngineException {
        Message message = Message.user(medium, Part.text(question));
        return chat(Collections.singletonList(message), settings, listener);
    }

    private Answer answer(List<Message> messages, GenerationSettings settings, TokenListener listener)
            throws EngineException {
        final long began = System.nanoTime();
        Sampler sampler = new Sampler(settings);
        Reply reply = new Reply(tokenizer.stream(), new StopStrings(settings.stop), listener);
        Prompt prompt = Prompt.of(messages, manifest, tokenizer);
        int limit = limit(prompt.ids.length, settings.maxNewTokens);
        int level = manifest.level(settings.level);
        if (level >= 0) {
            decoder.setLevel(level);
        }
        int reused = generator.reusable(prompt.keys);
        IntList ids = new IntList();
        FloatBuffer logits = generator.prefill(prompt.ids, prompt.keys, soft(prompt, reused), settings.cancel);
        Answer.FinishReason reason = Answer.FinishReason.CANCELLED;
        long first = System.nanoTime();
        while (logits != null) {
            int id = sampler.sample(logits);
            ids.add(id);
            first = ids.size() == 1 ? System.nanoTime() : first;
            if (manifest.tokens.ends(id)) {
                reason = Answer.FinishReason.STOP;
                break;
            }
            boolean wanted = reply.push(id);
            if (reply.stopped()) {
                reason = Answer.FinishReason.STOP;
                break;
            }
            if (!wanted || settings.cancel != null && settings.cancel.isCancelled()) {
                break;
            }
            if (ids.size() == limit) {
                reason = Answer.FinishReason.LENGTH;
                break;
            }
            logits = generator.step(id);
        }
        long last = System.nanoTime();
        reply.flush();
        return new Answer(
                reply.text(),
                reply.stopped() ? Answer.FinishReason.STOP : reason,
                ids.toArray(),
                prompt.ids.length,
                reused,
                (first - began) / 1e9,
                (last - first) / 1e9);
    }

    /** Most tokens of an answer to a prompt of so many. */
    private int limit(int length, int asked) throws PromptException {
        if (asked < 0) {
            throw new PromptException("maxNewTokens is " + asked + "; expected at least 1, or 0 for no limit");
        }
        int room = context - length;
        if (room < 1) {
            throw new PromptException("the prompt has " + length + " tokens and the context " + context
                    + ": shorten the prompt, or open with a larger context (this model takes up to "
                    + manifest.maxContext + ")");
        }
        return asked == 0 ? room : Math.min(room, asked);
    }

    /** Encodes the images and clips that the KV buffers do not hold. */
    private List<SoftTokens> soft(Prompt prompt, int reused) throws OnnxException {
        List<Media> missing = new ArrayList<Media>();
        for (Media item : prompt.media) {
            if (item.end() > reused) {
                missing.add(item);
            }
        }
        return encoders.encode(missing);
    }

    private static void checkVersion(String minimum, String found) throws ArtifactException {
        try {
            String[] wanted = minimum.split("\\.");
            String[] there = found.split("\\.");
            int major = Integer.compare(Integer.parseInt(there[0]), Integer.parseInt(wanted[0]));
            if (major > 0 || major == 0 && Integer.parseInt(there[1]) >= Integer.parseInt(wanted[1])) {
                return;
            }
        } catch (NumberFormatException | ArrayIndexOutOfBoundsException error) {
            throw new ArtifactException("the versions of ONNX Runtime are " + found + " and, in the manifest, "
                    + minimum + "; expected numbers such as 1.32: export the artifact again");
        }
        throw new ArtifactException("ONNX Runtime " + found + " is too old for this artifact, which needs " + minimum
                + ": update the app");
    }

    /** The turns that Chat writes are Gemma's: another template would be another model's. */
    private static void checkTemplate(File file) throws ArtifactException {
        try {
            String template = Manifest.text(file);
            if (template.contains("<start_of_turn>") && template.contains("<end_of_turn>")) {
                return;
            }
        } catch (IOException error) {
            throw new ArtifactException(
                    file + " cannot be read: " + error.getMessage() + "; copy or export the artifact again", error);
        }
        throw new ArtifactException(file + " does not write Gemma's turns: export an instruction-tuned Gemma 3n");
    }
}
