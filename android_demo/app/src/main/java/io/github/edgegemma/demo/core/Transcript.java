package io.github.edgegemma.demo.core;

import io.github.edgegemma.engine.Message;
import java.util.ArrayList;
import java.util.List;

/** What was asked and answered. The screen reads it while the background thread writes. */
public final class Transcript {
    /** A question and its answer, which grows. Clips and pictures are questions of their own. */
    public static final class Turn {
        /** What the user wrote; of a clip or a picture, what it was. */
        public final String question;

        private final boolean chat;
        private final String answer;

        private Turn(String question, boolean chat, String answer) {
            this.question = question;
            this.chat = chat;
            this.answer = answer;
        }

        /** As far as it got. */
        public String answer() {
            return answer;
        }
    }

    private final List<Turn> turns = new ArrayList<Turn>();

    /** A question in words, which belongs to the conversation. */
    public synchronized void ask(String question) {
        turns.add(new Turn(question, true, ""));
    }

    /** A clip or a picture, which does not. */
    public synchronized void show(String what) {
        turns.add(new Turn(what, false, ""));
    }

    /** More of the last turn's answer. */
    public synchronized void append(String piece) {
        setAnswer(last().answer + piece);
    }

    /** The last turn's whole answer. */
    public synchronized void finish(String answer) {
        setAnswer(answer);
    }

    /** Takes the last turn back if nothing was answered: models do not know a question without an answer. */
    public synchronized void giveUp() {
        if (!turns.isEmpty() && last().answer.isEmpty()) {
            turns.remove(turns.size() - 1);
        }
    }

    /** Begins anew. */
    public synchronized void clear() {
        turns.clear();
    }

    /** All turns, a copy. */
    public synchronized List<Turn> turns() {
        return new ArrayList<Turn>(turns);
    }

    /** The conversation, up to the last question in words. */
    public synchronized List<Message> messages() {
        List<Message> messages = new ArrayList<Message>();
        for (Turn turn : turns) {
            if (turn.chat) {
                messages.add(Message.user(turn.question));
                if (!turn.answer.isEmpty()) {
                    messages.add(Message.model(turn.answer));
                }
            }
        }
        return messages;
    }

    private Turn last() {
        return turns.get(turns.size() - 1);
    }

    private void setAnswer(String answer) {
        Turn turn = last();
        turns.set(turns.size() - 1, new Turn(turn.question, turn.chat, answer));
    }
}
