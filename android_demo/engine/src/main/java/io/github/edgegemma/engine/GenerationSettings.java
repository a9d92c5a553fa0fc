package io.github.edgegemma.engine;

import java.util.ArrayList;
import java.util.Collections;
import java.util.List;

/** How an answer is made. Immutable: each {@code with…} gives a changed copy. */
public final class GenerationSettings {
    /** Most tokens of the answer; 0: what the context has room for. */
    public final int maxNewTokens;

    /** Divides the logits; 0 takes the most likely token. */
    public final double temperature;

    /** Keep the k most likely tokens and all that tie with the k-th; 0 keeps all. */
    public final int topK;

    /** Keep the smallest set of most likely tokens whose probability reaches this; 1 keeps all. */
    public final double topP;

    /** The same seed gives the same answer; null draws a fresh one. */
    public final Long seed;

    /** Strings that end the answer; they are not part of it. */
    public final List<String> stop;

    /** The level of an elastic artifact that answers; null: the widest. */
    public final String level;

    /** Ends the answer when it is set; may be null. */
    public final Cancel cancel;

    private GenerationSettings(Builder from) {
        maxNewTokens = from.maxNewTokens;
        temperature = from.temperature;
        topK = from.topK;
        topP = from.topP;
        seed = from.seed;
        stop = from.stop;
        level = from.level;
        cancel = from.cancel;
    }

    /** What Gemma 3n recommends: temperature 1, the 64 most likely tokens, 0.95 of the probability. */
    public static GenerationSettings defaults() {
        return new GenerationSettings(new Builder());
    }

    /** Always the most likely token. */
    public static GenerationSettings greedy() {
        return defaults().withTemperature(0);
    }

    /** With another {@link #maxNewTokens}. */
    public GenerationSettings withMaxNewTokens(int tokens) {
        Builder changed = new Builder(this);
        changed.maxNewTokens = tokens;
        return new GenerationSettings(changed);
    }

    /** With another {@link #temperature}. */
    public GenerationSettings withTemperature(double value) {
        Builder changed = new Builder(this);
        changed.temperature = value;
        return new GenerationSettings(changed);
    }

    /** With another {@link #topK}. */
    public GenerationSettings withTopK(int count) {
        Builder changed = new Builder(this);
        changed.topK = count;
        return new GenerationSettings(changed);
    }

    /** With another {@link #topP}. */
    public GenerationSettings withTopP(double value) {
        Builder changed = new Builder(this);
        changed.topP = value;
        return new GenerationSettings(changed);
    }

    /** With a {@link #seed}. */
    public GenerationSettings withSeed(long value) {
        Builder changed = new Builder(this);
        changed.seed = value;
        return new GenerationSettings(changed);
    }

    /** With other {@link #stop} strings. */
    public GenerationSettings withStop(List<String> strings) {
        Builder changed = new Builder(this);
        changed.stop = Collections.unmodifiableList(new ArrayList<String>(strings));
        return new GenerationSettings(changed);
    }

    /** With another {@link #level}. */
    public GenerationSettings withLevel(String name) {
        Builder changed = new Builder(this);
        changed.level = name;
        return new GenerationSettings(changed);
    }

    /** With a {@link #cancel} flag. */
    public GenerationSettings withCancel(Cancel flag) {
        Builder changed = new Builder(this);
        changed.cancel = flag;
        return new GenerationSettings(changed);
    }

    /** The fields before they are final. */
    private static final class Builder {
        private int maxNewTokens = 0;
        private double temperature = 1.0;
        private int topK = 64;
        private double topP = 0.95;
        private Long seed = null;
        private List<String> stop = Collections.emptyList();
        private String level = null;
        private Cancel cancel = null;

        Builder() {}

        Builder(GenerationSettings from) {
            maxNewTokens = from.maxNewTokens;
            temperature = from.temperature;
            topK = from.topK;
            topP = from.topP;
            seed = from.seed;
            stop = from.stop;
            level = from.level;
            cancel = from.cancel;
        }
    }
}
