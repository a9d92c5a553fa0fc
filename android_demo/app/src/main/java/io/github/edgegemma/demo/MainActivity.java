package io.github.edgegemma.demo;

import android.Manifest;
import android.app.Activity;
import android.content.ActivityNotFoundException;
import android.content.Intent;
import android.content.pm.PackageManager;
import android.os.Bundle;
import android.view.View;
import android.widget.ArrayAdapter;
import android.widget.Button;
import android.widget.EditText;
import android.widget.ScrollView;
import android.widget.Spinner;
import android.widget.TextView;
import io.github.edgegemma.demo.core.Assistant;
import io.github.edgegemma.demo.core.Failure;
import io.github.edgegemma.demo.core.Transcript;
import io.github.edgegemma.engine.Language;
import java.io.File;
import java.util.ArrayList;
import java.util.List;

/** The screen: it shows the assistant and passes on what the user wants. */
public final class MainActivity extends Activity implements Assistant.Screen, View.OnClickListener {
    private static final int PICK_PHOTO = 1;
    private static final int ALLOW_MICROPHONE = 2;

    private Assistant assistant;
    private TextView status;
    private TextView transcript;
    private ScrollView scroll;
    private EditText question;
    private Spinner language;

    @Override
    protected void onCreate(Bundle saved) {
        super.onCreate(saved);
        setContentView(R.layout.main);
        assistant = ((DemoApplication) getApplication()).assistant();
        status = (TextView) findViewById(R.id.status);
        transcript = (TextView) findViewById(R.id.transcript);
        scroll = (ScrollView) findViewById(R.id.scroll);
        question = (EditText) findViewById(R.id.question);
        language = (Spinner) findViewById(R.id.language);
        language.setAdapter(
                new ArrayAdapter<String>(this, android.R.layout.simple_spinner_dropdown_item, languages()));
        for (int id : new int[] {R.id.send, R.id.speak, R.id.photo, R.id.stop, R.id.forget}) {
            findViewById(id).setOnClickListener(this);
        }
    }

    @Override
    protected void onStart() {
        super.onStart();
        assistant.setScreen(this);
        changed();
    }

    /** Behind the results of a photo's choice and of a permission, which open the model themselves. */
    @Override
    protected void onResume() {
        super.onResume();
        if (assistant.state() == Assistant.State.CLOSED && assistant.transcript().turns().isEmpty()) {
            assistant.open();
            changed();
        }
    }

    @Override
    protected void onStop() {
        assistant.setScreen(null);
        super.onStop();
    }

    @Override
    public void onClick(View view) {
        int id = view.getId();
        if (id == R.id.send) {
            String text = takeQuestion();
            if (!text.isEmpty()) {
                assistant.ask(text);
            }
        } else if (id == R.id.speak) {
            speak();
        } else if (id == R.id.photo) {
            pickPhoto();
        } else if (id == R.id.stop) {
            assistant.stop();
        } else {
            assistant.forget();
        }
        changed();
    }

    private void speak() {
        if (checkSelfPermission(Manifest.permission.RECORD_AUDIO) == PackageManager.PERMISSION_GRANTED) {
            listen();
        } else {
            requestPermissions(new String[] {Manifest.permission.RECORD_AUDIO}, ALLOW_MICROPHONE);
        }
    }

    @Override
    public void onRequestPermissionsResult(int request, String[] permissions, int[] results) {
        if (request != ALLOW_MICROPHONE || results.length == 0) {
            return;
        }
        if (results[0] == PackageManager.PERMISSION_GRANTED) {
            listen();
        } else {
            assistant.fail(new Failure(Failure.Kind.MICROPHONE_DENIED, ""));
        }
    }

    private void listen() {
        Language target = target();
        String label = target == null
                ? getString(R.string.spoken)
                : getString(R.string.spoken_translated, target.name);
        assistant.listen(new PhoneMicrophone(), label, target);
        changed();
    }

    private void pickPhoto() {
        Intent pick = new Intent(Intent.ACTION_OPEN_DOCUMENT);
        pick.addCategory(Intent.CATEGORY_OPENABLE);
        pick.setType("image/*");
        try {
            startActivityForResult(pick, PICK_PHOTO);
        } catch (ActivityNotFoundException missing) {
            assistant.fail(new Failure(Failure.Kind.BAD_PICTURE, getString(R.string.no_picker)));
        }
    }

    @Override
    protected void onActivityResult(int request, int result, Intent data) {
        if (request == PICK_PHOTO && result == RESULT_OK && data != null && data.getData() != null) {
            String text = takeQuestion();
            String label = text.isEmpty() ? getString(R.string.photo) : getString(R.string.photo_asked, text);
            assistant.describe(new PhotoSource(getApplicationContext(), data.getData()), label, text);
            changed();
        }
    }

    @Override
    public void changed() {
        Assistant.State state = assistant.state();
        boolean working = assistant.isWorking();
        Failure failure = assistant.failure();
        status.setText(failure == null ? describe(state) : describe(failure));
        transcript.setText(render(assistant.transcript().turns()));
        scroll.post(new Runnable() {
            @Override
            public void run() {
                scroll.smoothScrollTo(0, transcript.getBottom()); // fullScroll would take the focus, too
            }
        });
        for (int id : new int[] {R.id.send, R.id.speak, R.id.photo, R.id.forget}) {
            findViewById(id).setEnabled(!working);
        }
        Button stop = (Button) findViewById(R.id.stop);
        stop.setEnabled(state == Assistant.State.RECORDING || state == Assistant.State.ANSWERING);
        stop.setText(state == Assistant.State.RECORDING ? R.string.done : R.string.stop);
        status.setKeepScreenOn(working);
    }

    private String takeQuestion() {
        String text = question.getText().toString().trim();
        if (!assistant.isWorking()) {
            question.setText("");
        }
        return text;
    }

    /** Names of languages to translate into, behind a first line for none. */
    private List<String> languages() {
        List<String> names = new ArrayList<String>();
        names.add(getString(R.string.no_translation));
        for (Language known : Language.known()) {
            names.add(known.name);
        }
        return names;
    }

    private Language target() {
        int place = language.getSelectedItemPosition();
        return place <= 0 ? null : Language.known().get(place - 1);
    }

    private String render(List<Transcript.Turn> turns) {
        StringBuilder text = new StringBuilder();
        for (Transcript.Turn turn : turns) {
            text.append(getString(R.string.turn, turn.question, turn.answer()));
        }
        return text.toString();
    }

    private String describe(Assistant.State state) {
        switch (state) {
            case OPENING:
                return getString(R.string.opening);
            case RECORDING:
                return getString(R.string.recording);
            case ANSWERING:
                return getString(R.string.answering);
            case READY:
                return getString(R.string.ready);
            default:
                return getString(R.string.closed);
        }
    }

    private String describe(Failure failure) {
        switch (failure.kind) {
            case NO_RUNTIME:
                return getString(R.string.no_runtime);
            case WRONG_PROCESSOR:
                return getString(R.string.wrong_processor, failure.detail);
            case NO_ARTIFACT:
                File folder = PhoneOpener.artifact(this);
                return folder == null ? failure.detail : getString(R.string.no_artifact, folder.getPath());
            case BAD_ARTIFACT:
                return getString(R.string.bad_artifact, failure.detail);
            case TOO_LITTLE_MEMORY:
                return getString(R.string.too_little_memory, failure.detail);
            case CANNOT_HEAR:
                return getString(R.string.cannot_hear);
            case CANNOT_SEE:
                return getString(R.string.cannot_see);
            case MICROPHONE_DENIED:
                return getString(R.string.microphone_denied);
            case MICROPHONE_BROKEN:
                return getString(R.string.microphone_broken, failure.detail);
            case NOTHING_RECORDED:
                return getString(R.string.nothing_recorded);
            case BAD_PICTURE:
                return getString(R.string.bad_picture, failure.detail);
            default:
                return getString(R.string.refused, failure.detail);
        }
    }
}
