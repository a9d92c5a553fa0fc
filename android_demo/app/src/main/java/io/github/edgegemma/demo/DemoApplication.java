package io.github.edgegemma.demo;

import android.app.Application;
import android.os.Handler;
import android.os.Looper;
import io.github.edgegemma.demo.core.Assistant;
import java.util.concurrent.Executor;

/** Holds the assistant, which is to outlive an activity that is turned round. */
public final class DemoApplication extends Application {
    private Assistant assistant;

    @Override
    public void onCreate() {
        super.onCreate();
        final Handler main = new Handler(Looper.getMainLooper());
        assistant = new Assistant(new PhoneOpener(this), new Executor() {
            @Override
            public void execute(Runnable command) {
                main.post(command);
            }
        });
    }

    /** The one assistant. */
    public Assistant assistant() {
        return assistant;
    }

    /** A model is the largest thing on most phones: better to load it again than to be ended. */
    @Override
    public void onTrimMemory(int level) {
        super.onTrimMemory(level);
        if (level >= TRIM_MEMORY_BACKGROUND) {
            assistant.release(true);
        } else if (level == TRIM_MEMORY_RUNNING_CRITICAL) {
            assistant.release(false);
        }
    }
}
