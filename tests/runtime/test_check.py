"""edge-gemma check: the conversation, what is reported, and the exit statuses."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edge_gemma
from edge_gemma import artifact as artifacts
from edge_gemma.cli import run
from edge_gemma.errors import ArtifactError, BudgetError, EdgeGemmaError
from edge_gemma.memory import peak_resident_bytes
from edge_gemma.runtime import check, check_cli, check_process, hard_limit
from edge_gemma.runtime.check_process import Conversation
from edge_gemma.runtime.control_groups import Support
from edge_gemma.runtime.hard_limit import Result

MIB = 1 << 20
OPTIONS = ("--threads", "1", "--no-cache", "--context", "2048")
NAMES = ["start", "load", "text", "image", "audio", "second text"]


@pytest.fixture(scope="module")
def hard() -> Support:
    found = hard_limit.available()
    if found.kind is None:
        pytest.skip(f"no hard limit can be made here: {found.reason}")
    return found


@pytest.fixture
def check_it(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, list[str]]]:
    """Exit status, standard output, and the lines of standard error of a check."""

    def call(artifact: Path, *arguments: str) -> tuple[int, str, list[str]]:
        status = run(["check", str(artifact), *OPTIONS, *arguments])
        out, err = capsys.readouterr()
        return status, out, err.splitlines()

    return call


def test_a_whole_conversation(media_artifact: Path, check_it: Any) -> None:
    status, out, errors = check_it(media_artifact, "--no-hard", "--json")
    report = json.loads(out)
    assert (status, errors, report["within_budget"], report["problems"]) == (0, [], True, [])
    assert (report["budget_bytes"], report["left_out"]) == (2 << 30, {})
    phases = report["phases"]
    assert [phase["name"] for phase in phases] == NAMES
    peaks = [phase["peak"] for phase in phases]
    assert peaks == sorted(peaks) and report["vmhwm_bytes"] == peaks[-1]
    answers = {phase["name"]: phase["statistics"] for phase in phases if phase["statistics"]}
    text, image, audio, last = (answers[name] for name in NAMES[2:])
    spec = artifacts.read(media_artifact).manifest.audio
    assert spec is not None
    assert (text["images"], image["images"]) == (0, 1)
    assert audio["audio_seconds"] == spec.max_samples / spec.sample_rate
    assert all(answer["generated_tokens"] >= 2 for answer in answers.values())
    assert text["prompt_tokens"] > 1000  # most of the context, with 256 and 188 places for what follows
    assert last["prompt_tokens"] + last["generated_tokens"] == 2048  # random weights do not stop
    assert report["hard_limit"] == {"kind": None, "reason": "not asked for"}


def test_the_peak_is_that_of_the_child_alone(media_artifact: Path, check_it: Any) -> None:
    """This process, which has torch, is larger by far; VmHWM and wait4 agree about the child."""
    _, out, _ = check_it(media_artifact, "--no-hard", "--json")
    report = json.loads(out)
    assert report["peak_memory_bytes"] < 300 * MIB < peak_resident_bytes()
    assert report["wait4_bytes"] == pytest.approx(report["vmhwm_bytes"], rel=0.02)
    assert report["phases"][0]["peak"] > 40 * MIB  # Python and the libraries are part of it


def test_the_model_is_loaded_with_the_budget(media_artifact: Path, check_it: Any) -> None:
    """As an app on such a device would do; --memory-budget says otherwise."""
    plans = []
    for options in (["--budget", "1GiB"], ["--budget", "1GiB", "--memory-budget", "900MiB"]):
        _, out, _ = check_it(media_artifact, "--no-hard", "--no-media", "--json", *options)
        report = json.loads(out)
        plans.append((report["budget_bytes"], report["plan"]["budget"]))
    assert plans == [(1 << 30, 1 << 30), (1 << 30, 900 * MIB)]


@pytest.mark.parametrize(
    ("artifact", "arguments", "why"),
    [("tiny_artifact", (), "the artifact has no encoder"), ("media_artifact", ("--no-media",), "--no-media")],
)
def test_what_is_left_out_is_said(
    artifact: str, arguments: tuple[str, ...], why: str, request: pytest.FixtureRequest, check_it: Any
) -> None:
    status, out, _ = check_it(request.getfixturevalue(artifact), "--no-hard", *arguments)
    assert status == 0
    lines = [line.strip() for line in out.splitlines()]
    assert f"left out    image: {why}" in lines and f"left out    audio: {why}" in lines
    assert "hard limit  none: not asked for" in lines
    assert [line for line in lines if line.startswith("settings    global KV in float")]
    assert "\n  image" not in out


def test_over_the_budget(media_artifact: Path, check_it: Any) -> None:
    """The peak of the text is about 85 MiB, that of the image 115."""
    options = ("--no-hard", "--budget", "100MiB", "--memory-budget", "2GiB")
    status, out, errors = check_it(media_artifact, *options)
    assert status == BudgetError.exit_code == 8
    (line,) = errors
    assert line.startswith("error: peak memory is ") and "and the budget 100 MiB" in line
    assert "exceeded first in the phase 'image': lower --context" in line
    assert "second text" in out  # all of it is reported nevertheless


def test_a_model_that_cannot_fit_is_over_the_budget(media_artifact: Path, check_it: Any) -> None:
    status, out, errors = check_it(media_artifact, "--no-hard", "--budget", "10MiB")
    assert (status, out, len(errors)) == (8, "", 1)
    assert "10 MiB" in errors[0]


def test_under_the_hard_limit(hard: Support, media_artifact: Path, check_it: Any) -> None:
    status, out, errors = check_it(media_artifact, "--hard", "--json")
    assert (status, errors) == (0, [])
    limited = json.loads(out)["hard_limit"]
    assert (limited["kind"], limited["finished"], limited["oom_kills"]) == (hard.kind, True, 0)
    assert [phase["name"] for phase in limited["phases"]] == NAMES
    assert limited["decode_seconds"] > 0
    assert limited["group_peak_bytes"] is None or 50 * MIB < limited["group_peak_bytes"] < 2 << 30


def test_killed_by_the_hard_limit(hard: Support, media_artifact: Path, check_it: Any) -> None:
    options = ("--hard", "--budget", "90MiB", "--memory-budget", "2GiB")
    status, out, errors = check_it(media_artifact, *options)
    assert (status, len(errors)) == (8, 1)
    assert "a hard limit of 90 MiB killed it in the phase" in errors[0]
    assert f"{hard.kind}: did not finish" in out and "killed by it: 1" in out
    assert "decoding" not in out.split("under a hard limit")[1].split("result")[1]  # there is none to compare


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_a_process_that_breaks_off_under_the_limit_takes_no_result_along(
    form: tuple[str, ...], tiny_artifact: Path, check_it: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are held; the second is told as if something else than the limit had ended it."""
    hold = check_cli.hold

    def broken(*arguments: Any, limit: int | None = None, support: Any = None, **more: Any) -> Conversation:
        held = hold(*arguments, **more)
        if limit:
            held.phases, held.result = held.phases[:2], Result(returncode=-signal.SIGSEGV)
        return held

    monkeypatch.setattr(hard_limit, "available", lambda: Support("a cgroup"))
    monkeypatch.setattr(check_cli, "hold", broken)
    status, out, errors = check_it(tiny_artifact, "--hard", *form)
    assert (status, len(errors)) == (1, 1)
    assert "was ended by SIGSEGV in the phase 'text'" in errors[0]
    if form:
        report = json.loads(out)
        assert (report["within_budget"], report["hard_limit"]["finished"]) == (False, False)
        assert "SIGSEGV" in report["problems"][0] and report["vmhwm_bytes"] > 40 * MIB
    else:
        assert "second text" in out.split("under a hard limit")[0] and "a cgroup: did not finish" in out


def test_a_machine_without_hard_limits(
    tiny_artifact: Path, check_it: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said where nothing else was asked, and an error where one was."""
    monkeypatch.setattr(hard_limit, "available", lambda: Support(None, reason="no control groups"))
    status, out, errors = check_it(tiny_artifact)
    assert (status, errors) == (0, [])
    assert "hard limit  none: no control groups\n" in out
    status, out, errors = check_it(tiny_artifact, "--hard")
    assert (status, out, len(errors)) == (1, "", 1)
    assert errors[0].startswith("error: no hard limit can be made here (no control groups)")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--budget", "2 potatoes"), "'2 potatoes' is not a size"),
        (("--context", "300"), "the context has 300 tokens and the conversation needs at least"),
        (("--context", "9000"), "expected at most the 2048 tokens"),
        (("--budget",), "requires an argument"),
    ],
)
def test_bad_usage(arguments: tuple[str, ...], message: str, media_artifact: Path, check_it: Any) -> None:
    status, out, errors = check_it(media_artifact, "--no-hard", *arguments)
    assert (status, out) == (2, "")
    assert message in errors[-1]
    assert not [line for line in errors if "Traceback" in line]


def test_an_unknown_device(media_artifact: Path, check_it: Any) -> None:
    status, out, errors = check_it(media_artifact, "--device", "toaster")
    assert (status, out, len(errors)) == (2, "", 1)
    assert "'toaster'" in errors[0]


def test_a_device_gives_budget_and_threads(tiny_artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from edge_gemma.devices import find_device, load_devices

    name = next(iter(load_devices()))
    status = run(["check", str(tiny_artifact), "--device", name, "--no-hard", "--no-cache", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert (status, report["budget_bytes"]) == (0, find_device(name).budget)


def test_a_damaged_artifact(tiny_artifact: Path, tmp_path: Path, check_it: Any) -> None:
    """What is found before, and what only the process finds."""
    broken = shutil.copytree(tiny_artifact, tmp_path / "broken")
    weights = broken / artifacts.DECODER[0]
    weights.write_bytes(bytes(weights.stat().st_size))
    status, out, errors = check_it(broken, "--no-hard")
    assert (status, out, len(errors)) == (ArtifactError.exit_code, "", 1)
    weights.unlink()
    status, out, errors = check_it(broken, "--no-hard")
    assert (status, out, len(errors)) == (ArtifactError.exit_code, "", 1)
    assert "decoder_kv.onnx is missing" in errors[0]


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (Result(returncode=-signal.SIGSEGV), "was ended by SIGSEGV in the phase 'text'"),
        (
            Result(returncode=-signal.SIGKILL),
            "SIGKILL in the phase 'text' (the system does so when memory runs out)",
        ),
        (
            Result(returncode=1, stderr="Traceback\n  …\nValueError: odd\n"),
            "status 1 in the phase 'text' (ValueError: odd)",
        ),
    ],
)
def test_a_process_that_breaks_off_is_told_in_one_line(result: Result, message: str) -> None:
    broken = Conversation(expected=("start", "load", "text"), phases=[{}, {}], result=result)
    with pytest.raises(EdgeGemmaError) as caught:
        broken.raise_failure()
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert caught.value.exit_code == 1


def test_too_slow_under_the_limit_is_over_the_budget() -> None:
    phases = [{"name": "start", "peak": MIB}]
    measured = Conversation(expected=("start",), phases=phases, seconds=3.0)
    slow = Result(returncode=-signal.SIGKILL, timed_out=True)
    limited = Conversation(expected=("start", "load"), phases=phases, seconds=120.0, result=slow)
    (problem,) = check_process.problems(measured, limited, 2 * MIB)
    assert "was not done after 120 s, in the phase 'load' (without the limit: 3 s)" in problem


def test_a_peak_after_the_last_phase_counts() -> None:
    phases = [{"name": "start", "peak": MIB}]
    measured = Conversation(expected=("start",), phases=phases, result=Result(returncode=0, maxrss=5 * MIB))
    (problem,) = check_process.problems(measured, None, 2 * MIB)
    assert "peak memory is 5 MiB" in problem and "'end'" in problem


def test_the_input_is_the_same_each_time() -> None:
    image = check.picture(108, 192)
    assert (image.shape, image.dtype) == ((108, 192, 3), np.uint8)
    assert image.max() > 240 and np.unique(image).size > 200
    assert np.array_equal(image, check.picture(108, 192))
    sound = check.tones(48_000, 16_000)
    assert (sound.shape, sound.dtype) == ((48_000,), np.float32)
    assert 0.3 < np.abs(sound).max() <= 0.4
    spectrum = np.abs(np.fft.rfft(sound[16_000:32_000]))
    assert int(spectrum.argmax()) == 330  # Hz, in the second second
    words = check.inventory(1000).split(" ")
    assert len(words) == 1000 and len(set(words)) > 150
    assert check.inventory(11) == "1. The blue table in the garden is 1 cm wide."


@pytest.mark.parametrize("context", [300, 1024])
def test_the_conversation_fills_the_context(tiny_artifact: Path, context: int) -> None:
    with edge_gemma.load(tiny_artifact, context=context, threads=1, cache=False) as model:
        turns = dict(check.converse(model, image=False, audio=False))
    assert list(turns) == ["text", "second text"]
    last = turns["second text"]
    assert last.prompt_tokens + last.generated_tokens == context
    assert last.generated_tokens < context // 64 + 8  # as far as words go, the text fills it
    assert turns["text"].generated_tokens == context // 64
