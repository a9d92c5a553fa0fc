package io.github.edgegemma.engine;

import java.util.ArrayList;
import java.util.List;

/** Ids, and the clips and images that have some of their places. */
final class Prompt {
    final int[] ids;

    /** What is at each place: an id, or a soft token's key. */
    final long[] keys;

    final List<Media> media;

    private Prompt(int[] ids, List<Media> media) {
        this.ids = ids;
        this.media = media;
        keys = new long[ids.length];
        for (int i = 0; i < ids.length; i++) {
            keys[i] = ids[i];
        }
        for (Media item : media) {
            for (int i = 0; i < item.tokens; i++) {
                keys[item.start + i] = item.key(i);
            }
        }
    }

    /**
     * Renders, encodes, and finds the places of media. An image or a clip is a blank line, a marker, its
     * places, a marker and a blank line; the places that a clip leaves hold an ordinary id.
     */
    static Prompt of(List<Message> messages, Manifest manifest, Tokenizer tokenizer) throws EngineException {
        List<Media> media = new ArrayList<Media>();
        List<String> parts = Chat.render(messages, tokenizer.control());
        for (Message message : messages) {
            for (Part part : message.parts) {
                if (part.kind != Part.Kind.TEXT) {
                    media.add(Media.of(part, manifest));
                }
            }
        }
        String image = manifest.vision == null
                ? null
                : places(manifest.tokens, tokenizer, "boi", "image", "eoi", manifest.vision.softTokens);
        String clip = manifest.audio == null
                ? null
                : places(manifest.tokens, tokenizer, "boa", "audio", "eoa", manifest.audio.softTokens);
        IntList list = new IntList();
        for (String part : parts) {
            String whole = image == null ? part : part.replace(Chat.IMAGE, image);
            list.addAll(tokenizer.encode(clip == null ? whole : whole.replace(Chat.AUDIO, clip)));
        }
        int[] ids = list.toArray();
        int at = 0;
        for (Media item : media) {
            boolean seen = item.kind == Part.Kind.IMAGE;
            int soft = manifest.tokens.media.get(seen ? "image" : "audio");
            while (at < ids.length && ids[at] != soft) {
                at++;
            }
            if (at == ids.length) {
                throw new ArtifactException("the tokenizer does not know " + Chat.IMAGE + " or " + Chat.AUDIO
                        + " as the manifest's tokens.media: export the artifact again");
            }
            item.start = at;
            at += seen ? manifest.vision.softTokens : manifest.audio.softTokens;
            for (int i = item.end(); i < at; i++) {
                ids[i] = manifest.audio.fillToken;
            }
        }
        return new Prompt(ids, media);
    }

    private static String places(
            TokenSpec tokens, Tokenizer tokenizer, String begin, String soft, String end, int count)
            throws ArtifactException {
        StringBuilder text = new StringBuilder("\n\n").append(text(tokens, tokenizer, begin));
        for (int i = 0; i < count; i++) {
            text.append(text(tokens, tokenizer, soft));
        }
        return text.append(text(tokens, tokenizer, end)).append("\n\n").toString();
    }

    private static String text(TokenSpec tokens, Tokenizer tokenizer, String name) throws ArtifactException {
        Integer id = tokens.media.get(name);
        String text = id == null ? null : tokenizer.text(id);
        if (text == null) {
            throw new ArtifactException("the manifest's tokens.media." + name + " is " + id
                    + ", which is no token of the tokenizer: export the artifact again");
        }
        return text;
    }
}
