package io.github.edgegemma.engine;

/** A whole answer. */
public final class Answer {
    /** Why an answer ended. */
    public enum FinishReason {
        /** The model ended it, or a stop string did. */
        STOP,
        /** It has as many tokens as were asked for, or as the context has room for. */
        LENGTH,
        /** The listener or the flag ended it. */
        CANCELLED
    }

    /** The text, without control tokens. */
    public final String text;

    /** Why it ended. */
    public final FinishReason finishReason;

    /** Tokens of the prompt. */
    public final int promptTokens;

    /** Of those, the ones that were there from the conversation before. */
    public final int reusedTokens;

    /** Seconds from asking to the first token: encoding of media and reading of the prompt. */
    public final double secondsToFirstToken;

    /** Seconds from the first token to the last. */
    public final double decodeSeconds;

    private final int[] ids;

    Answer(
            String text,
            FinishReason finishReason,
            int[] ids,
            int promptTokens,
            int reusedTokens,
            double secondsToFirstToken,
            double decodeSeconds) {
        this.text = text;
        this.finishReason = finishReason;
        this.ids = ids;
        this.promptTokens = promptTokens;
        this.reusedTokens = reusedTokens;
        this.secondsToFirstToken = secondsToFirstToken;
        this.decodeSeconds = decodeSeconds;
    }

    /** The ids of the answer, that of the token that ended it included. */
    public int[] ids() {
        return ids.clone();
    }

    /** Tokens a second after the first one; 0 where there is no second. */
    public double tokensPerSecond() {
        return ids.length > 1 && decodeSeconds > 0 ? (ids.length - 1) / decodeSeconds : 0;
    }
}
