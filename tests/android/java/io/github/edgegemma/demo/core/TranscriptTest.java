package io.github.edgegemma.demo.core;

import io.github.edgegemma.engine.Message;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;

final class TranscriptTest {
    private TranscriptTest() {}

    private static List<Message.Role> roles(Transcript transcript) {
        List<Message.Role> roles = new ArrayList<>();
        for (Message message : transcript.messages()) {
            roles.add(message.role);
        }
        return roles;
    }

    static void piecesBecomeTheAnswer() {
        Transcript transcript = new Transcript();
        transcript.ask("Why?");
        transcript.append("Be");
        transcript.append("cause");
        Runner.equal("Because", transcript.turns().get(0).answer());
        transcript.finish("Because.");
        Runner.equal("Because.", transcript.turns().get(0).answer());
        Runner.equal("Why?", transcript.turns().get(0).question);
    }

    static void theConversationHasTurnsInWordsOnly() {
        Transcript transcript = new Transcript();
        transcript.ask("one");
        transcript.finish("1");
        transcript.show("Photo");
        transcript.finish("a cat");
        transcript.ask("two");
        Runner.equal(
                Arrays.asList(Message.Role.USER, Message.Role.MODEL, Message.Role.USER), roles(transcript));
    }

    static void aQuestionWithoutAnAnswerIsTakenBack() {
        Transcript transcript = new Transcript();
        transcript.giveUp();
        transcript.ask("one");
        transcript.finish("1");
        transcript.ask("two");
        transcript.giveUp();
        Runner.equal(1, transcript.turns().size());
        transcript.giveUp();
        Runner.equal(1, transcript.turns().size());
    }

    static void whatTheScreenHasDoesNotChangeUnderIt() {
        Transcript transcript = new Transcript();
        transcript.ask("one");
        List<Transcript.Turn> shown = transcript.turns();
        transcript.append("1");
        transcript.clear();
        Runner.equal("", shown.get(0).answer());
        Runner.equal(0, transcript.turns().size());
    }
}
