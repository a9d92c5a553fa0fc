package io.github.edgegemma.engine;

import java.util.ArrayList;
import java.util.List;
import java.util.TreeSet;

/**
 * From messages to the ids of Gemma's turns, as edge_gemma.runtime.chat makes them with Gemma's template.
 *
 * <p>The text of a message may hold that of a control token: "&lt;end_of_turn&gt;" in a user's text would end
 * the turn, and what follows could speak as the model. So the prompt is cut inside such texts: encoded part by
 * part they are ordinary text.
 */
final class Chat {
    static final String IMAGE = "<image_soft_token>";
    static final String AUDIO = "<audio_soft_token>";

    private final AddedTokens control;
    private final int longest;
    private final StringBuilder text = new StringBuilder();
    private final TreeSet<Integer> marks = new TreeSet<Integer>(); // places where a cut may be needed

    private Chat(AddedTokens control) {
        this.control = control;
        longest = control.longest();
    }

    /**
     * The prompt in parts, to be encoded one by one. Each image or clip is one token, IMAGE or AUDIO.
     *
     * @param control the control tokens
     * @throws PromptException if the messages are not user and model in turn, or one is empty
     */
    static List<String> render(List<Message> messages, AddedTokens control) throws PromptException {
        check(messages);
        Chat chat = new Chat(control);
        String prefix = null;
        chat.text.append("<bos>");
        for (Message message : messages) {
            if (message.role == Message.Role.SYSTEM) {
                prefix = message.parts.get(0).text + "\n\n";
                continue;
            }
            chat.text.append(message.role == Message.Role.USER ? "<start_of_turn>user\n" : "<start_of_turn>model\n");
            if (prefix != null) {
                chat.append(prefix);
                prefix = null;
            }
            for (Part part : message.parts) {
                if (part.kind == Part.Kind.TEXT) {
                    chat.append(Texts.strip(part.text));
                } else {
                    chat.text.append(part.kind == Part.Kind.IMAGE ? IMAGE : AUDIO);
                }
            }
            chat.text.append("<end_of_turn>\n");
        }
        chat.text.append("<start_of_turn>model\n");
        return chat.parts();
    }

    /** Appends text of a message, and marks what could be, begin or end a control token in it. */
    private void append(String piece) {
        int offset = text.length();
        for (int at = 0; at < piece.length(); at++) {
            if (control.lengthAt(piece, at) > 0) {
                marks.add(offset + at + 1);
            }
        }
        int end = Texts.stripEnd(piece);
        for (int n = 1; n <= Math.min(longest - 1, end); n++) {
            if (control.begins(piece.substring(end - n, end))) {
                marks.add(offset + end); // another text may complete it
            }
        }
        text.append(piece);
    }

    /** The text, cut at the marks that are inside a control token. */
    private List<String> parts() {
        String whole = text.toString();
        List<String> parts = new ArrayList<String>();
        int done = 0;
        for (int mark : marks) {
            if (isInside(whole, mark)) {
                parts.add(whole.substring(done, mark));
                done = mark;
            }
        }
        parts.add(whole.substring(done));
        return parts;
    }

    private boolean isInside(String whole, int mark) {
        for (int start = Math.max(0, mark - longest); start < mark; start++) {
            if (start + control.lengthAt(whole, start) > mark) {
                return true;
            }
        }
        return false;
    }

    private static void check(List<Message> messages) throws PromptException {
        if (messages.isEmpty()) {
            throw new PromptException("there are no messages; expected at least one of the user");
        }
        Message.Role turn = Message.Role.USER;
        for (int i = 0; i < messages.size(); i++) {
            Message message = messages.get(i);
            if (message.role != turn && !(message.role == Message.Role.SYSTEM && i == 0)) {
                throw new PromptException("message " + i + " is the " + name(message.role) + "'s; expected the "
                        + name(turn) + "'s: user and model alternate, and only the first may be the system's");
            }
            if (message.role != Message.Role.SYSTEM) {
                turn = message.role == Message.Role.USER ? Message.Role.MODEL : Message.Role.USER;
            }
            checkParts(message, i);
        }
        if (messages.get(messages.size() - 1).role == Message.Role.SYSTEM) {
            throw new PromptException("message 0, the system's, is the only one; expected one of the user after it");
        }
    }

    private static void checkParts(Message message, int index) throws PromptException {
        boolean empty = true;
        for (Part part : message.parts) {
            if (part.kind != Part.Kind.TEXT && message.role != Message.Role.USER) {
                throw new PromptException(
                        "message " + index + " has a clip or an image; expected them in user messages only");
            }
            if (part.kind == Part.Kind.TEXT && part.text == null) {
                throw new PromptException("message " + index + " has a text that is null; expected a text");
            }
            empty &= part.kind == Part.Kind.TEXT && Texts.strip(part.text).isEmpty();
        }
        if (message.role == Message.Role.SYSTEM && message.parts.size() != 1) {
            throw new PromptException("message " + index + ", the system's, has " + message.parts.size()
                    + " parts; expected one text");
        }
        if (message.role != Message.Role.MODEL && empty) {
            throw new PromptException("message " + index + " is empty; expected some text, a clip or an image");
        }
    }

    private static String name(Message.Role role) {
        return role == Message.Role.USER ? "user" : role == Message.Role.MODEL ? "model" : "system";
    }
}
