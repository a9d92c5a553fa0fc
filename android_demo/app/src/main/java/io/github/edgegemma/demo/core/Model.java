package io.github.edgegemma.demo.core;

import io.github.edgegemma.engine.Cancel;
import io.github.edgegemma.engine.EngineException;
import io.github.edgegemma.engine.Language;
import io.github.edgegemma.engine.Message;
import io.github.edgegemma.engine.TokenListener;
import java.util.List;

/** What the assistant asks; the engine in the app, something simpler in tests. */
public interface Model {
    /** Opens the model; this takes seconds. */
    interface Opener {
        /** A model that is ready to answer. */
        Model open() throws EngineException, DemoException;
    }

    /** Most samples of a clip, at 16 kHz; 0 where clips cannot be heard. */
    int maxSamples();

    /** Whether pictures can be seen. */
    boolean sees();

    /** The answer to a conversation whose last message is the user's. */
    String chat(List<Message> messages, Cancel cancel, TokenListener listener) throws EngineException;

    /** What is said in a clip. */
    String transcribe(float[] samples, Cancel cancel, TokenListener listener) throws EngineException;

    /** What is said in a clip, and the same in another language. */
    String translate(float[] samples, Language target, Cancel cancel, TokenListener listener)
            throws EngineException;

    /** The answer to a question about a picture; a null question asks what is to be seen. */
    String describe(Picture picture, String question, Cancel cancel, TokenListener listener)
            throws EngineException;

    /** Gives its memory back. */
    void close();
}
