package io.github.edgegemma.engine;

import java.io.ByteArrayOutputStream;
import java.nio.ByteBuffer;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;

/** From the texts of tokens to the text that they make: the `decoder` of a tokenizer.json. */
final class Detokenizer {
    private enum Kind {
        REPLACE,
        BYTES,
        JOIN,
        STRIP
    }

    private static final class Step {
        final Kind kind;
        final String pattern;
        final String content;
        /** What a pattern becomes in the first text. */
        final String first;
        final int count;

        Step(Kind kind, String pattern, String content, String first, int count) {
            this.kind = kind;
            this.pattern = pattern;
            this.content = content;
            this.first = first;
            this.count = count;
        }
    }

    private final List<Step> steps = new ArrayList<Step>();

    private Detokenizer() {}

    /** From a decoder's state; null joins the texts with spaces. */
    static Detokenizer of(Object state) throws JsonException {
        Detokenizer made = new Detokenizer();
        if (state == null) {
            made.steps.add(new Step(Kind.JOIN, "", " ", "", 0));
            return made;
        }
        JsonObject decoder = new JsonObject(state, "decoder");
        List<JsonObject> parts = Collections.singletonList(decoder);
        if (decoder.string("type").equals("Sequence")) {
            parts = decoder.objects("decoders");
        }
        boolean joined = false;
        for (JsonObject part : parts) {
            Step step = step(part, joined);
            joined |= step.kind == Kind.JOIN;
            made.steps.add(step);
        }
        return made;
    }

    private static Step step(JsonObject part, boolean joined) throws JsonException {
        String type = part.string("type");
        if (type.equals("Fuse")) {
            return new Step(Kind.JOIN, "", "", "", 0);
        }
        if (type.equals("Strip") && part.count("stop") == 0) {
            return new Step(Kind.STRIP, "", part.string("content"), "", part.count("start"));
        }
        if (type.equals("ByteFallback") && !joined) {
            return new Step(Kind.BYTES, "", "", "", 0);
        }
        if (type.equals("Metaspace") && !joined) {
            String first = part.string("prepend_scheme").equals("never") ? " " : "";
            return new Step(Kind.REPLACE, part.string("replacement"), " ", first, 0);
        }
        if (type.equals("Replace") && !joined) {
            JsonObject pattern = part.object("pattern");
            String text = pattern.keys().contains("String") ? pattern.string("String") : "";
            if (!text.isEmpty()) {
                String content = part.string("content");
                return new Step(Kind.REPLACE, text, content, content, 0);
            }
        }
        throw new JsonException("the decoder step " + type + (joined ? " behind Fuse" : ""));
    }

    /** The text that tokens of these texts make. */
    String text(List<String> tokens) {
        List<String> texts = tokens;
        for (Step step : steps) {
            List<String> next = new ArrayList<String>();
            switch (step.kind) {
                case JOIN:
                    StringBuilder joined = new StringBuilder();
                    for (int i = 0; i < texts.size(); i++) {
                        joined.append(i == 0 ? "" : step.content).append(texts.get(i));
                    }
                    next.add(joined.toString());
                    break;
                case BYTES:
                    next = joinBytes(texts);
                    break;
                case STRIP:
                    for (String text : texts) {
                        next.add(strip(text, step));
                    }
                    break;
                default:
                    for (String text : texts) {
                        next.add(text.replace(step.pattern, next.isEmpty() ? step.first : step.content));
                    }
            }
            texts = next;
        }
        StringBuilder text = new StringBuilder();
        for (String part : texts) {
            text.append(part);
        }
        return text.toString();
    }

    /** The byte that a text such as "<0xE2>" stands for; -1 where it stands for itself. */
    static int byteOf(String text) {
        if (text == null || text.length() != 6 || !text.startsWith("<0x") || text.charAt(5) != '>') {
            return -1;
        }
        int low = hex(text.charAt(4));
        int high = text.charAt(3) == '+' ? 0 : hex(text.charAt(3)); // the library takes a sign for a digit, too
        return low < 0 || high < 0 ? -1 : high << 4 | low;
    }

    private static int hex(char c) {
        return c < 128 ? Character.digit(c, 16) : -1;
    }

    private static String strip(String text, Step step) {
        int start = 0;
        while (start < text.length() && start < step.count && step.content.indexOf(text.charAt(start)) >= 0) {
            start++;
        }
        return text.substring(start);
    }

    /** A run of bytes becomes what it is in UTF-8, or U+FFFD for each byte. */
    private static List<String> joinBytes(List<String> texts) {
        List<String> joined = new ArrayList<String>();
        ByteArrayOutputStream held = new ByteArrayOutputStream();
        for (String text : texts) {
            int value = byteOf(text);
            if (value >= 0) {
                held.write(value);
            } else {
                release(held, joined);
                joined.add(text);
            }
        }
        release(held, joined);
        return joined;
    }

    private static void release(ByteArrayOutputStream held, List<String> joined) {
        if (held.size() == 0) {
            return;
        }
        try {
            joined.add(StandardCharsets.UTF_8
                    .newDecoder()
                    .decode(ByteBuffer.wrap(held.toByteArray()))
                    .toString());
        } catch (CharacterCodingException error) {
            for (int i = 0; i < held.size(); i++) {
                joined.add("\ufffd");
            }
        }
        held.reset();
    }
}
