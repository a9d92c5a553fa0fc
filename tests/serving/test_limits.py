"""Who may ask, and how much."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from edge_gemma.runtime.serving import limits

http = httpx.Client(timeout=60, limits=httpx.Limits(max_keepalive_connections=0))
BODY = {"model": "demo", "messages": [{"role": "user", "content": "What is 3 plus 4?"}], "max_tokens": 2}
CHAT = "/v1/chat/completions"


def error(response: httpx.Response, status: int) -> Any:
    assert response.status_code == status, response.text
    found = response.json()["error"]
    assert set(found) == {"message", "type", "param", "code"}
    return found


def talk(server: Any, request: bytes, *, more: bytes = b"", every: float = 0.0) -> str:
    """What the server sends until it closes the connection, while `more` goes on being sent."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(request)
        answer = b""
        connection.settimeout(every or 20)
        end = time.monotonic() + 20
        while time.monotonic() < end:
            try:
                if more:
                    connection.sendall(more)
                received = connection.recv(65536)
            except TimeoutError:
                continue
            except OSError:
                break
            if not received:
                break
            answer += received
        else:
            raise AssertionError("the server did not close the connection")
    return answer.decode()


@pytest.fixture
def guarded(make_server: Callable[..., Any]) -> Any:
    return make_server(api_keys=("right", "other"), requests_per_minute=4)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "Basic right"},
        {"authorization": "right"},
        {"authorization": "Bearer"},
        {"authorization": "Bearer right right"},
    ],
)
def test_keys_are_needed(guarded: Any, headers: dict[str, str]) -> None:
    for path in ("/v1/models", "/metrics", "/openapi.json", "/nothing"):
        response = http.get(guarded.url + path, headers=headers)
        assert error(response, 401)["code"] == "invalid_api_key"
        assert response.headers["www-authenticate"] == "Bearer"
    assert error(http.post(guarded.url + CHAT, json=BODY, headers=headers), 401)


def test_with_a_key_the_server_is_open(guarded: Any) -> None:
    for key in ("right", "other"):
        headers = {"authorization": f"bearer {key}"}
        assert http.get(f"{guarded.url}/v1/models", headers=headers).status_code == 200
    assert http.post(guarded.url + CHAT, json=BODY, headers=headers).status_code == 200


def test_what_is_open_without_a_key(guarded: Any) -> None:
    assert http.get(f"{guarded.url}/health").status_code == 200
    assert http.get(guarded.url).status_code == 200


def test_each_key_has_its_own_rate(guarded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(limits, "monotonic", lambda: now)

    def ask(key: str) -> httpx.Response:
        return http.get(f"{guarded.url}/v1/models", headers={"authorization": f"Bearer {key}"})

    for left in (3, 2, 1, 0):
        response = ask("right")
        assert response.status_code == 200
        assert response.headers["x-ratelimit-limit-requests"] == "4"
        assert response.headers["x-ratelimit-remaining-requests"] == str(left)
        assert response.headers["x-ratelimit-reset-requests"] == "60.0s"
        now += 10
    refused = ask("right")
    assert error(refused, 429)["code"] == "rate_limit_exceeded"
    assert refused.headers["retry-after"] == "20"
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert ask("other").status_code == 200
    assert http.get(f"{guarded.url}/health").status_code == 200
    now += 21  # the first request leaves the window, and no other one
    assert [ask("right").status_code for _ in range(2)] == [200, 429]


def test_clients_that_went_away_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(limits, "monotonic", lambda: now)
    limit = limits.RateLimit(lambda *_: None, 5)  # type: ignore[arg-type, return-value]
    for client in range(100):
        limit._recent(str(client)).append(now)
        now += 1
    assert len(limit._times) == 61


def test_a_server_of_one_machine_has_no_other_names(server: Any) -> None:
    """By DNS rebinding, a page of a stranger asks under the stranger's name."""
    for host in ("evil.example", f"evil.example:{server.port}", "127.0.0.1.evil.example", ""):
        response = http.get(f"{server.url}/v1/models", headers={"host": host})
        assert error(response, 403)["code"] == "unknown_host", host
    for host in ("localhost", "LOCALHOST:80", "127.0.0.1", "[::1]:8080", "192.168.1.5", socket.gethostname()):
        assert http.get(f"{server.url}/health", headers={"host": host}).status_code == 200, host


def test_with_keys_any_name_will_do(guarded: Any) -> None:
    assert http.get(f"{guarded.url}/health", headers={"host": "board.home"}).status_code == 200


def test_pages_of_other_sites_get_nothing(server: Any) -> None:
    for origin in ("https://evil.example", "null", "http://[x", f"http://127.0.0.1:{server.port + 1}"):
        response = http.post(server.url + CHAT, json=BODY, headers={"origin": origin})
        assert error(response, 403)["code"] == "foreign_origin", origin
    own = http.post(server.url + CHAT, json=BODY, headers={"origin": server.url})
    assert own.status_code == 200
    assert not [name for name in own.headers if name.startswith("access-control")]
    preflight = http.options(server.url + CHAT, headers={"access-control-request-method": "POST"})
    assert error(preflight, 405)


def test_large_bodies(make_server: Callable[..., Any]) -> None:
    server = make_server(max_body_bytes=2000)
    large = {"content": b'{"model": "demo"' + b" " * 2000, "headers": {"content-type": "application/json"}}
    response = http.post(server.url + CHAT, **large)
    assert error(response, 413)["message"] == "the body is larger than 2,000 bytes: send less"
    assert response.headers["connection"] == "close"
    small = http.post(server.url + CHAT, json=BODY)
    assert small.status_code == 200 and "connection" not in small.headers


def test_bodies_without_a_length(make_server: Callable[..., Any]) -> None:
    """Counted as they come: an endless one ends at the limit."""
    server = make_server(max_body_bytes=2000)

    def pieces(text: bytes) -> Iterator[bytes]:
        for start in range(0, len(text), 50):
            yield text[start : start + 50]

    headers = {"content-type": "application/json"}
    small = http.post(server.url + CHAT, content=pieces(json.dumps(BODY).encode()), headers=headers)
    assert small.status_code == 200
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    chunk = b"40\r\n" + b"x" * 64 + b"\r\n"
    answer = talk(server, f"{head}Transfer-Encoding: chunked\r\n\r\n".encode(), more=chunk, every=0.001)
    assert answer.startswith("HTTP/1.1 413")


def test_an_endless_body_that_nobody_reads_ends_the_connection(make_server: Callable[..., Any]) -> None:
    head = b"POST /nothing HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = talk(make_server(), head, more=b"1\r\nx\r\n", every=0.001)
    assert answer.startswith("HTTP/1.1 404") and "connection: close" in answer


def test_all_bodies_together(make_server: Callable[..., Any]) -> None:
    server = make_server(max_bodies_bytes=1000)
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as holding:
        holding.sendall(f"{head}Content-Length: 1000\r\n\r\n".encode() + b"x" * 950)
        deadline = time.monotonic() + 20
        while (found := http.post(server.url + CHAT, json=BODY)).status_code == 200:
            assert time.monotonic() < deadline
        assert error(found, 503)["code"] == "overloaded"
        assert found.headers["retry-after"] == "5"
    while http.post(server.url + CHAT, json=BODY).status_code != 200:
        assert time.monotonic() < deadline


def test_a_slow_body(make_server: Callable[..., Any]) -> None:
    server = make_server(body_timeout=0.3)
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    answer = talk(server, f"{head}Content-Length: 1000\r\n\r\n".encode(), more=b" ", every=0.05)
    assert answer.startswith("HTTP/1.1 408") and "did not come within 0.3 s" in answer


def test_a_slow_head(make_server: Callable[..., Any]) -> None:
    server = make_server(header_timeout=0.3)
    assert talk(server, b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-", more=b"y", every=0.05) == ""
    assert talk(server, b"") == ""
    with httpx.Client(base_url=server.url) as client:  # a connection that is used has time again
        for _ in range(3):
            assert client.get("/health").status_code == 200
            time.sleep(0.2)


def test_a_client_that_reads_nothing_is_dropped(make_server: Callable[..., Any]) -> None:
    server = make_server(write_timeout=0.3)
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        deaf.connect(("127.0.0.1", server.port))
        deaf.setblocking(False)
        request = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
        end = time.monotonic() + 20
        with pytest.raises(OSError, match="reset|Broken pipe"):
            while time.monotonic() < end:
                try:
                    deaf.sendall(request)
                except BlockingIOError:
                    time.sleep(0.01)
    assert http.get(f"{server.url}/health").status_code == 200
