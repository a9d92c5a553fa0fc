package io.github.edgegemma.engine;

import java.util.ArrayList;
import java.util.Collections;
import java.util.List;

/** A spoken language, by its English name. The list is that of runtime/tasks.py. */
public final class Language {
    private static final String[] CODES = {
        "ar", "bn", "cs", "da", "de", "el", "en", "es", "fa", "fi", "fr", "he", "hi", "hu", "id", "it", "ja",
        "ko", "nl", "no", "pl", "pt", "ro", "ru", "sv", "sw", "ta", "te", "th", "tr", "uk", "ur", "vi", "zh",
    };
    private static final String[] NAMES = {
        "Arabic", "Bengali", "Czech", "Danish", "German", "Greek", "English", "Spanish", "Persian", "Finnish",
        "French", "Hebrew", "Hindi", "Hungarian", "Indonesian", "Italian", "Japanese", "Korean", "Dutch",
        "Norwegian", "Polish", "Portuguese", "Romanian", "Russian", "Swedish", "Swahili", "Tamil", "Telugu",
        "Thai", "Turkish", "Ukrainian", "Urdu", "Vietnamese", "Chinese",
    };

    /** Its English name, such as "Spanish". */
    public final String name;

    private Language(String name) {
        this.name = name;
    }

    /**
     * A language by its ISO 639-1 code, behind which a region may stand, or its English name.
     *
     * @throws PromptException if the code is not known; a name is taken as it is
     */
    public static Language of(String codeOrName) throws PromptException {
        String text = Texts.strip(codeOrName);
        String code = text.split("[-_]", 2)[0];
        for (int i = 0; i < CODES.length; i++) {
            if (CODES[i].equalsIgnoreCase(code)) {
                return new Language(NAMES[i]);
            }
        }
        if (code.length() <= 3 && !text.matches("\\p{Lu}\\p{Ll}{2}")) { // Lao is a name
            throw new PromptException("'" + codeOrName + "' is not a known language code: give the language's"
                    + " English name, such as Spanish");
        }
        for (int i = 0; i < text.length(); i++) {
            char c = text.charAt(i);
            if (!Character.isLetter(c) && c != ' ' && c != '-') {
                throw new PromptException(
                        "'" + codeOrName + "' is not a language: give its English name, such as Spanish");
            }
        }
        return new Language(Character.toUpperCase(text.charAt(0)) + text.substring(1));
    }

    /** Those with a code, for a choice to be shown. */
    public static List<Language> known() {
        List<Language> all = new ArrayList<Language>();
        for (String name : NAMES) {
            all.add(new Language(name));
        }
        return Collections.unmodifiableList(all);
    }

    @Override
    public String toString() {
        return name;
    }
}
