package io.github.edgegemma.engine;

import java.util.LinkedHashMap;
import java.util.Map;

/** The tokenizer's files. This engine reads {@code original}; the tables of {@code file} are Python's. */
public final class TokenizerSpec {
    private static final String[] TABLES = {
        "byte_ids", "characters", "character_ids", "merge_starts", "merge_rights", "merges", "piece_starts",
        "pieces", "added", "added_flags",
    };

    /** tokenizer.bin. */
    public final String file;

    /** tokenizer.json. */
    public final String original;

    /** One more than the largest id. */
    public final int ids;

    /** How many ids have a token. */
    public final int tokens;

    /** Entries of each table of tokenizer.bin. */
    public final Map<String, Integer> tables;

    TokenizerSpec(JsonObject json) throws JsonException {
        file = json.string("file");
        original = json.string("original");
        ids = json.count("ids");
        tokens = json.count("tokens");
        json.bool("spaces");
        json.bool("words");
        for (JsonObject step : json.objects("decoder")) {
            step.string("kind");
            step.string("pattern");
            step.string("content");
            step.string("first");
            step.count("count");
            step.done();
        }
        tables = new LinkedHashMap<String, Integer>();
        for (String name : TABLES) {
            JsonObject table = json.object(name);
            table.count("offset");
            tables.put(name, table.count("count"));
            table.string("dtype");
            table.done();
        }
        json.done();
    }
}
