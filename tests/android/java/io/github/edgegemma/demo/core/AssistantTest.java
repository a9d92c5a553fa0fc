package io.github.edgegemma.demo.core;

import io.github.edgegemma.engine.Cancel;
import io.github.edgegemma.engine.EngineException;
import io.github.edgegemma.engine.Language;
import io.github.edgegemma.engine.Message;
import io.github.edgegemma.engine.PromptException;
import io.github.edgegemma.engine.TokenListener;
import java.util.List;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.function.BooleanSupplier;

final class AssistantTest {
    private AssistantTest() {}

    /** Says a word for each message, or until it is stopped. */
    private static class Parrot implements Model {
        int maxSamples = 16_000;
        boolean sees = true;
        boolean closed;
        int heard;
        boolean waits;
        EngineException refusal;
        OutOfMemoryError error;

        @Override
        public int maxSamples() {
            return maxSamples;
        }

        @Override
        public boolean sees() {
            return sees;
        }

        @Override
        public String chat(List<Message> messages, Cancel cancel, TokenListener listener) throws EngineException {
            if (error != null) {
                throw error;
            }
            if (refusal != null) {
                throw refusal;
            }
            StringBuilder text = new StringBuilder();
            for (int i = 0; waits ? !cancel.isCancelled() : i < messages.size(); i++) {
                String piece = i == 0 ? "one" : " more";
                listener.onText(piece);
                text.append(piece);
                pause();
            }
            return text.toString();
        }

        @Override
        public String transcribe(float[] samples, Cancel cancel, TokenListener listener) {
            heard = samples.length;
            return cancel.isCancelled() ? "" : "said";
        }

        @Override
        public String translate(float[] samples, Language target, Cancel cancel, TokenListener listener) {
            heard = samples.length;
            return cancel.isCancelled() ? "" : "in " + target.name;
        }

        @Override
        public String describe(Picture picture, String question, Cancel cancel, TokenListener listener) {
            return picture.width + "×" + picture.height + " " + question;
        }

        @Override
        public void close() {
            closed = true;
        }
    }

    /** Records tones without end, and says when it was closed. */
    private static final class Tone implements Microphone {
        volatile int blocks;
        boolean stopped;

        @Override
        public void start() {}

        @Override
        public int read(short[] block) {
            blocks++;
            pause();
            return block.length;
        }

        @Override
        public void stop() {
            stopped = true;
        }
    }

    private static void pause() {
        try {
            Thread.sleep(2);
        } catch (InterruptedException ended) {
            throw new IllegalStateException(ended);
        }
    }

    private static void await(BooleanSupplier condition) {
        for (long end = System.nanoTime() + 10_000_000_000L; !condition.getAsBoolean(); pause()) {
            if (System.nanoTime() > end) {
                throw new AssertionError("nothing happened for 10 s");
            }
        }
    }

    private static Assistant with(Model model) {
        return new Assistant(() -> model, Runnable::run);
    }

    private static String answer(Assistant assistant) {
        await(() -> !assistant.isWorking());
        List<Transcript.Turn> turns = assistant.transcript().turns();
        return turns.get(turns.size() - 1).answer();
    }

    static void aQuestionOpensTheModelAndIsAnswered() {
        Assistant assistant = with(new Parrot());
        Runner.equal(Assistant.State.CLOSED, assistant.state());
        assistant.ask("Well?");
        Runner.equal("one", answer(assistant));
        await(() -> assistant.state() == Assistant.State.READY);
        assistant.ask("And?"); // three messages by now
        Runner.equal("one more more", answer(assistant));
    }

    static void theScreenSeesAnAnswerGrow() {
        Parrot parrot = new Parrot();
        parrot.waits = true;
        Assistant assistant = with(parrot);
        AtomicInteger changes = new AtomicInteger();
        assistant.setScreen(changes::incrementAndGet);
        assistant.ask("Well?");
        await(() -> changes.get() > 10);
        Runner.equal(Assistant.State.ANSWERING, assistant.state());
        assistant.stop();
        Runner.equal(true, answer(assistant).startsWith("one more"));
    }

    static void aSecondQuestionWaitsForNothingAndIsDropped() {
        Parrot parrot = new Parrot();
        parrot.waits = true;
        Assistant assistant = with(parrot);
        assistant.ask("first");
        assistant.ask("second");
        await(() -> assistant.state() == Assistant.State.ANSWERING);
        assistant.forget();
        assistant.stop();
        answer(assistant);
        Runner.equal(1, assistant.transcript().turns().size());
        assistant.forget();
        Runner.equal(0, assistant.transcript().turns().size());
    }

    static void aRecordingEndsAtTheLimitAndIsTranscribed() {
        Parrot parrot = new Parrot();
        Tone tone = new Tone();
        Assistant assistant = with(parrot);
        assistant.listen(tone, "Speech", null);
        Runner.equal("said", answer(assistant));
        Runner.equal(16_000, parrot.heard);
        Runner.equal(true, tone.stopped);
    }

    static void stopEndsARecordingAndNotItsTranscription() throws Exception {
        Parrot parrot = new Parrot();
        parrot.maxSamples = 480_000;
        Tone tone = new Tone();
        Assistant assistant = with(parrot);
        assistant.listen(tone, "Speech", Language.of("es"));
        await(() -> tone.blocks >= 2);
        Runner.equal(Assistant.State.RECORDING, assistant.state());
        assistant.stop();
        Runner.equal("in Spanish", answer(assistant));
        Runner.equal(tone.blocks * 1600, parrot.heard);
    }

    static void leavingDropsARecordingAndClosesTheModel() {
        Parrot parrot = new Parrot();
        parrot.maxSamples = 480_000;
        Tone tone = new Tone();
        Assistant assistant = with(parrot);
        assistant.listen(tone, "Speech", null);
        await(() -> tone.blocks >= 2);
        assistant.release(true);
        await(() -> assistant.state() == Assistant.State.CLOSED);
        Runner.equal(true, tone.stopped);
        Runner.equal(true, parrot.closed);
        Runner.equal(0, parrot.heard);
        Runner.equal(0, assistant.transcript().turns().size());
    }

    static void aReleasedModelIsOpenedAgain() {
        AtomicInteger opened = new AtomicInteger();
        Assistant assistant = new Assistant(() -> {
            opened.incrementAndGet();
            return new Parrot();
        }, Runnable::run);
        assistant.ask("one");
        answer(assistant);
        assistant.release(false);
        await(() -> assistant.state() == Assistant.State.CLOSED);
        assistant.ask("two");
        answer(assistant);
        Runner.equal(2, opened.get());
        Runner.equal(2, assistant.transcript().turns().size());
    }

    static void aPictureIsDescribed() {
        Picture.Source source = () -> Picture.upright((y, argb) -> {}, 4, 2, 6);
        Assistant assistant = with(new Parrot());
        assistant.describe(source, "Photo", "");
        Runner.equal("2×4 null", answer(assistant));
        assistant.describe(source, "Photo", "What?");
        Runner.equal("2×4 What?", answer(assistant));
    }

    static void whatTheArtifactCannotDoIsSaid() {
        Parrot parrot = new Parrot();
        parrot.maxSamples = 0;
        parrot.sees = false;
        Assistant assistant = with(parrot);
        assistant.listen(new Tone(), "Speech", null);
        await(() -> !assistant.isWorking());
        Runner.equal(Failure.Kind.CANNOT_HEAR, assistant.failure().kind);
        assistant.describe(() -> null, "Photo", "");
        await(() -> !assistant.isWorking());
        Runner.equal(Failure.Kind.CANNOT_SEE, assistant.failure().kind);
        Runner.equal(0, assistant.transcript().turns().size());
    }

    static void aRefusedQuestionIsTakenBackAndTheNextOneWorks() {
        Parrot parrot = new Parrot();
        parrot.refusal = new PromptException("too long");
        Assistant assistant = with(parrot);
        assistant.ask("one");
        await(() -> !assistant.isWorking());
        Runner.equal("too long", assistant.failure().detail);
        Runner.equal(0, assistant.transcript().turns().size());
        parrot.refusal = null;
        assistant.ask("two");
        Runner.equal("one", answer(assistant));
        Runner.equal(null, assistant.failure());
    }

    static void withoutMemoryTheModelIsClosed() {
        Parrot parrot = new Parrot();
        parrot.error = new OutOfMemoryError("heap");
        Assistant assistant = with(parrot);
        assistant.ask("one");
        await(() -> !assistant.isWorking() && assistant.state() == Assistant.State.CLOSED);
        Runner.equal(Failure.Kind.TOO_LITTLE_MEMORY, assistant.failure().kind);
        Runner.equal(true, parrot.closed);
    }

    static void aModelThatDoesNotOpenIsSaid() {
        Assistant assistant = new Assistant(() -> {
            throw new DemoException(Failure.Kind.NO_RUNTIME);
        }, Runnable::run);
        assistant.open();
        await(() -> !assistant.isWorking());
        Runner.equal(Failure.Kind.NO_RUNTIME, assistant.failure().kind);
        Runner.equal(Assistant.State.CLOSED, assistant.state());
    }
}
