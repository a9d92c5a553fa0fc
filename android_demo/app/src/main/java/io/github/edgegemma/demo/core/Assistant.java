package io.github.edgegemma.demo.core;

import io.github.edgegemma.engine.Cancel;
import io.github.edgegemma.engine.EngineException;
import io.github.edgegemma.engine.Language;
import io.github.edgegemma.engine.TokenListener;
import java.util.concurrent.Executor;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.atomic.AtomicBoolean;

/**
 * The demo's work, on one background thread: it opens the model, records, asks and writes the transcript.
 *
 * <p>It outlives screens. All methods are called on the screen's thread, and return at once.
 */
public final class Assistant {
    /** What is going on. */
    public enum State {
        /** Nothing; the model is not in memory. The next question opens it. */
        CLOSED,
        /** The model is being loaded. */
        OPENING,
        /** Nothing; the model is in memory. */
        READY,
        /** The microphone records until {@link #stop()}. */
        RECORDING,
        /** An answer is made until it is whole, or {@link #stop()}. */
        ANSWERING
    }

    /** Shows the assistant. */
    public interface Screen {
        /** State, failure or transcript are not what they were. */
        void changed();
    }

    /** A piece of work that writes the answer of the transcript's last turn. */
    private interface Work {
        String answer(Model model, Cancel cancel) throws EngineException, DemoException;
    }

    private final Transcript transcript = new Transcript();
    private final ExecutorService background = Executors.newSingleThreadExecutor();
    private final Model.Opener opener;
    private final Executor screenThread;
    private final AtomicBoolean announced = new AtomicBoolean();

    private Screen screen; // of the screen's thread
    private Model model; // of the background thread
    private volatile State state = State.CLOSED;
    private volatile boolean working;
    private volatile boolean leaving;
    private volatile Failure failure;
    private volatile Cancel cancel = new Cancel();

    /** An assistant that tells a screen of its changes on {@code screenThread}. */
    public Assistant(Model.Opener opener, Executor screenThread) {
        this.opener = opener;
        this.screenThread = screenThread;
    }

    /** The screen that is told of changes; null while there is none. */
    public void setScreen(Screen shown) {
        screen = shown;
    }

    /** What is going on. */
    public State state() {
        return state;
    }

    /** Whether there is something to stop or to wait for. */
    public boolean isWorking() {
        return working;
    }

    /** Why the last piece of work failed; null where it did not. */
    public Failure failure() {
        return failure;
    }

    /** What was asked and answered. */
    public Transcript transcript() {
        return transcript;
    }

    /** Loads the model, if it is not there. */
    public void open() {
        start(new Runnable() {
            @Override
            public void run() {
                attempt(null);
            }
        });
    }

    /** Asks a question in words, in the conversation so far. */
    public void ask(final String question) {
        start(new Runnable() {
            @Override
            public void run() {
                transcript.ask(question);
                attempt(new Work() {
                    @Override
                    public String answer(Model model, Cancel cancel) throws EngineException {
                        return model.chat(transcript.messages(), cancel, writing());
                    }
                });
            }
        });
    }

    /** Records, then writes what was said; in {@code target}, too, where it is not null. */
    public void listen(final Microphone microphone, final String label, final Language target) {
        start(new Runnable() {
            @Override
            public void run() {
                transcript.show(label);
                attempt(new Work() {
                    @Override
                    public String answer(Model model, Cancel cancel) throws EngineException, DemoException {
                        float[] samples = record(microphone, model.maxSamples(), cancel);
                        Cancel again = begin(State.ANSWERING);
                        return target == null
                                ? model.transcribe(samples, again, writing())
                                : model.translate(samples, target, again, writing());
                    }
                });
            }
        });
    }

    /** Answers a question about a picture; an empty one asks what is to be seen. */
    public void describe(final Picture.Source source, final String label, final String question) {
        start(new Runnable() {
            @Override
            public void run() {
                transcript.show(label);
                attempt(new Work() {
                    @Override
                    public String answer(Model model, Cancel cancel) throws EngineException, DemoException {
                        if (!model.sees()) {
                            throw new DemoException(Failure.Kind.CANNOT_SEE);
                        }
                        return model.describe(
                                source.read(), question.isEmpty() ? null : question, cancel, writing());
                    }
                });
            }
        });
    }

    /** Ends the recording, or the answer. */
    public void stop() {
        cancel.cancel();
    }

    /** Forgets the conversation. */
    public void forget() {
        if (!working) {
            transcript.clear();
            fail(null);
        }
    }

    /** Shows a failure from outside; null shows none. */
    public void fail(Failure shown) {
        failure = shown;
        announce();
    }

    /** Gives the model's memory back, after what is going on; with {@code now} that is stopped. */
    public void release(boolean now) {
        if (now) {
            leaving = true;
            stop();
        }
        background.execute(new Runnable() {
            @Override
            public void run() {
                leaving = false;
                close();
                announce();
            }
        });
    }

    /** Begins a piece of work, unless there is one. */
    private void start(Runnable work) {
        if (!working) {
            working = true;
            failure = null;
            cancel = new Cancel();
            background.execute(work);
        }
    }

    private void attempt(Work work) {
        try {
            if (model == null) {
                show(State.OPENING);
                model = opener.open();
            }
            if (work != null) {
                show(State.ANSWERING);
                transcript.finish(work.answer(model, cancel));
            }
        } catch (EngineException | DemoException | RuntimeException | LinkageError thrown) {
            failure = Failure.of(thrown);
        } catch (OutOfMemoryError thrown) {
            failure = Failure.of(thrown);
            close();
        } finally {
            transcript.giveUp();
            working = false;
            show(model == null ? State.CLOSED : State.READY);
        }
    }

    private float[] record(Microphone microphone, int maxSamples, Cancel cancel) throws DemoException {
        if (maxSamples == 0) {
            throw new DemoException(Failure.Kind.CANNOT_HEAR);
        }
        Clip clip = new Clip(maxSamples);
        short[] block = new short[Microphone.RATE / 10];
        show(State.RECORDING);
        try {
            microphone.start();
            while (!cancel.isCancelled() && !clip.isFull()) {
                clip.append(block, microphone.read(block));
            }
        } finally {
            microphone.stop();
        }
        if (clip.length() == 0 || leaving) {
            throw new DemoException(Failure.Kind.NOTHING_RECORDED);
        }
        return clip.samples();
    }

    /** The next part of the work: what stopped the one before does not stop it. */
    private Cancel begin(State next) {
        cancel = new Cancel();
        if (leaving) { // since the part before ended
            cancel.cancel();
        }
        show(next);
        return cancel;
    }

    private TokenListener writing() {
        return new TokenListener() {
            @Override
            public boolean onText(String piece) {
                transcript.append(piece);
                announce();
                return true;
            }
        };
    }

    private void close() {
        if (model != null) {
            model.close();
            model = null;
        }
        if (!working) {
            state = State.CLOSED;
        }
    }

    private void show(State next) {
        state = next;
        announce();
    }

    /** Tells the screen, once for all changes until it looks. */
    private void announce() {
        if (announced.compareAndSet(false, true)) {
            screenThread.execute(new Runnable() {
                @Override
                public void run() {
                    announced.set(false);
                    if (screen != null) {
                        screen.changed();
                    }
                }
            });
        }
    }
}
