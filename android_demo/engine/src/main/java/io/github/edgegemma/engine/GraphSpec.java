package io.github.edgegemma.engine;

import java.util.List;

/** One of the graphs of a decoder. */
public final class GraphSpec {
    /** The graph. */
    public final String file;

    /** Everything it takes. */
    public final List<TensorSpec> inputs;

    /** Everything it gives. */
    public final List<TensorSpec> outputs;

    GraphSpec(JsonObject json) throws JsonException {
        file = json.string("file");
        inputs = TensorSpec.list(json.objects("inputs"));
        outputs = TensorSpec.list(json.objects("outputs"));
        json.done();
    }
}
