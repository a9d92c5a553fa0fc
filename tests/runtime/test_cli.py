"""run, chat, inspect and doctor: what is printed where, exit statuses, interruptions."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made import needs

import edge_gemma
from edge_gemma.cli import run
from edge_gemma.runtime import doctor

# The parent of the tests may ignore SIGINT, as shells make background jobs do.
START = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); import edge_gemma.cli as c; "
)
COMMAND = [sys.executable, "-c", START + "c.main()"]
GREEDY = ("--temperature", "0", "--threads", "1", "--context", "256", "--max-new-tokens", "20")
LONG = "word " * 300
PATIENCE = 60  # seconds that a child may take


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    def pipe(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), "utf-8"))

    return pipe


@pytest.fixture(scope="module")
def answer(tiny_artifact: Path) -> str:
    """To the prompt "hello", with GREEDY."""
    with edge_gemma.load(tiny_artifact, context=256, threads=1) as model:
        return model.generate("hello", temperature=0, max_new_tokens=20).text


def spawn(*arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    environment = os.environ | {"TERM": "dumb", "PYTHONUNBUFFERED": ""} | options.pop("env", {})
    return subprocess.Popen([*COMMAND, *arguments], env=environment, **options)


def only_line(text: str) -> str:
    assert text.endswith("\n") and text.count("\n") == 1, text
    return text


def test_run_answers(tiny_artifact: Path, answer: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["run", str(tiny_artifact), "hello", *GREEDY]) == 0
    assert capsys.readouterr() == (answer + "\n", "")


@pytest.mark.parametrize("argument", [[], ["-"]], ids=["none", "dash"])
def test_run_reads_a_pipe(
    argument: list[str],
    tiny_artifact: Path,
    answer: str,
    stdin: Callable[[bytes], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    stdin(b"hello\n")
    assert run(["run", str(tiny_artifact), *argument, *GREEDY]) == 0
    assert capsys.readouterr().out == answer + "\n"


def test_run_tells_its_statistics(tiny_artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["run", str(tiny_artifact), "hello", *GREEDY, "--stats"]) == 0
    assert "answer 20 tokens" in only_line(capsys.readouterr().err)


def test_run_as_json(tiny_artifact: Path, answer: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["run", str(tiny_artifact), "hello", *GREEDY, "--json"]) == 0
    out, err = capsys.readouterr()
    result = json.loads(only_line(out))
    assert (result["text"], result["finish_reason"], err) == (answer, "length", "")
    assert result["statistics"]["generated_tokens"] == 20


def test_a_system_instruction_is_heard(
    tiny_artifact: Path, answer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["run", str(tiny_artifact), "hello", "--system", "Be brief.", *GREEDY]) == 0
    assert capsys.readouterr().out != answer + "\n"


@pytest.mark.parametrize(
    ("arguments", "piped", "message"),
    [
        ([""], b"", "empty"),
        (["  \n"], b"", "empty"),
        ([], b"", "empty"),
        (["-"], b" \n\t\n", "empty"),
        ([], b"caf\xe9", "standard input is not UTF-8 text"),
        (["caf\udce9"], b"", "valid Unicode"),
        ([LONG], b"", "and the context 256"),
        (["hi", "--context", "5000"], b"", "at most the 2048 tokens"),
        (["hi", "--top-p", "3"], b"", "top_p is 3.0"),
        (["hi", "--stop", ""], b"", "stop string 0"),
    ],
)
def test_a_prompt_that_cannot_be_used(
    arguments: list[str],
    piped: bytes,
    message: str,
    tiny_artifact: Path,
    stdin: Callable[[bytes], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    stdin(piped)
    assert run(["run", str(tiny_artifact), *GREEDY, *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert only_line(err).startswith("error: ") and message in err


def test_an_empty_prompt_beside_an_image_from_a_pipe(
    tiny_artifact: Path, stdin: Callable[[bytes], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """It is the artifact that has no encoder, and not the prompt that is to be read from there as well."""
    stdin(b"no picture")
    assert run(["run", str(tiny_artifact), "", "--image", "-", *GREEDY]) == 2
    assert "standard input can be one thing only" not in only_line(capsys.readouterr().err)


@pytest.mark.parametrize("module", ["onnxruntime", "numpy"])
def test_ctrl_c_while_a_package_is_imported(module: str, tiny_artifact: Path, tmp_path: Path) -> None:
    """Packages of C make an ImportError of it."""
    (tmp_path / f"{module}.py").write_text(
        "try:\n    raise KeyboardInterrupt\n"
        "except KeyboardInterrupt as error:\n    raise ImportError('initialization failed') from error\n"
    )
    command = [sys.executable, "-m", "edge_gemma.cli", "run", str(tiny_artifact), "hello"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


@pytest.mark.parametrize("command", [["run"], ["run", "PROMPT"], ["chat"], ["transcribe", "-"]])
def test_standard_input_may_be_closed(command: list[str], tiny_artifact: Path) -> None:
    line = [sys.executable, "-m", "edge_gemma.cli", command[0], str(tiny_artifact), *command[1:], *GREEDY]
    done = subprocess.run(["sh", "-c", '"$@" <&-', "sh", *line], capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    assert done.returncode == (0 if command in (["chat"], ["run", "PROMPT"]) else 2)


@pytest.mark.parametrize("command", [["run", "PATH", "hi"], ["chat", "PATH"], ["inspect", "PATH"]])
@pytest.mark.parametrize("kind", ["missing", "file", "folder"])
def test_not_an_artifact(
    command: list[str], kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("text")
    (tmp_path / "folder").mkdir()
    assert run([str(tmp_path / kind) if word == "PATH" else word for word in command]) == 5
    assert "expected an artifact made by `edge-gemma export`" in only_line(capsys.readouterr().err)


def test_inspect(tiny_artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(tiny_artifact), "--verify"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for text in ("synthetic:tiny", "int4", "1,040", "2,048 tokens", "verified"):
        assert text in out
    assert re.search(r"decoder\.data +\d+ KiB", out)
    assert re.search(r"mlp +4 +\d+ +fitted", out)
    assert re.search(
        r"KV cache +128 bytes a token in float16 or 64 bytes a token in int8, 512 a window row", out
    )
    estimates = out.partition("estimated resident memory")[2]
    assert re.search(r"1024 +float16 .* \d+ MiB", estimates) and re.search(
        r"1024 +int8 .* \d+ MiB", estimates
    )


def test_inspect_as_json(tiny_artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(tiny_artifact), "--json"]) == 0
    manifest = json.loads((tiny_artifact / "manifest.json").read_text())
    assert json.loads(only_line(capsys.readouterr().out)) == manifest | {"verified": False}


def test_inspect_finds_a_changed_byte(
    tiny_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(tiny_artifact, tmp_path / "copy")
    weights = bytearray((folder / "decoder.data").read_bytes())
    weights[-7] ^= 4
    (folder / "decoder.data").write_bytes(weights)
    assert run(["inspect", str(folder)]) == 0
    capsys.readouterr()
    assert run(["inspect", str(folder), "--verify"]) == 5
    assert "decoder.data is damaged" in only_line(capsys.readouterr().err)


def test_a_global_kv_that_is_not_there(tiny_artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["run", str(tiny_artifact), "hello", *GREEDY, "--global-kv", "int8"]) == 0
    assert capsys.readouterr().err == ""
    assert run(["run", str(tiny_artifact), "hello", *GREEDY, "--global-kv", "float32"]) == 2
    line = only_line(capsys.readouterr().err)
    assert line.startswith("error: global_kv is 'float32': ")
    assert "has float16 and int8, choose of these or export it again with --global-kv" in line


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor"]) == 0
    out = capsys.readouterr().out
    assert run(["doctor", "--json"]) == 0
    facts = json.loads(only_line(capsys.readouterr().out))
    assert facts.keys() == doctor.examine().keys()
    for name, value in facts["versions"].items():
        assert re.search(rf"^  {name} +{re.escape(value)}$", out, re.MULTILINE)


@pytest.mark.parametrize("command", ["", "export", "verify", "run", "chat", "inspect", "doctor"])
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    if command in ("export", "verify"):
        needs("torch")
    assert run([*command.split(), "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"Usage: edge-gemma {command}".rstrip())


@pytest.mark.parametrize(
    "arguments", [["nope"], ["--nope"], ["run"], ["run", "x", "--nope"], ["run", "x", "--chunk", "0"]]
)
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("Usage: edge-gemma")


def test_a_reader_that_goes_away(tiny_artifact: Path) -> None:
    reading, writing = os.pipe()
    with spawn("run", str(tiny_artifact), "hello", stdout=writing, stderr=subprocess.PIPE) as child:
        os.close(writing)
        os.read(reading, 1)
        os.close(reading)
        _, err = child.communicate(timeout=PATIENCE)
    assert (child.returncode, err) == (0, b"")


def test_characters_that_the_terminal_lacks(tiny_artifact: Path) -> None:
    arguments = ("run", str(tiny_artifact), "hello", "--seed", "0", "--max-new-tokens", "200")
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with spawn(*arguments, env={"PYTHONIOENCODING": "utf-8"}, **pipes) as child:
        everything, _ = child.communicate(timeout=PATIENCE)
    with spawn(*arguments, env={"PYTHONIOENCODING": "latin-1"}, **pipes) as child:
        out, err = child.communicate(timeout=PATIENCE)
    assert (child.returncode, err) == (0, b"")
    assert not everything.isascii()
    assert out == everything.decode().encode("latin-1", "replace")


def test_ctrl_c_ends_an_answer(tiny_artifact: Path) -> None:
    with edge_gemma.load(tiny_artifact, context=2048) as model:
        whole = model.generate("hello", temperature=0, max_new_tokens=100).text
    arguments = ("run", str(tiny_artifact), "hello", "--temperature", "0", "--context", "2048")
    with spawn(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        start = os.read(child.stdout.fileno(), 1 << 16)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=PATIENCE)
    assert child.returncode == 130
    assert err.split() == [b"interrupted"]
    assert not start.endswith(b"\n")  # it came while the answer went on, not at its end
    found, expected = start + out, whole.encode()
    assert found[: len(expected)] == expected[: len(found)]


def chat(tiny_artifact: Path, *arguments: str) -> int:
    return run(["chat", str(tiny_artifact), *GREEDY, *arguments])


def test_chat_from_a_pipe(
    tiny_artifact: Path, answer: str, stdin: Callable[[bytes], None], capsys: pytest.CaptureFixture[str]
) -> None:
    stdin(b"hello\n\nhello\n/new\nhello\n/quit\nnever read\n")
    assert chat(tiny_artifact) == 0
    out, err = capsys.readouterr()
    assert err == ""
    line = f"{answer}\n"
    assert out.startswith(line) and out.endswith(line)
    assert out[len(line) : -len(line)] not in ("", line)  # the second answer knows of the first


def test_chat_goes_on_after_an_error(
    tiny_artifact: Path, answer: str, stdin: Callable[[bytes], None], capsys: pytest.CaptureFixture[str]
) -> None:
    stdin(LONG.encode() + b"\ncaf\xe9\nhello")  # and the end of the input ends it
    assert chat(tiny_artifact) == 0
    out, err = capsys.readouterr()
    assert out == answer + "\n"
    too_long, no_text = err.splitlines()
    assert "the context 256" in too_long and too_long.endswith("/new starts afresh")
    assert "valid Unicode" in no_text


def test_chat_tells_its_statistics(
    tiny_artifact: Path, stdin: Callable[[bytes], None], capsys: pytest.CaptureFixture[str]
) -> None:
    stdin(b"hello\n")
    assert chat(tiny_artifact, "--stats") == 0
    assert "answer 20 tokens" in capsys.readouterr().err


def test_chat_goes_on_from_a_file(
    tiny_artifact: Path, tmp_path: Path, stdin: Callable[[bytes], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """The same answers as in one chat, and none of the first turn's tokens is computed again."""
    file, copy = tmp_path / "a.session", tmp_path / "b.session"
    stdin(b"hello\nand then?\nwhy?\n")
    assert chat(tiny_artifact, "--system", "Be brief.") == 0
    expected = capsys.readouterr().out
    found = ""
    for lines, options in (
        (f"hello\n/save {copy}", ["--system", "Be brief."]),
        ("and then?", ["--system", "Be brief."]),
        ("why?", []),
    ):
        stdin(lines.encode())
        assert chat(tiny_artifact, "--session", str(file), "--stats", *options) == 0
        out, err = capsys.readouterr()
        found += out
        assert len(found) == len(out) or int(re.findall(r"prompt \d+ tokens, (\d+) of them new", err)[0]) < 30
    assert found == expected
    with edge_gemma.load(tiny_artifact, context=256, threads=1) as model:
        assert [len(model.load_session(path).messages) for path in (file, copy)] == [7, 3]
    stdin(b"/new\nhello\n")
    assert chat(tiny_artifact, "--session", str(file), "--system", "Be brief.") == 0
    assert expected.startswith(capsys.readouterr().out)


def test_chat_and_files_that_cannot_be_used(
    tiny_artifact: Path, tmp_path: Path, stdin: Callable[[bytes], None], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "no.session").write_text("no session")
    stdin(b"hello\n")
    assert chat(tiny_artifact, "--session", str(tmp_path / "no.session")) == 1
    assert "is no whole session file" in only_line(capsys.readouterr().err)
    stdin(f"/save\nhello\n/save {tmp_path}/no/file\n/save {tmp_path}/a\n".encode())
    assert chat(tiny_artifact) == 0
    first, second = capsys.readouterr().err.splitlines()
    assert first == "error: /save without a file: expected /save FILE"
    assert second == f"error: {tmp_path}/no/file cannot be written: No such file or directory"
    stdin(b"hello\n")
    assert chat(tiny_artifact, "--session", str(tmp_path / "a"), "--system", "Be loud.") == 2
    assert "did not begin with this --system: leave it out" in only_line(capsys.readouterr().err)


class Terminal:
    """A chat in a terminal of its own."""

    def __init__(self, artifact: Path) -> None:
        self._master, slave = pty.openpty()
        ends = {"stdin": slave, "stdout": slave, "stderr": slave}
        self.child = spawn("chat", str(artifact), "--context", "2048", **ends, start_new_session=True)
        os.close(slave)

    def until(self, pattern: bytes) -> bytes:
        """Read until the pattern is there."""
        seen, end = b"", time.monotonic() + PATIENCE
        while not re.search(pattern, seen):
            assert select.select([self._master], [], [], end - time.monotonic())[0], seen
            seen += os.read(self._master, 1000)
        return seen

    def type(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def interrupt(self) -> None:
        self.child.send_signal(signal.SIGINT)

    def rest(self) -> tuple[int, bytes]:
        """Exit status and what was still printed."""
        seen = b""
        try:
            while piece := os.read(self._master, 1000):
                seen += piece
        except OSError:  # Linux's way to say that the other end was closed
            pass
        os.close(self._master)
        return self.child.wait(PATIENCE), seen


def test_chat_ctrl_c_ends_only_the_answer(tiny_artifact: Path) -> None:
    terminal = Terminal(tiny_artifact)
    terminal.until(b"> $")
    for _ in range(2):
        terminal.type(b"hello\n")
        terminal.until(rb"hello\r\n(?s:.){10}")
        terminal.interrupt()
        assert b"Traceback" not in terminal.until("…\r\n> $".encode())
    terminal.type(b"\x04")  # Ctrl-D
    assert terminal.rest() == (0, b"\r\n")


def test_chat_ctrl_c_at_the_prompt_quits(tiny_artifact: Path) -> None:
    terminal = Terminal(tiny_artifact)
    terminal.until(b"> $")
    while terminal.child.poll() is None:  # readline loses a signal that comes before it waits for keys
        terminal.interrupt()
        with contextlib.suppress(subprocess.TimeoutExpired):
            terminal.child.wait(5)
    assert terminal.rest() == (130, b"\r\ninterrupted\r\n")
