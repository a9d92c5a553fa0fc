package io.github.edgegemma.engine;

/** What to ask about clips and images, and how answers are read; the wording is that of runtime/tasks.py. */
public final class Tasks {
    /** The question about an image where the user has none. */
    public static final String DESCRIBE = "Describe this image.";

    private static final String ORIGINAL = "its original language";

    private Tasks() {}

    /** What is asked beside a clip for its transcription; null leaves the language to the model. */
    public static String transcription(Language language) {
        String where = language == null
                ? "in " + ORIGINAL
                : "in " + language.name + " into " + language.name + " text";
        return "Transcribe the following speech segment " + where
                + ". Only output the transcription, with no newlines.";
    }

    /** What is asked beside a clip for its translation; {@link #readTranslation} reads the answer. */
    public static String translation(Language target, Language source) {
        String spoken = source == null ? ORIGINAL : source.name;
        return "Transcribe the following speech segment in " + spoken + ", then translate it into " + target.name
                + ". When formatting the answer, first output the transcription in " + spoken
                + ", then one newline, then output the string '" + target.name + ": ', then the translation in "
                + target.name + ".";
    }

    /** Transcription and translation from an answer. Without the marker all of it is translation. */
    public static Translation readTranslation(String answer, Language target) {
        String marker = target.name + ":";
        int at = answer.indexOf(marker);
        if (at < 0) {
            return new Translation("", Texts.strip(answer));
        }
        return new Translation(
                Texts.strip(answer.substring(0, at)), Texts.strip(answer.substring(at + marker.length())));
    }

    /** What was said, in two languages. */
    public static final class Translation {
        /** In the language spoken; empty where the model did not give it. */
        public final String transcription;

        /** In the language asked for. */
        public final String translation;

        Translation(String transcription, String translation) {
            this.transcription = transcription;
            this.translation = translation;
        }
    }
}
