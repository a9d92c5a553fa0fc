package io.github.edgegemma.engine;

import java.io.File;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashSet;
import java.util.List;
import java.util.Set;

/**
 * Text to ids and back, exactly as the `tokenizers` library does it.
 *
 * <p>A text is cut at added tokens, its spaces become "▁", then it is merged. Decoding judges a whole run of
 * byte tokens at once: one bad byte turns every byte of the run into U+FFFD. {@link Stream} therefore waits
 * for the run to end.
 */
public final class Tokenizer {
    private final Vocabulary vocabulary;
    private final BytePairs pairs;
    private final Detokenizer detokenizer;
    private final boolean spaces;
    private final AddedTokens raw = new AddedTokens();
    private final AddedTokens normalized = new AddedTokens();
    private final AddedTokens control = new AddedTokens();
    private final Set<Integer> special = new HashSet<Integer>();

    /**
     * Reads a tokenizer.json.
     *
     * @throws ArtifactException if it cannot be read, or is not of Gemma's kind
     */
    public Tokenizer(File file) throws ArtifactException {
        TokenizerFile read = TokenizerFile.read(file);
        vocabulary = read.vocabulary;
        detokenizer = read.detokenizer;
        spaces = read.spaces;
        pairs = new BytePairs(vocabulary);
        for (Vocabulary.Added token : vocabulary.added) {
            (token.normalized ? normalized : raw).add(token.text, token.id);
            if (token.special) {
                special.add(token.id);
                control.add(token.text, token.id);
            }
        }
    }

    /** One more than the largest id. */
    public int ids() {
        return vocabulary.ids();
    }

    /** The number of tokens. */
    public int tokens() {
        return vocabulary.tokens();
    }

    /** The text of a token, exactly as the vocabulary holds it; null where there is none. */
    public String text(int id) {
        return vocabulary.text(id);
    }

    /** The control tokens, such as {@code <end_of_turn>}. */
    AddedTokens control() {
        return control;
    }

    /**
     * The ids of a text. Nothing is added, but control tokens written in the text are recognised.
     *
     * @throws PromptException if the text is not valid Unicode (it holds a lone surrogate)
     */
    public int[] encode(String text) throws PromptException {
        check(text);
        IntList ids = new IntList();
        for (int at = 0; at < text.length(); ) {
            int next = raw.next(text, at);
            if (next > at) {
                String plain = text.substring(at, next);
                encodePlain(spaces ? plain.replace(" ", TokenizerFile.SPACE) : plain, ids);
            }
            at = next;
            if (next < text.length()) {
                at += raw.lengthAt(text, next);
                ids.add(raw.id(text.substring(next, at)));
            }
        }
        return ids.toArray();
    }

    /** The text of ids, without control tokens; ids outside the vocabulary give nothing. */
    public String decode(int... ids) {
        List<String> texts = new ArrayList<String>();
        for (int id : ids) {
            if (!isSilent(id)) {
                texts.add(vocabulary.text(id));
            }
        }
        return detokenizer.text(texts);
    }

    /** A new stream, for the ids of one answer. */
    public Stream stream() {
        return new Stream();
    }

    private void encodePlain(String text, IntList ids) {
        for (int at = 0; at < text.length(); ) {
            int next = normalized.next(text, at);
            if (next > at) {
                ids.addAll(pairs.merge(text.substring(at, next)));
            }
            at = next;
            if (next < text.length()) {
                at += normalized.lengthAt(text, next);
                ids.add(normalized.id(text.substring(next, at)));
            }
        }
    }

    private static void check(String text) throws PromptException {
        for (int i = 0; i < text.length(); i++) {
            char c = text.charAt(i);
            boolean pair = Character.isHighSurrogate(c)
                    && i + 1 < text.length()
                    && Character.isLowSurrogate(text.charAt(i + 1));
            if (Character.isSurrogate(c) && !pair) {
                throw new PromptException(
                        "the text has a lone surrogate at character " + i + "; expected valid Unicode");
            }
            i += pair ? 1 : 0;
        }
    }

    private boolean isSilent(int id) {
        return special.contains(id) || vocabulary.text(id) == null;
    }

    /**
     * Turns ids into text as they come; the joined pieces are exactly {@link #decode} of all ids.
     *
     * <p>Bytes of a character that has no token of its own are held until another token ends the run. A
     * decoder may strip a space from the start of the text: so after the first token that has text of its own,
     * the anchor, each piece is decoded behind it, and its text is cut off.
     */
    public final class Stream {
        private int[] anchor = {};
        private int[] window = {}; // ids not yet turned into text; before an anchor, all ids
        private int done; // characters of decode(anchor + window) already given out

        private Stream() {}

        /** The text that this id completes; empty while bytes are held or for a control token. */
        public String push(int id) {
            if (isSilent(id)) {
                return "";
            }
            window = joined(window, id);
            if (Detokenizer.byteOf(vocabulary.text(id)) >= 0) {
                return "";
            }
            String text = decode(joined(anchor, window));
            String piece = text.substring(done);
            if (anchor.length == 0) {
                done = text.length();
                String alone = decode(id);
                if (!alone.isEmpty()) {
                    anchor = new int[] {id};
                    done = alone.length();
                }
            }
            if (anchor.length > 0) {
                window = new int[0];
            }
            return piece;
        }

        /** The text still held, at the end of the answer; the stream is then as new. */
        public String flush() {
            String text = decode(joined(anchor, window)).substring(done);
            anchor = new int[0];
            window = new int[0];
            done = 0;
            return text;
        }

        private int[] joined(int[] left, int... right) {
            int[] both = Arrays.copyOf(left, left.length + right.length);
            System.arraycopy(right, 0, both, left.length, right.length);
            return both;
        }
    }
}
