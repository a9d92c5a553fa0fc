package io.github.edgegemma.engine;

/** The text of one answer on its way to the listener. */
final class Reply {
    private final Tokenizer.Stream stream;
    private final StopStrings stops;
    private final TokenListener listener;
    private final StringBuilder text = new StringBuilder();

    Reply(Tokenizer.Stream stream, StopStrings stops, TokenListener listener) {
        this.stream = stream;
        this.stops = stops;
        this.listener = listener;
    }

    /** Takes the next id; false if the listener wants no more. */
    boolean push(int id) {
        return show(stops.push(stream.push(id)));
    }

    /** Shows what was held back. */
    void flush() {
        show(stops.push(stream.flush()) + stops.flush());
    }

    /** Whether a stop string was met. */
    boolean stopped() {
        return stops.stopped();
    }

    /** All that was shown. */
    String text() {
        return text.toString();
    }

    private boolean show(String piece) {
        text.append(piece);
        return piece.isEmpty() || listener == null || listener.onText(piece);
    }
}
