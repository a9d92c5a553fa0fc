package io.github.edgegemma.demo;

import android.app.ActivityManager;
import android.content.Context;
import io.github.edgegemma.demo.core.ArtifactFolder;
import io.github.edgegemma.demo.core.DemoException;
import io.github.edgegemma.demo.core.EngineModel;
import io.github.edgegemma.demo.core.Failure;
import io.github.edgegemma.demo.core.Model;
import io.github.edgegemma.engine.Engine;
import io.github.edgegemma.engine.EngineException;
import io.github.edgegemma.engine.EngineSettings;
import java.io.File;

/** Opens the artifact in the app's files folder. */
final class PhoneOpener implements Model.Opener {
    private final Context context;

    PhoneOpener(Context context) {
        this.context = context;
    }

    /** Where the artifact belongs; null while the storage is not there. */
    static File artifact(Context context) {
        File files = context.getExternalFilesDir(null);
        return files == null ? null : new File(files, "artifact");
    }

    /** Whether this app has ONNX Runtime in it. */
    static boolean hasRuntime() {
        try {
            Class.forName("ai.onnxruntime.OrtEnvironment", false, PhoneOpener.class.getClassLoader());
            return true;
        } catch (ClassNotFoundException missing) {
            return false;
        }
    }

    @Override
    public Model open() throws EngineException, DemoException {
        if (!hasRuntime()) {
            throw new DemoException(Failure.Kind.NO_RUNTIME);
        }
        File folder = artifact(context);
        if (folder == null) {
            throw new DemoException(Failure.Kind.NO_ARTIFACT, context.getString(R.string.no_storage));
        }
        ArtifactFolder artifact = new ArtifactFolder(folder);
        artifact.requireManifest();
        artifact.requireMemory(freeMemory());
        try {
            return new EngineModel(Engine.open(folder, new OrtAndroidRuntime(), EngineSettings.defaults()));
        } catch (LinkageError thrown) {
            throw new DemoException(Failure.Kind.WRONG_PROCESSOR, String.valueOf(thrown.getMessage()));
        }
    }

    private long freeMemory() {
        ActivityManager manager = (ActivityManager) context.getSystemService(Context.ACTIVITY_SERVICE);
        ActivityManager.MemoryInfo memory = new ActivityManager.MemoryInfo();
        manager.getMemoryInfo(memory);
        return memory.availMem;
    }
}
