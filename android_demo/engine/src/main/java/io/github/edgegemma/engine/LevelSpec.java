package io.github.edgegemma.engine;

/** One of the nested sub-models of an elastic artifact. */
public final class LevelSpec {
    /** Its name. */
    public final String name;

    /** Layers that compute. */
    public final int layers;

    /** Parameters that compute. */
    public final long effectiveParameters;

    /** Bytes of the matrices that a token reads. */
    public final long weights;

    private final int[] widths;

    LevelSpec(JsonObject json) throws JsonException {
        name = json.string("name");
        layers = json.count("layers");
        widths = json.counts("widths");
        effectiveParameters = json.integer("effective_parameters");
        weights = json.integer("weights");
        json.done();
    }

    /** Feed-forward width by layer of the widest level; 0 where a layer is left out. */
    public int[] widths() {
        return widths.clone();
    }
}
