"""The web page in a real browser: Chromium without a window, driven by Playwright."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import pytest
import soundfile

from edge_gemma import Model, Piece, Statistics
from edge_gemma.runtime import engine
from edge_gemma.runtime.sampling import SamplingOptions
from edge_gemma.runtime.serving import audio_api, audio_request
from edge_gemma.runtime.tasks import transcription_prompt

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = sync_api.expect

SAMPLES = Path(__file__).parents[2] / "demo" / "samples"
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = [
    "--use-fake-ui-for-media-stream",  # the microphone may be used, and hears a file
    "--use-fake-device-for-media-stream",
    f"--use-file-for-fake-audio-capture={SAMPLES / 'english-1.wav'}",
]
KEY = "correct horse"

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed: make browser")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    as_root = ["--no-sandbox"] if os.getuid() == 0 else []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=[*ARGUMENTS, *as_root])
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, url: str, **options: Any) -> Iterator[Any]:
    """A page, in which nothing may go wrong unseen and which may load nothing from elsewhere."""
    wrong: list[str] = []
    context = browser.new_context(**options)
    page = context.new_page()
    page.set_default_timeout(30_000)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "request",
        lambda request: request.url.startswith((url, "data:", "blob:")) or wrong.append(request.url),
    )
    page.goto(url)
    yield page
    context.close()
    assert not wrong


@pytest.fixture
def page(browser: Any, server: Any) -> Iterator[Any]:
    with opened(browser, server.url) as page:
        yield page


@pytest.fixture(autouse=True)
def greedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page asks at the usual temperature, at which the demo is wrong now and then."""
    real = engine.make_sampler

    def make(options: SamplingOptions, constraint: Any) -> Any:
        return real(replace(options, temperature=0.0), constraint)

    monkeypatch.setattr(engine, "make_sampler", make)


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Event]:
    """Makes the model say a text, again and again until it is cancelled; the event tells that it was."""

    def says(text: str) -> Event:
        ended = Event()

        def stream(self: Model, prompt: Any, *, cancel: Event, **options: Any) -> Iterator[Piece]:
            while not cancel.is_set():
                yield Piece(text, Statistics())
                time.sleep(0.02)
            ended.set()
            yield Piece("", Statistics(), "cancelled")

        monkeypatch.setattr(Model, "stream", stream)
        return ended

    return says


def ask(page: Any, text: str) -> None:
    page.get_by_label("Message").fill(text)
    page.get_by_role("button", name="Send").click()


def answers(page: Any) -> Any:
    return page.locator("article.assistant")


def test_the_page_runs_its_own_script_alone(server: Any) -> None:
    response = httpx.get(server.url)
    policy = dict(part.split(" ", 1) for part in response.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert re.fullmatch(r"'sha256-[\w+/]{43}='", policy["script-src"])
    assert re.fullmatch(r"'sha256-[\w+/]{43}='", policy["style-src"])
    assert policy["frame-ancestors"] == "'none'"
    assert not re.search(r"(src|href)\s*=\s*[\"']?\s*(https?:)?//", response.text)


def test_type_and_read_a_streamed_answer(page: Any) -> None:
    expect(page.locator("#model")).to_have_text("demo")
    page.keyboard.type("What is 17 + 25?")  # the field has the focus
    page.keyboard.press("Enter")
    expect(answers(page)).to_contain_text("42")
    expect(page.get_by_role("status")).to_have_text(re.compile(r"^\d+ tokens, .*prompt \d+ tokens"))
    expect(page.get_by_label("Message")).to_be_empty()


def test_an_answer_appears_while_it_is_written_and_can_be_stopped(page: Any, says: Any) -> None:
    ended = says("on and ")
    ask(page, "Talk")
    expect(answers(page)).to_contain_text("on and on and")
    expect(answers(page)).to_have_attribute("aria-busy", "true")
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(page.get_by_role("status")).to_have_text("stopped")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    assert ended.wait(10)


def test_a_conversation_goes_on_until_a_new_one_is_begun(page: Any) -> None:
    bodies: list[Any] = []
    page.on(
        "request", lambda request: bodies.append(request.post_data_json) if request.method == "POST" else None
    )
    for number in (1, 2):
        ask(page, f"What is {number} + 1?")
        expect(answers(page)).to_have_count(number)
        expect(page.get_by_role("button", name="Send")).to_be_visible()
    assert [message["role"] for message in bodies[1]["messages"]] == ["user", "assistant", "user"]
    page.get_by_role("button", name="New conversation").click()
    expect(page.locator("article")).to_have_count(0)
    ask(page, "What is 3 + 1?")
    expect(answers(page)).to_have_count(1)
    assert len(bodies[2]["messages"]) == 1


def test_upload_a_picture(page: Any) -> None:
    page.get_by_label("Picture").set_input_files(SAMPLES / "picture-1.png")
    expect(page.get_by_role("img", name="picture-1.png")).to_be_visible()
    ask(page, "Describe this image.")
    expect(answers(page)).to_have_text(re.compile("red stars", re.IGNORECASE))


def test_a_large_picture_is_scaled_down(page: Any, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    path = tmp_path / "large.png"
    image.effect_noise((2200, 1100), 80).save(path)
    assert path.stat().st_size > 1 << 20
    page.get_by_label("Picture").set_input_files(path)
    with page.expect_request("**/v1/chat/completions") as sent:
        ask(page, "Describe this image.")
    url = sent.value.post_data_json["messages"][0]["content"][0]["image_url"]["url"]
    assert url.startswith("data:image/jpeg;base64,")
    width, height = page.evaluate(SIZE, url)
    assert (width, height) == (2048, 1024)
    expect(answers(page)).to_have_count(1)


SIZE = """async (url) => {
  const image = new Image();
  image.src = url;
  await image.decode();
  return [image.naturalWidth, image.naturalHeight];
}"""


def test_drop_a_picture(page: Any) -> None:
    page.evaluate(
        """(bytes) => {
          const transfer = new DataTransfer();
          transfer.items.add(new File([new Uint8Array(bytes)], "dropped.png", { type: "image/png" }));
          document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true }));
        }""",
        list((SAMPLES / "picture-2.png").read_bytes()),
    )
    expect(page.get_by_role("img", name="dropped.png")).to_be_visible()
    page.get_by_role("button", name="Remove").click()
    expect(page.get_by_role("img", name="dropped.png")).to_have_count(0)


def test_upload_speech(page: Any) -> None:
    page.get_by_label("Sound").set_input_files(SAMPLES / "english-1.wav")
    page.get_by_role("button", name="Transcribe").click()
    expect(answers(page)).to_have_text("Turn on the lights in the kitchen")
    page.get_by_label("Sound").set_input_files(SAMPLES / "english-1.wav")
    page.get_by_label("into").fill("Spanish")
    page.get_by_role("button", name="Translate").click()
    expect(answers(page).nth(1)).to_have_text("Enciende las luces de la cocina")


def test_ask_about_speech(page: Any) -> None:
    page.get_by_label("Sound").set_input_files(SAMPLES / "english-2.wav")
    ask(page, transcription_prompt("en"))
    expect(answers(page)).to_have_text("Set a timer for 38 minutes")


def test_sounds_that_the_browser_alone_reads_are_sent_as_wav(
    page: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []

    def watch(form: Any) -> Any:
        sent.append(form["file"].filename)
        return audio_request.open_upload(form)

    monkeypatch.setattr(audio_api, "open_upload", watch)
    samples, rate = soundfile.read(SAMPLES / "english-1.wav")
    soundfile.write(tmp_path / "clip.ogg", samples, rate, format="OGG", subtype="OPUS")
    page.get_by_label("Sound").set_input_files(tmp_path / "clip.ogg")
    page.get_by_role("button", name="Transcribe").click()
    expect(answers(page)).to_have_text("Turn on the lights in the kitchen")
    assert sent == ["sound.wav"]


def test_two_clicks_record_once(page: Any) -> None:
    """The second one while the microphone is asked for."""
    page.evaluate(
        """() => {
            const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
            window.streams = [];
            navigator.mediaDevices.getUserMedia = async (wanted) => {
                const stream = await ask(wanted);
                window.streams.push(stream);
                return stream;
            };
            const button = document.getElementById("record");
            button.click();
            button.click();
        }"""
    )
    page.get_by_role("button", name="Stop recording").click()
    expect(page.get_by_role("button", name="Record")).to_have_attribute("aria-pressed", "false")
    states = "streams.map((stream) => stream.getTracks().map((track) => track.readyState).join())"
    assert page.evaluate(states) == ["ended"]


def test_record_speech(page: Any) -> None:
    page.get_by_role("button", name="Record").click()
    recording = page.get_by_role("button", name="Stop recording")
    expect(recording).to_have_attribute("aria-pressed", "true")
    page.wait_for_timeout(2500)  # the microphone hears the clip, again and again
    recording.click()
    page.get_by_role("button", name="Transcribe").click()
    expect(answers(page)).to_have_text(re.compile("kitchen", re.IGNORECASE))


def test_a_wrong_key_is_told_and_the_right_one_kept(browser: Any, make_server: Any) -> None:
    server = make_server(api_keys=(KEY,))
    with opened(browser, server.url) as page:
        expect(page.get_by_role("alert")).to_contain_text("a key is needed")
        page.get_by_label("API key").fill("wrong")
        page.get_by_role("button", name="Use it").click()
        expect(page.get_by_role("alert")).to_have_count(2)
        ask(page, "What is 2 + 2?")
        expect(page.get_by_role("alert")).to_have_count(3)
        expect(answers(page)).to_have_count(0)
        page.get_by_label("API key").fill(KEY)
        page.get_by_role("button", name="Use it").click()
        expect(page.locator("#model")).to_have_text("demo")
        expect(page.get_by_label("API key")).to_be_hidden()
        ask(page, "What is 17 + 25?")
        expect(answers(page)).to_contain_text("42")
        assert page.evaluate("[sessionStorage.getItem('key'), localStorage.length]") == [KEY, 0]
        page.reload()
        expect(page.locator("#model")).to_have_text("demo")


@pytest.mark.parametrize("whose", ["question", "answer"])
def test_html_is_text(page: Any, says: Any, whose: str) -> None:
    script = "<img src=x onerror='window.hacked = 1'><script>window.hacked = 1</script>"
    says(script if whose == "answer" else "fine ")
    ask(page, script if whose == "question" else "Say something")
    entry = page.locator("article.user" if whose == "question" else "article.assistant")
    expect(entry).to_contain_text(script)
    page.get_by_role("button", name="Stop", exact=True).click()
    assert entry.locator("*").count() == 0
    assert page.evaluate("window.hacked") is None


def test_a_file_that_is_no_sound_is_told(page: Any, tmp_path: Path) -> None:
    (tmp_path / "note.wav").write_text("no sound")
    page.get_by_label("Sound").set_input_files(tmp_path / "note.wav")
    page.get_by_role("button", name="Transcribe").click()
    expect(page.get_by_role("alert")).to_contain_text("cannot be read as a sound")
    (tmp_path / "note.webm").write_text("no sound")
    page.get_by_label("Sound").set_input_files(tmp_path / "note.webm")
    page.get_by_role("button", name="Transcribe").click()
    expect(page.get_by_role("alert").nth(1)).to_contain_text("note.webm is no sound that this browser reads")


@pytest.mark.parametrize("path", ["chat/completions", "audio/transcriptions"])
def test_a_connection_that_ends_too_early_is_told(page: Any, path: str) -> None:
    event = {
        "chat/completions": {"choices": [{"delta": {"content": "on and"}, "finish_reason": None}]},
        "audio/transcriptions": {"type": "transcript.text.delta", "delta": "on and"},
    }[path]
    page.route(f"**/v1/{path}", lambda route: route.fulfill(body=f"data: {json.dumps(event)}\n\n"))
    if path == "chat/completions":
        ask(page, "Talk")
    else:
        page.get_by_label("Sound").set_input_files(SAMPLES / "english-1.wav")
        page.get_by_role("button", name="Transcribe").click()
    expect(page.get_by_role("alert")).to_have_text("the connection ended before the answer did")
    expect(answers(page)).to_have_text("on and")  # what was said stays


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(browser: Any, server: Any, scheme: str) -> None:
    with opened(browser, server.url, viewport={"width": 360, "height": 640}, color_scheme=scheme) as page:
        page.get_by_label("Sound").set_input_files(SAMPLES / "english-1.wav")
        for name in ("Transcribe", "Translate", "Remove", "Record", "Send", "New conversation"):
            box = page.get_by_role("button", name=name).bounding_box()
            assert box["x"] >= 0 and box["x"] + box["width"] <= 360 and box["y"] + box["height"] <= 640
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", ground))) < 384) == (scheme == "dark")


def test_all_of_it_can_be_reached_by_the_keyboard(page: Any) -> None:
    names = set()
    for _ in range(12):
        page.keyboard.press("Tab")
        names.add(page.evaluate("document.activeElement.id"))
    assert {"fresh", "log", "text", "picture", "sound", "record", "send"} <= names
    unnamed = "[...document.querySelectorAll('input, textarea')].filter((e) => !e.labels.length).length"
    assert page.evaluate(unnamed) == 0
