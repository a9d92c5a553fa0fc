package io.github.edgegemma.demo.core;

import io.github.edgegemma.engine.Cancel;
import io.github.edgegemma.engine.Engine;
import io.github.edgegemma.engine.EngineException;
import io.github.edgegemma.engine.GenerationSettings;
import io.github.edgegemma.engine.Language;
import io.github.edgegemma.engine.Message;
import io.github.edgegemma.engine.Tasks;
import io.github.edgegemma.engine.TokenListener;
import java.util.List;

/** The engine, asked as the demo asks: talk with some chance in it, speech to the letter. */
public final class EngineModel implements Model {
    private final Engine engine;

    /** Takes the engine over; {@link #close()} closes it. */
    public EngineModel(Engine engine) {
        this.engine = engine;
    }

    @Override
    public int maxSamples() {
        return engine.hears() ? engine.maxSamples() : 0;
    }

    @Override
    public boolean sees() {
        return engine.sees();
    }

    @Override
    public String chat(List<Message> messages, Cancel cancel, TokenListener listener) throws EngineException {
        return engine.chat(messages, talking(cancel), listener).text;
    }

    @Override
    public String transcribe(float[] samples, Cancel cancel, TokenListener listener) throws EngineException {
        return engine.transcribe(samples, null, listening(cancel), listener).text;
    }

    @Override
    public String translate(float[] samples, Language target, Cancel cancel, TokenListener listener)
            throws EngineException {
        String text = engine.translate(samples, target, null, listening(cancel), listener).text;
        Tasks.Translation read = Tasks.readTranslation(text, target);
        return read.transcription.isEmpty() ? read.translation : read.transcription + "\n" + read.translation;
    }

    @Override
    public String describe(Picture picture, String question, Cancel cancel, TokenListener listener)
            throws EngineException {
        return engine.describe(picture.rgb, picture.width, picture.height, question, talking(cancel), listener).text;
    }

    @Override
    public void close() {
        engine.close();
    }

    private static GenerationSettings talking(Cancel cancel) {
        return GenerationSettings.defaults().withCancel(cancel);
    }

    private static GenerationSettings listening(Cancel cancel) {
        return GenerationSettings.greedy().withCancel(cancel);
    }
}
