"""The server under way: what others see of a busy one, of clients that leave, and of its end."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import httpx
import pytest

import edge_gemma
from edge_gemma.runtime.monitoring import Thresholds

http = httpx.Client(timeout=60, limits=httpx.Limits(max_keepalive_connections=0))
CHAT = "/v1/chat/completions"
LONG_ANSWER = {"response_format": {"type": "regex", "regex": "[a-z ]{600}"}, "max_tokens": 700}
WAIT = 20.0


def body(text: str = "What is 3 plus 4?", **fields: Any) -> dict[str, Any]:
    return {"model": "demo", "messages": [{"role": "user", "content": text}], "temperature": 0, **fields}


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT
    while not true():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.005)


class Held:
    """A server whose model is kept busy by a job."""

    def __init__(self, server: Any) -> None:
        self.server = server
        self.began, self.free = Event(), Event()
        self.job = server.service.scheduler.submit(self._work, client="somebody else")
        assert self.began.wait(WAIT)

    def _work(self, model: Any, cancel: Event) -> Iterator[str]:
        self.began.set()
        while not self.free.is_set() and not cancel.is_set():
            time.sleep(0.005)
        yield "done"


@pytest.fixture
def held(make_server: Callable[..., Any]) -> Iterator[Callable[..., Held]]:
    made = []

    def hold(**settings: Any) -> Held:
        made.append(Held(make_server(**settings)))
        return made[-1]

    yield hold
    for one in made:
        one.free.set()


def test_models(server: Any) -> None:
    listed = http.get(f"{server.url}/v1/models").json()
    assert listed["object"] == "list"
    (card,) = listed["data"]
    assert card["id"] == "demo"
    assert http.get(f"{server.url}/v1/models/demo").json() == card
    missing = http.get(f"{server.url}/v1/models/gpt-5")
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "model_not_found"


def test_levels_are_models_too(start_server: Callable[..., Any], made: Callable[[str], Any]) -> None:
    with edge_gemma.load(made("elastic-fp32"), context=64, threads=1) as model:
        server = start_server(model)
        names = [card["id"] for card in http.get(f"{server.url}/v1/models").json()["data"]]
        assert names == ["demo", "demo:small", "demo:large"]
        for name, level in (("demo:small", "small"), ("demo", "large"), ("demo:large", "large")):
            answer = http.post(server.url + CHAT, json=body("hi", max_tokens=2) | {"model": name})
            assert answer.json()["model"] == name
            assert model.level == level
        http.post(server.url + CHAT, json=body("hi", max_tokens=2, level="small"))
        assert model.level == "small"


def test_health(held: Callable[..., Held]) -> None:
    one = held(max_waiting=1)
    url = f"{one.server.url}/health"
    assert http.get(url).json() == {"status": "ready", "alive": True, "ready": True, "reasons": []}
    waiting = one.server.service.scheduler.submit(lambda model, cancel: [])
    found = http.get(url)
    assert found.status_code == 200
    assert found.json()["status"] == "degraded"
    assert found.json()["reasons"] == ["1 prompts wait, and no more may"]
    waiting.cancel()
    one.server.service.monitor.thresholds = Thresholds(memory_bytes=1)
    one.free.set()
    http.post(one.server.url + CHAT, json=body())
    assert "the process took" in http.get(url).json()["reasons"][0]


def test_metrics(make_server: Callable[..., Any]) -> None:
    server = make_server()
    for fields in ({}, {"temperature": 9}):
        http.post(server.url + CHAT, json=body() | fields)
    http.post(f"{server.url}/v1/never", json=body())
    text = http.get(f"{server.url}/metrics").text
    assert 'edge_gemma_requests_total{outcome="ok",route="/v1/chat/completions"} 1.0' in text
    assert 'edge_gemma_requests_total{outcome="refused",route="/v1/chat/completions"} 1.0' in text
    assert "never" not in text
    assert "edge_gemma_waiting 0.0" in text
    assert "edge_gemma_resident_memory_bytes" in text


def test_a_full_queue(held: Callable[..., Held]) -> None:
    one = held(max_waiting=1)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(http.post, one.server.url + CHAT, json=body(), timeout=WAIT)
        until(lambda: one.server.service.scheduler.waiting == 1)
        for stream in (False, True):
            second = http.post(one.server.url + CHAT, json=body(stream=stream))
            assert second.status_code == 503
            assert second.json()["error"]["code"] == "queue_full"
            assert int(second.headers["retry-after"]) >= 1
        one.free.set()
        assert first.result().status_code == 200


def test_time_that_is_up_before_the_turn(held: Callable[..., Held]) -> None:
    one = held(timeout=0.1)
    for stream in (False, True):
        found = http.post(one.server.url + CHAT, json=body(stream=stream), timeout=WAIT)
        assert found.status_code == 504
        assert found.json()["error"]["code"] == "timeout"


@pytest.mark.parametrize("stream", [False, True])
def test_time_that_is_up_while_it_answers(
    make_server: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    """What was said is kept."""
    server = make_server(timeout=0.5)
    slowly(server, monkeypatch)
    found = http.post(server.url + CHAT, json=body(stream=stream, **LONG_ANSWER), timeout=WAIT)
    assert found.status_code == 200
    if stream:
        *chunks, end = [json.loads(line[6:]) for line in found.text.split("\n\n")[:-2]]
        text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
        reason = end["choices"][0]["finish_reason"]
    else:
        choice = found.json()["choices"][0]
        text, reason = choice["message"]["content"], choice["finish_reason"]
    assert 0 < len(text) < 600
    assert reason == "length"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_answer(
    make_server: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    server = make_server()
    cancelled = slowly(server, monkeypatch)
    if stream:
        with http.stream("POST", server.url + CHAT, json=body(stream=True, **LONG_ANSWER)) as response:
            next(response.iter_lines())
    else:
        with pytest.raises(httpx.ReadTimeout):
            http.post(server.url + CHAT, json=body(**LONG_ANSWER), timeout=0.5)
    until(lambda: not server.service.scheduler.busy)
    assert cancelled.is_set() or stream  # of a stream nobody looks at the last piece
    until(lambda: server.service.monitor.summary().outcomes == {"cancelled": 1})


def test_a_client_that_leaves_the_queue_is_not_answered(held: Callable[..., Held]) -> None:
    one = held()
    with pytest.raises(httpx.ReadTimeout):
        http.post(one.server.url + CHAT, json=body(), timeout=0.2)
    until(lambda: one.server.service.scheduler.waiting == 0)


def test_an_answer_may_take_longer_than_the_head_of_a_request(held: Callable[..., Held]) -> None:
    one = held(header_timeout=0.2)
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(http.post, one.server.url + CHAT, json=body())
        until(lambda: one.server.service.scheduler.waiting == 1)
        time.sleep(0.4)
        one.free.set()
        assert answer.result().status_code == 200


def test_many_clients_at_once(make_server: Callable[..., Any]) -> None:
    server = make_server(max_waiting=4, requests_per_minute=0)
    with ThreadPoolExecutor(24) as pool:
        sent = [pool.submit(http.post, server.url + CHAT, json=body(), timeout=60) for _ in range(24)]
        codes = [one.result().status_code for one in sent]
    assert set(codes) <= {200, 503} and codes.count(200) >= 5


def test_clients_take_turns(held: Callable[..., Held]) -> None:
    """One with ten requests does not delay another's first."""
    one = held(api_keys=("greedy", "modest"))
    done: list[str] = []

    def ask(key: str) -> None:
        headers = {"authorization": f"Bearer {key}"}
        assert http.post(one.server.url + CHAT, json=body(), headers=headers, timeout=60).status_code == 200
        done.append(key)

    scheduler = one.server.service.scheduler
    with ThreadPoolExecutor(12) as pool:
        sent = [pool.submit(ask, "greedy") for _ in range(10)]
        until(lambda: scheduler.waiting == 10)
        sent.append(pool.submit(ask, "modest"))
        until(lambda: scheduler.waiting == 11)
        one.free.set()
        for answer in sent:
            answer.result()
    assert done.index("modest") <= 2


def test_the_end_is_graceful(held: Callable[..., Held]) -> None:
    """What is answered is answered to its end; what waits and what comes is refused."""
    one = held()
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(http.post, one.server.url + CHAT, json=body(), timeout=WAIT)
        until(lambda: one.server.service.scheduler.waiting == 1)
        stopping = pool.submit(one.server.stop)
        assert waiting.result().status_code == 503
        assert waiting.result().json()["error"]["code"] == "shutting_down"
        assert not stopping.done()
        with pytest.raises(httpx.ConnectError):
            http.get(one.server.url)
        one.free.set()
        stopping.result(WAIT)
    assert list(one.job) == ["done"]


def test_the_log_has_counts_and_no_content(
    make_server: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "edge_gemma.runtime.serving")
    server = make_server(api_keys=("open sesame".replace(" ", "-"),))
    headers = {"authorization": "Bearer open-sesame"}
    response = http.post(server.url + CHAT, json=body("Turn on the light in the kitchen"), headers=headers)
    http.get(f"{server.url}/v1/%0Ainjected?secret=1", headers=headers)
    until(lambda: len(caplog.messages) >= 2)  # a line is written when its response has been sent
    first, second = caplog.messages
    usage = response.json()["usage"]
    assert f"POST {CHAT} 200 stop prompt={usage['prompt_tokens']}" in first
    assert f"answer={usage['completion_tokens']} waited=0." in first
    assert response.headers["x-request-id"] in first
    assert "GET /v1/%0Ainjected 404 refused" in second
    for word in ("kitchen", "light", "sesame", "secret", "127.0.0.1"):
        assert word not in caplog.text


def test_the_log_has_content_where_it_was_asked_for(
    make_server: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "edge_gemma.runtime.serving")
    server = make_server(log_content=True)
    http.post(server.url + CHAT, json=body("Turn on the light in the kitchen"))
    until(lambda: bool(caplog.messages))
    assert "Turn on the light in the kitchen" in caplog.messages[-1]
    assert "set_light" in caplog.messages[-1]


def slowly(server: Any, monkeypatch: pytest.MonkeyPatch) -> Event:
    """Let the model take its time for each piece; the event is set where an answer was cancelled."""
    real, cancelled = server.model.stream, Event()

    def stream(*args: Any, **options: Any) -> Iterator[Any]:
        for piece in real(*args, **options):
            if piece.finish_reason == "cancelled":
                cancelled.set()
            yield piece
            time.sleep(0.02)

    monkeypatch.setattr(server.model, "stream", stream)
    return cancelled
