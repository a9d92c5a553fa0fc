package io.github.edgegemma.demo.core;

import io.github.edgegemma.desktop.NativeOnnxRuntime;
import io.github.edgegemma.engine.Engine;
import io.github.edgegemma.engine.EngineSettings;
import io.github.edgegemma.engine.Language;
import java.io.File;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Files;

/** A user of the app, without a phone: asks, speaks and shows a picture, and prints what the screen would show. */
final class Session {
    private Session() {}

    /** Shim, library, artifact, a clip (16 bits, raw), a language, a picture (int32 ARGB, raw), its width. */
    public static void main(String[] arguments) throws Exception {
        NativeOnnxRuntime runtime = new NativeOnnxRuntime(new File(arguments[0]), new File(arguments[1]));
        File artifact = new File(arguments[2]);
        Assistant assistant = new Assistant(
                () -> new EngineModel(Engine.open(artifact, runtime, EngineSettings.defaults())), Runnable::run);
        assistant.ask("What is 17 + 25?");
        print(assistant);
        assistant.listen(new Player(arguments[3], assistant), "Speech", null);
        print(assistant);
        assistant.listen(new Player(arguments[3], assistant), "Speech", Language.of(arguments[4]));
        print(assistant);
        int[] pixels = ints(arguments[5]);
        int width = Integer.parseInt(arguments[6]);
        Picture.Rows rows = (y, argb) -> System.arraycopy(pixels, y * width, argb, 0, width);
        assistant.describe(() -> Picture.upright(rows, width, pixels.length / width, 1), "Photo", "");
        print(assistant);
        System.exit(0);
    }

    private static void print(Assistant assistant) throws InterruptedException {
        while (assistant.isWorking()) {
            Thread.sleep(2);
        }
        if (assistant.failure() != null) {
            System.out.println(assistant.failure().kind + ": " + assistant.failure().detail);
        } else {
            int last = assistant.transcript().turns().size() - 1;
            System.out.println(assistant.transcript().turns().get(last).answer().replace("\n", " | "));
        }
    }

    private static int[] ints(String file) throws IOException {
        ByteBuffer bytes = ByteBuffer.wrap(Files.readAllBytes(new File(file).toPath()));
        int[] all = new int[bytes.remaining() / 4];
        bytes.order(ByteOrder.LITTLE_ENDIAN).asIntBuffer().get(all);
        return all;
    }

    /** Plays a recording into the app; its user presses "Done" at the end. */
    private static final class Player implements Microphone {
        private final ByteBuffer sound;
        private final Assistant assistant;

        Player(String file, Assistant assistant) throws IOException {
            this.sound = ByteBuffer.wrap(Files.readAllBytes(new File(file).toPath())).order(ByteOrder.LITTLE_ENDIAN);
            this.assistant = assistant;
        }

        @Override
        public void start() {}

        @Override
        public int read(short[] block) {
            int count = Math.min(block.length, sound.remaining() / 2);
            for (int i = 0; i < count; i++) {
                block[i] = sound.getShort();
            }
            if (sound.remaining() == 0) {
                assistant.stop();
            }
            return count;
        }

        @Override
        public void stop() {}
    }
}
