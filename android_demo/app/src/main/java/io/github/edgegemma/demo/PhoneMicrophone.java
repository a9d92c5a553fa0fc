package io.github.edgegemma.demo;

import android.media.AudioFormat;
import android.media.AudioRecord;
import android.media.MediaRecorder;
import io.github.edgegemma.demo.core.DemoException;
import io.github.edgegemma.demo.core.Failure;
import io.github.edgegemma.demo.core.Microphone;

/** The phone's microphone, as speech recognizers hear it: without the gain control of calls. */
final class PhoneMicrophone implements Microphone {
    private AudioRecord recorder;

    @Override
    public void start() throws DemoException {
        int least = AudioRecord.getMinBufferSize(RATE, AudioFormat.CHANNEL_IN_MONO, AudioFormat.ENCODING_PCM_16BIT);
        if (least <= 0) {
            throw new DemoException(Failure.Kind.MICROPHONE_BROKEN, "16 kHz is not supported");
        }
        // A second, in bytes: reading may be late while memory is scarce.
        int size = Math.max(least, 2 * RATE);
        recorder = new AudioRecord(
                MediaRecorder.AudioSource.VOICE_RECOGNITION,
                RATE,
                AudioFormat.CHANNEL_IN_MONO,
                AudioFormat.ENCODING_PCM_16BIT,
                size);
        if (recorder.getState() != AudioRecord.STATE_INITIALIZED) {
            throw new DemoException(Failure.Kind.MICROPHONE_BROKEN, "it cannot be opened");
        }
        recorder.startRecording();
        if (recorder.getRecordingState() != AudioRecord.RECORDSTATE_RECORDING) {
            throw new DemoException(Failure.Kind.MICROPHONE_BROKEN, "another app uses it");
        }
    }

    @Override
    public int read(short[] block) throws DemoException {
        int count = recorder.read(block, 0, block.length);
        if (count < 0) {
            throw new DemoException(Failure.Kind.MICROPHONE_BROKEN, "error " + count);
        }
        return count;
    }

    @Override
    public void stop() {
        if (recorder != null) {
            recorder.release();
            recorder = null;
        }
    }
}
