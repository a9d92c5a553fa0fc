"""Requests that mean harm. Each ends in a clear refusal; the server lives on, and its memory stays flat."""

from __future__ import annotations

import base64
import io
import json
import re
import select
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import psutil
import pytest

MIB = 1 << 20
PEAK = 384 * MIB  # that a request may take while it is looked at
KEPT = 96 * MIB  # that may remain of all requests together
SERVER = """
import sys
import edge_gemma
from edge_gemma.runtime.serving.app import create_app
from edge_gemma.runtime.serving.process import Server, listen
from edge_gemma.runtime.serving.settings import Settings

settings = Settings(port=0, requests_per_minute=0, header_timeout=1.0, body_timeout=2.0, write_timeout=1.0)
with listen(settings) as bound, edge_gemma.load(sys.argv[1], context=768, threads=1) as model:
    print(bound.getsockname()[1], flush=True)
    Server(create_app(model, settings, "demo")).run(sockets=[bound])
"""


@dataclass(frozen=True)
class Target:
    """A server in a process of its own, with the limits that it has by default but for quicker clocks."""

    port: int
    process: psutil.Process

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def memory(self, field: str = "VmRSS") -> int:
        """Bytes, of /proc/PID/status."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"{field}:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]

    def chat(self, content: Any, **fields: Any) -> httpx.Response:
        body = {"model": "demo", "messages": [{"role": "user", "content": content}], "max_tokens": 2}
        return self.post(json.dumps(body | fields).encode())

    def post(self, body: Any, path: str = "/v1/chat/completions", **headers: str) -> httpx.Response:
        headers = {"content-type": "application/json"} | headers
        return httpx.post(self.url + path, content=body, headers=headers, timeout=60)

    def raw(self, data: bytes, wait: float = 10.0) -> bytes:
        """What is answered to these bytes until the connection ends."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=wait) as connection:
            connection.sendall(data)
            return read_all(connection)


def read_all(connection: socket.socket) -> bytes:
    answer = b""
    try:
        while piece := connection.recv(1 << 16):
            answer += piece
    except ConnectionResetError:
        pass
    return answer


@pytest.fixture(scope="module")
def started(demo_artifact: Path) -> Iterator[Target]:
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, str(demo_artifact)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        target = Target(int(process.stdout.readline()), psutil.Process(process.pid))
        for part in (image(png(64, 64)), audio(wav())):  # what is loaded on use is loaded
            assert target.chat([{"type": "text", "text": "Hello"}, part]).status_code == 200
        before = target.memory()
        yield target
        time.sleep(2)  # a moment after a large request it gives back what that took
        after = target.memory()
        process.terminate()
    assert after < before + KEPT


@pytest.fixture(autouse=True)
def target(started: Target) -> Iterator[Target]:
    """The server, which must answer after a test as before it, and may not have grown much meanwhile."""
    before = started.memory()
    Path(f"/proc/{started.process.pid}/clear_refs").write_text("5")  # sets the peak back
    yield started
    assert httpx.get(f"{started.url}/health", timeout=10).json()["status"] == "ready"
    assert started.chat("Hello").status_code == 200
    assert started.memory("VmHWM") < before + PEAK


def refused(response: httpx.Response, status: int = 400) -> str:
    """The message of an error in OpenAI's form."""
    assert response.status_code == status, response.text[:500]
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert len(error["message"]) < 1000
    return str(error["message"])


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *extra: bytes, rows: int | None = None) -> bytes:
    """A black picture, which is tiny whatever its size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    packer = zlib.compressobj(9)
    pixels = b"".join(packer.compress(bytes(width + 1)) for _ in range(height if rows is None else rows))
    body = chunk(b"IDAT", pixels + packer.flush())
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(extra) + body + chunk(b"IEND", b"")


def image(data: bytes) -> dict[str, Any]:
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def wav(rate: int = 16_000, channels: int = 1, frames: int = 16_000, claimed: int | None = None) -> bytes:
    data = bytes(2 * channels * frames)
    size = len(data) if claimed is None else claimed
    form = struct.pack(
        "<HHIIHH", 1, channels, rate, (rate * 2 * channels) & 0xFFFFFFFF, (2 * channels) & 0xFFFF, 16
    )
    return (
        b"RIFF"
        + struct.pack("<I", 0xFFFFFFFF)
        + b"WAVEfmt \x10\0\0\0"
        + form
        + b"data"
        + struct.pack("<I", size)
        + data
    )


def audio(data: bytes) -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": "wav"}}


# ---- too much


def test_a_prompt_of_10_megabytes(target: Target) -> None:
    assert "more than 400,000 characters" in refused(target.chat("word " * 2 * MIB))


@pytest.mark.parametrize("text", ["a", "😀", "\0", "<start_of_turn>"])
def test_the_longest_prompt(target: Target, text: str) -> None:
    began = time.monotonic()
    assert "the context" in refused(target.chat("x" + text * (200_000 // len(text))))
    assert time.monotonic() - began < 30


def test_a_thousand_messages(target: Target) -> None:
    messages = [{"role": role, "content": "x"} for role in ("user", "assistant")] * 500
    assert "there are 1,000 messages: expected at most 256" in refused(target.chat("", messages=messages))


def test_a_body_that_says_it_is_too_large_is_not_read(target: Target) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999999999\r\n\r\n"
    answer = target.raw(head)
    assert answer.startswith(b"HTTP/1.1 413") and b"the body is larger than 33,554,432 bytes" in answer


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/audio/transcriptions"])
@pytest.mark.parametrize("size", [1, 1 << 16])
def test_an_endless_chunked_body(target: Target, path: str, size: int) -> None:
    kind = "multipart/form-data; boundary=x" if "audio" in path else "application/json"
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n"
    head += "Transfer-Encoding: chunked\r\n\r\n"
    piece = f"{size:x}\r\n".encode() + b"[" * size + b"\r\n"
    start = (
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        if "audio" in path
        else b""
    )
    with socket.create_connection(("127.0.0.1", target.port), timeout=30) as connection:
        connection.sendall(
            head.encode() + (f"{len(start):x}\r\n".encode() + start + b"\r\n" if start else b"")
        )
        sent = 0
        try:
            while sent < 80 * MIB:
                connection.sendall(piece * (1000 if size == 1 else 1))
                sent += len(piece)
        except (BrokenPipeError, ConnectionResetError):
            pass
        answer = read_all(connection)
    assert sent < 80 * MIB
    assert not answer or answer.startswith(
        (b"HTTP/1.1 413", b"HTTP/1.1 408")
    )  # or lost, as it was still sending


def test_many_large_bodies_at_once(target: Target) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += b"Content-Length: 33000000\r\n\r\n"
    answers = []

    def ask() -> None:
        with socket.create_connection(("127.0.0.1", target.port), timeout=20) as connection:
            with suppress(OSError):
                connection.sendall(head + b" " * (30 * MIB))
            answers.append(read_all(connection)[:12])

    threads = [Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 8  # there is room for four of them; who is refused while sending may not hear it
    assert set(answers) <= {b"HTTP/1.1 503", b"HTTP/1.1 408", b""}


def test_headers_without_end(target: Target) -> None:
    answer = target.raw(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100_000)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4")
    answer = target.raw(b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4")


def test_a_form_of_many_parts(target: Target) -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n'
    headers = {"content-type": "multipart/form-data; boundary=x"}
    answer = target.post(part * 100_000 + b"--x--\r\n", "/v1/audio/transcriptions", **headers)
    assert "Too many fields" in refused(answer)


# ---- too slow


def test_slow_headers(target: Target) -> None:
    with socket.create_connection(("127.0.0.1", target.port), timeout=10) as connection:
        began = time.monotonic()
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
        try:
            while time.monotonic() < began + 10:
                connection.sendall(b"X: y\r\n")
                time.sleep(0.1)
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert time.monotonic() - began < 5


def test_a_slow_body(target: Target) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", target.port), timeout=10) as connection:
        connection.sendall(head + b"Content-Length: 1000\r\n\r\n")
        for _ in range(100):
            connection.sendall(b" ")
            if select.select([connection], [], [], 0.1)[0]:
                break
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 408") and b"the body did not come within 2 s" in answer


def test_who_asks_and_does_not_read(target: Target) -> None:
    request = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with socket.create_connection(("127.0.0.1", target.port), timeout=10) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        began = time.monotonic()
        try:
            while time.monotonic() < began + 20:
                connection.sendall(request * 1000)
        except (TimeoutError, BrokenPipeError, ConnectionResetError):
            pass
        assert time.monotonic() - began < 20


def test_many_connections_that_say_nothing(target: Target) -> None:
    connections = [socket.create_connection(("127.0.0.1", target.port), timeout=10) for _ in range(400)]
    for connection in connections:
        with connection:
            assert connection.recv(1) == b""


# ---- malformed


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body is not JSON"),
        (b"{", "the body is not JSON"),
        (b"\xff\xfe{}", "the body is not UTF-8"),
        (b'{"model": "\xc3\x28"}', "the body is not UTF-8"),
        ("\ufeff{}".encode(), "the body is not JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"max_tokens": ' + b"9" * 100_000 + b"}", "the body is not JSON"),
        (b'{"temperature": 1e999}', "temperature is"),
        (b'{"temperature": NaN}', "NaN is no JSON"),
        (b'"' + b"x" * 1000 + b'"', "expected a JSON object"),
        (b'{"messages": {"a": 1}}', "messages is"),
        (b'{"\\u0000\\r\\nX-Evil: 1": 1}', "there is no field"),
    ],
)
def test_a_body_that_is_no_request(target: Target, body: bytes, message: str) -> None:
    answer = target.post(body)
    assert message in refused(answer)
    assert "x-evil" not in answer.headers


def test_half_a_character(target: Target) -> None:
    body = b'{"model": "demo", "messages": [{"role": "user", "content": "\\ud800"}]}'
    assert "half a character" in refused(target.post(body))
    assert (
        "\\ud800" in target.post(b'{"model": "\\ud800", "messages": [{"role": "user", "content": "x"}]}').text
    )


def test_a_compressed_body_is_not_unpacked(target: Target) -> None:
    bomb = zlib.compress(bytes(100 * MIB), 9)
    refused(target.post(bomb, **{"content-encoding": "gzip"}))


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00" + bytes(100),  # TLS
        b"GET / HTTP/1.1\r\n\r\n",  # no Host
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\x00b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX y: a\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    ],
)
def test_what_is_no_http(target: Target, data: bytes) -> None:
    answer = target.raw(data)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4")


def test_a_header_in_a_value(target: Target) -> None:
    for path in ("/%0d%0aX-Evil:%201", "/v1/models/a%0d%0aX-Evil:%201"):
        answer = target.raw(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 404") and b"\r\nX-Evil" not in answer


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "..", "demo/../demo", "demo\0", "%2e%2e%2f"]
)
def test_a_model_is_no_path(target: Target, name: str) -> None:
    assert "there is no model" in refused(target.chat("Hello", model=name), 404)
    answer = target.raw(
        f"GET /v1/models/{name} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    )
    assert answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 307")) and b"root:" not in answer


def test_a_file_name_is_no_path(target: Target, tmp_path: Path) -> None:
    for name in ("../../../../tmp/evil.wav", str(tmp_path / "evil.wav")):
        answer = httpx.post(
            f"{target.url}/v1/audio/transcriptions", files={"file": (name, wav())}, timeout=60
        )
        assert answer.status_code == 200
    assert not list(tmp_path.iterdir()) and not Path("/tmp/evil.wav").exists()


@pytest.mark.parametrize(
    "fields",
    [
        {"stop": ["x" * 8 * MIB] * 3},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}] * 100_000},
        {"tools": [{"type": "function", "function": {"name": "x" * 10_000_000, "parameters": {}}}]},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"$ref": "#"}}}},
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "a", "schema": {"$ref": "file:///etc/passwd"}},
            }
        },
        {"response_format": {"type": "regex", "regex": "(((a{1,1000}){1,1000}){1,1000}){1,1000}"}},
        {"response_format": {"type": "regex", "pattern": "(((a{1,1000}){1,1000}){1,1000}){1,1000}"}},
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {
                    "name": "a",
                    "schema": {"type": "string", "pattern": "(((a{1,1000}){1,1000}){1,1000}){1,1000}"},
                },
            }
        },
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "a", "schema": {"enum": ["x" * 100] * 200_000}},
            }
        },
    ],
)
def test_fields_that_are_expensive(target: Target, fields: dict[str, Any]) -> None:
    began = time.monotonic()
    answer = target.chat("Hello", **fields)
    assert answer.status_code == 200 or refused(answer)
    assert time.monotonic() - began < 20


def test_a_schema_that_is_nested_deeply(target: Target) -> None:
    for depth in (100, 300, 450):
        schema = '{"type":"object","required":["a"],"properties":{"a":' * depth + "{}" + "}}" * depth
        form = f'{{"type":"json_schema","json_schema":{{"name":"a","schema":{schema}}}}}'
        refused(with_field(target, f'"response_format":{form}'))


def with_field(target: Target, field: str) -> httpx.Response:
    """A request with a field that json.dumps would not write."""
    body = '{"model":"demo","messages":[{"role":"user","content":"Hello"}],"max_tokens":2,%s}'
    return target.post((body % field).encode())


@pytest.mark.parametrize("name", ["messages", "response_format", "x"])
def test_nesting_is_refused_at_any_depth(target: Target, name: str) -> None:
    for depth in (10, 400, 930, 960, 980, 2000):
        refused(with_field(target, f'"{name}":' + "[" * depth + "]" * depth))


@pytest.mark.parametrize("value", ["[]", "{}", '"ab"', '{"a":0}', "1.5"])
def test_many_small_values(target: Target, value: str) -> None:
    body = b'{"x":[' + f"{value},".encode() * (30 * MIB // (len(value) + 1)) + b"0]}"
    assert "more than 500,000 brackets and commas" in refused(target.post(body))


# ---- pictures and sounds

GIF = b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\2\2L\1\0;"  # 65,535 x 65,535, in 31 bytes


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (png(60_000, 60_000, rows=10), "pixels"),
        (png(2**31 - 1, 2**31 - 1, rows=0), "the picture|pixels"),
        (png(4999, 4999)[:-100], "damaged"),
        (png(8, 8, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(60 * MIB), 9))), "damaged"),
        (png(8, 8, chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(60 * MIB), 9))), "damaged"),
        (GIF, "pixels"),
        (b"II*\0\x08\0\0\0" + bytes(100), "picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n", "is no picture"),
        (b"\x89PNG\r\n\x1a\n", "picture"),
        (b"", "picture"),
    ],
)
def test_pictures(target: Target, data: bytes, message: str) -> None:
    assert re.search(message, refused(target.chat([{"type": "text", "text": "?"}, image(data)])))


def test_many_pictures_that_are_large_together(target: Target) -> None:
    parts = [{"type": "text", "text": "?"}] + [image(png(4000, 4000))] * 2
    assert "the images have more than 25,000,000 pixels" in refused(target.chat(parts))


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/x.png", "file:///etc/passwd", "/etc/passwd", "data:,x"])
def test_nothing_is_fetched(target: Target, url: str) -> None:
    parts = [{"type": "image_url", "image_url": {"url": url}}]
    assert "nothing is downloaded" in refused(target.chat(parts))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (wav(rate=4_294_967_295), "sample rate|cannot be read"),
        (wav(rate=1), "sample rate"),
        (wav(rate=0), "sample rate|cannot be read"),
        (wav(channels=65_535, frames=2), "cannot be read"),
        (wav(rate=1000, frames=20_000), "is 20.00 s long; expected at most"),
        (wav(rate=768_000, frames=12_000_000), "expected at most"),
        (b"RIFF", "cannot be read"),
    ],
)
def test_sounds(target: Target, data: bytes, message: str) -> None:
    assert re.search(message, refused(target.chat([{"type": "text", "text": "?"}, audio(data)])))


def test_a_sound_whose_header_lies(target: Target) -> None:
    answer = target.chat([{"type": "text", "text": "?"}, audio(wav(claimed=0x7FFF_FF00))])
    assert answer.status_code == 200  # a second is there


def test_hours_of_silence_in_a_small_file(target: Target) -> None:
    import numpy as np
    import soundfile

    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", 16_000, 1, "PCM_16", format="FLAC") as sound:
        for _ in range(70):
            sound.write(np.zeros(60 * 16_000, np.int16))
    assert file.tell() < MIB
    answer = httpx.post(f"{target.url}/v1/audio/transcriptions", files={"file": file.getvalue()}, timeout=60)
    assert "longer than 3600 s" in refused(answer)
    assert "expected at most" in refused(target.chat([{"type": "text", "text": "?"}, audio(file.getvalue())]))
