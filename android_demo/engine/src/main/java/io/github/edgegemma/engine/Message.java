package io.github.edgegemma.engine;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;

/** One turn of a conversation. */
public final class Message {
    /** Whose turn it is. */
    public enum Role {
        /** Instructions before the first user turn. */
        SYSTEM,
        /** The user. */
        USER,
        /** The model. */
        MODEL
    }

    /** Whose turn it is. */
    public final Role role;

    /** What is said and shown, in order. */
    public final List<Part> parts;

    /** A turn of several parts; media belong in the user's. */
    public Message(Role role, List<Part> parts) {
        this.role = role;
        this.parts = Collections.unmodifiableList(new ArrayList<Part>(parts));
    }

    /** A user turn of one text. */
    public static Message user(String text) {
        return new Message(Role.USER, Collections.singletonList(Part.text(text)));
    }

    /** A user turn of several parts. */
    public static Message user(Part... parts) {
        return new Message(Role.USER, Arrays.asList(parts));
    }

    /** A turn of the model, as it answered. */
    public static Message model(String text) {
        return new Message(Role.MODEL, Collections.singletonList(Part.text(text)));
    }

    /** Instructions; only as the first message. */
    public static Message system(String text) {
        return new Message(Role.SYSTEM, Collections.singletonList(Part.text(text)));
    }
}
