package io.github.edgegemma.engine;

import java.io.BufferedInputStream;
import java.io.File;
import java.io.FileInputStream;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.Reader;
import java.nio.charset.CodingErrorAction;
import java.nio.charset.StandardCharsets;
import java.util.HashMap;
import java.util.Map;

/**
 * Reads tokenizer.json, the `tokenizers` library's, value by value: Gemma's has 33 MB.
 *
 * <p>Only tokenizers of Gemma's kind are taken: byte-pair encoding with a token for each byte, where spaces
 * become "▁" or stay; as edge_gemma.export.tokenizer_tables takes them.
 */
final class TokenizerFile {
    static final String SPACE = "▁";

    final Vocabulary vocabulary = new Vocabulary();
    /** Whether spaces become "▁" before merging. */
    boolean spaces;

    Detokenizer detokenizer;

    private final Map<String, Integer> ids = new HashMap<String, Integer>(); // of the model's tokens

    private TokenizerFile() {}

    /**
     * Reads a file.
     *
     * @throws ArtifactException if it cannot be read, or is of another kind
     */
    static TokenizerFile read(File file) throws ArtifactException {
        TokenizerFile read = new TokenizerFile();
        String reason;
        try {
            Reader in = new InputStreamReader(
                    new BufferedInputStream(new FileInputStream(file), 1 << 16),
                    StandardCharsets.UTF_8.newDecoder().onMalformedInput(CodingErrorAction.REPORT));
            try {
                read.parse(new JsonReader(in));
                return read;
            } finally {
                in.close();
            }
        } catch (IOException error) {
            reason = "cannot be read (" + error + ")";
        } catch (JsonException error) {
            reason = "has " + error.getMessage();
        }
        throw new ArtifactException(
                file + " " + reason + "; expected the tokenizer of a Gemma: copy or export the artifact again");
    }

    private void parse(JsonReader json) throws IOException, JsonException {
        boolean modelled = false;
        Object normalizer = null;
        Object splitter = null;
        json.begin('{');
        while (json.more()) {
            String name = json.name();
            if (name.equals("model")) {
                readModel(json);
                modelled = true;
            } else if (name.equals("added_tokens")) {
                readAdded(json);
            } else if (name.equals("normalizer")) {
                normalizer = Json.value(json);
            } else if (name.equals("pre_tokenizer")) {
                splitter = Json.value(json);
            } else if (name.equals("decoder")) {
                detokenizer = Detokenizer.of(Json.value(json));
            } else {
                json.skip();
            }
        }
        json.end();
        if (!modelled) {
            throw new JsonException("no model");
        }
        if (detokenizer == null) {
            detokenizer = Detokenizer.of(null);
        }
        for (int i = 0; i < 256; i++) {
            Integer id = ids.get(String.format("<0x%02X>", i));
            if (id == null) {
                throw new JsonException(String.format("no token <0x%02X>", i));
            }
            vocabulary.byteIds[i] = id;
        }
        spaces = normalizer != null;
        if (spaces && !isSpaceReplacement(new JsonObject(normalizer, "normalizer"))) {
            throw new JsonException("a normalizer that does not turn a space into " + SPACE);
        }
        if (splitter != null && !(spaces && isSpaceSplit(new JsonObject(splitter, "pre_tokenizer")))) {
            throw new JsonException("a pre-tokenizer that splits");
        }
        ids.clear();
    }

    private void readModel(JsonReader json) throws IOException, JsonException {
        Object type = null;
        Object fallback = null;
        json.begin('{');
        while (json.more()) {
            String name = json.name();
            if (name.equals("vocab")) {
                readTokens(json);
            } else if (name.equals("merges")) {
                readMerges(json);
            } else if (name.equals("type")) {
                type = json.string();
            } else if (name.equals("byte_fallback")) {
                fallback = json.literal();
            } else if (name.equals("unk_token") || name.equals("fuse_unk")) {
                json.skip(); // with a token for each byte, none is unknown
            } else {
                Object value = Json.value(json); // what could change merging
                if (value != null && !Boolean.FALSE.equals(value) && !"".equals(value)
                        && !Long.valueOf(0).equals(value) && !Double.valueOf(0).equals(value)) {
                    throw new JsonException("a model with " + name);
                }
            }
        }
        if (!"BPE".equals(type) || !Boolean.TRUE.equals(fallback)) {
            throw new JsonException("a model that is not byte-pair encoding with byte fallback");
        }
    }

    private void readTokens(JsonReader json) throws IOException, JsonException {
        json.begin('{');
        while (json.more()) {
            String text = json.name();
            int id = id(json.number());
            if (text.isEmpty()) {
                throw new JsonException("a token without text");
            }
            vocabulary.addToken(id, text);
            ids.put(text, id);
        }
    }

    private void readMerges(JsonReader json) throws IOException, JsonException {
        json.begin('[');
        for (int rank = 0; json.more(); rank++) {
            String left;
            String right;
            if (json.peek() == '[') {
                json.begin('[');
                left = json.more() ? json.string() : "";
                right = json.more() ? json.string() : "";
                if (json.more()) {
                    throw json.fault("a merge of more than two tokens");
                }
            } else { // as older versions of the library write it
                String both = json.string();
                int space = both.indexOf(' ');
                left = both.substring(0, Math.max(space, 0));
                right = both.substring(space + 1);
            }
            vocabulary.addMerge(rank, known(json, left), known(json, right), known(json, left + right));
        }
    }

    private int known(JsonReader json, String text) throws JsonException {
        Integer id = ids.get(text);
        if (id == null) {
            throw json.fault("a merge with '" + text + "', which is no token,");
        }
        return id;
    }

    private void readAdded(JsonReader json) throws IOException, JsonException {
        json.begin('[');
        while (json.more()) {
            JsonObject token = new JsonObject(Json.value(json), "an added token");
            String text = token.string("content");
            for (String option : new String[] {"single_word", "lstrip", "rstrip"}) {
                if (token.bool(option)) {
                    throw json.fault("the added token '" + text + "' with " + option);
                }
            }
            if (text.isEmpty()) {
                throw json.fault("an added token without text");
            }
            vocabulary.addAdded(new Vocabulary.Added(
                    token.count("id"), text, token.bool("special"), token.bool("normalized")));
        }
    }

    private static int id(Number number) throws JsonException {
        if (!(number instanceof Long) || number.longValue() < 0 || number.longValue() > 1 << 24) {
            throw new JsonException("the id " + number);
        }
        return number.intValue();
    }

    private static boolean isSpaceReplacement(JsonObject state) throws JsonException {
        return state.string("type").equals("Replace")
                && isSpace(state.object("pattern"))
                && state.string("content").equals(SPACE);
    }

    /** It splits at spaces, of which none is left by then. */
    private static boolean isSpaceSplit(JsonObject state) throws JsonException {
        return state.string("type").equals("Split") && isSpace(state.object("pattern")) && !state.bool("invert");
    }

    private static boolean isSpace(JsonObject pattern) throws JsonException {
        return pattern.keys().contains("String") && pattern.string("String").equals(" ");
    }
}
