"""/v1/chat/completions, through OpenAI's own client."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

openai = pytest.importorskip("openai", reason="openai, which this test needs, is not installed")

http = httpx.Client(timeout=60, limits=httpx.Limits(max_keepalive_connections=0))
SAMPLES = Path(__file__).parents[2] / "demo" / "samples"
SAID = json.loads((SAMPLES / "samples.json").read_text("utf-8"))
COMMAND = "Turn on the light in the kitchen"
SET_LIGHT = {
    "type": "function",
    "function": {
        "name": "set_light",
        "description": "Switches a light.",
        "parameters": {
            "type": "object",
            "properties": {"room": {"type": "string"}, "state": {"enum": ["on", "off"]}},
            "required": ["room", "state"],
        },
    },
}
SCHEMA = {
    "type": "object",
    "properties": {"room": {"enum": ["kitchen", "cellar"]}, "level": {"enum": [1, 2, 3]}},
    "required": ["room", "level"],
    "additionalProperties": False,
}
LONG = {"type": "regex", "regex": "[a-z ]{400}"}


@pytest.fixture(scope="module")
def client(server: Any) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def ask(client: Any) -> Callable[..., Any]:
    """A greedy answer to a text or to messages."""

    def ask(prompt: Any, **options: Any) -> Any:
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        options = {"model": "demo", "temperature": 0, "max_tokens": 60, **options}
        return client.chat.completions.create(messages=messages, **options)

    return ask


def media(kind: str, name: str, text: str) -> list[dict[str, Any]]:
    data = base64.b64encode((SAMPLES / name).read_bytes()).decode()
    part: dict[str, Any] = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
    if kind == "audio":
        part = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
    return [{"role": "user", "content": [part, {"type": "text", "text": text}]}]


def joined(chunks: list[Any]) -> str:
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


def error(call: Callable[[], Any], status: int = 400) -> Any:
    with pytest.raises(openai.APIStatusError) as caught:
        call()
    assert caught.value.status_code == status
    assert set(caught.value.body) == {"message", "type", "param", "code"}
    return caught.value


def test_an_answer(ask: Callable[..., Any], server: Any) -> None:
    answer = ask(COMMAND)
    expected = server.model.generate(COMMAND, temperature=0)
    choice = answer.choices[0]
    assert choice.message.content == expected.text != ""
    assert (choice.message.role, choice.finish_reason) == ("assistant", "stop")
    assert (answer.object, answer.model) == ("chat.completion", "demo")
    assert answer.usage.prompt_tokens == expected.statistics.prompt_tokens
    assert answer.usage.completion_tokens == expected.statistics.generated_tokens
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream_is_the_same_answer(ask: Callable[..., Any]) -> None:
    chunks = list(ask(COMMAND, stream=True))
    assert joined(chunks) == ask(COMMAND).choices[0].message.content
    assert len(chunks) > 4
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert len({c.id for c in chunks}) == 1
    assert all("usage" not in c.model_dump(exclude_unset=True) for c in chunks)


def test_usage_of_a_stream(ask: Callable[..., Any]) -> None:
    *chunks, last = ask(COMMAND, stream=True, stream_options={"include_usage": True})
    assert last.choices == []
    assert last.usage == ask(COMMAND).usage.model_copy(
        update={"prompt_tokens_details": last.usage.prompt_tokens_details}
    )
    assert all(c.usage is None for c in chunks)


def test_what_is_reused_of_a_conversation_is_counted(ask: Callable[..., Any]) -> None:
    asked = [{"role": "user", "content": COMMAND}]
    said = ask(asked)
    following = ask(
        [
            *asked,
            {"role": "assistant", "content": said.choices[0].message.content},
            {"role": "user", "content": "Turn it off"},
        ]
    )
    usage = following.usage
    assert said.usage.prompt_tokens <= usage.prompt_tokens_details.cached_tokens < usage.prompt_tokens


def test_a_picture(ask: Callable[..., Any]) -> None:
    answer = ask(media("image", "picture-2.png", "Describe the image."))
    assert answer.choices[0].message.content == SAID["picture-2.png"]["description"]


def test_a_clip(ask: Callable[..., Any]) -> None:
    from edge_gemma.runtime.tasks import transcription_prompt

    answer = ask(media("audio", "english-1.wav", transcription_prompt("English")))
    assert answer.choices[0].message.content == SAID["english-1.wav"]["English"]


def test_the_limit_of_tokens(ask: Callable[..., Any]) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        answer = ask(COMMAND, **{"max_tokens": openai.omit, name: 3})
        assert answer.usage.completion_tokens == 3
        assert answer.choices[0].finish_reason == "length"


def test_stop_strings(ask: Callable[..., Any]) -> None:
    whole = ask(COMMAND).choices[0].message.content
    for stop in ('"room"', ["never", '"room"']):
        answer = ask(COMMAND, stop=stop).choices[0]
        assert answer.message.content == whole[: whole.index('"room"')]
        assert answer.finish_reason == "stop"


def test_a_seed_repeats(ask: Callable[..., Any]) -> None:
    def sampled(seed: int) -> str:
        answer = ask(COMMAND, temperature=2, top_p=1, seed=seed, extra_body={"top_k": 0})
        return str(answer.choices[0].message.content)

    assert sampled(1) == sampled(1)
    assert len({sampled(seed) for seed in (1, 2, 3, -1)}) > 1


def test_our_own_options_reach_the_model(ask: Callable[..., Any], server: Any) -> None:
    options = {"top_k": 1, "min_p": 0.5, "repetition_penalty": 1.3, "speculate": "lookup"}
    answer = ask(COMMAND, temperature=2, extra_body=options)
    expected = server.model.generate(COMMAND, temperature=2, max_new_tokens=60, **options)
    assert answer.choices[0].message.content == expected.text


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called(ask: Callable[..., Any], stream: bool) -> None:
    answer = ask(COMMAND, tools=[SET_LIGHT], stream=stream)
    if stream:
        chunks = list(answer)
        (call,) = [c for chunk in chunks for c in chunk.choices[0].delta.tool_calls or []]
        assert call.index == 0
        assert not joined(chunks)
        finish_reason = chunks[-1].choices[0].finish_reason
    else:
        (call,), finish_reason = answer.choices[0].message.tool_calls, answer.choices[0].finish_reason
        assert answer.choices[0].message.content is None
    assert (call.type, call.function.name) == ("function", "set_light")
    assert json.loads(call.function.arguments) == {"room": "kitchen", "state": "on"}
    assert call.id.startswith("call_")
    assert finish_reason == "tool_calls"


def test_the_result_of_a_tool_goes_back(ask: Callable[..., Any]) -> None:
    asked = [{"role": "user", "content": COMMAND}]
    message = ask(asked, tools=[SET_LIGHT]).choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": '{"ok": true}'}
    assert ask([*asked, message, result], tools=[SET_LIGHT]).choices[0].finish_reason in (
        "stop",
        "tool_calls",
    )
    unknown = {**result, "tool_call_id": "call_of_nobody"}
    assert "the result of no call" in str(error(lambda: ask([*asked, message, unknown], tools=[SET_LIGHT])))


def test_what_is_no_call_is_a_text(ask: Callable[..., Any]) -> None:
    """Also a call of what there is not."""
    other = {"type": "function", "function": {"name": "other", "parameters": {"type": "object"}}}
    for options in ({"tools": [other]}, {"tools": [SET_LIGHT], "tool_choice": "none"}):
        answer = ask(COMMAND, **options).choices[0]
        assert "set_light" in answer.message.content
        assert (answer.message.tool_calls, answer.finish_reason) == (None, "stop")
        assert "set_light" in joined(list(ask(COMMAND, stream=True, **options)))


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "set_alarm"}}])
def test_a_call_can_be_required(ask: Callable[..., Any], choice: Any) -> None:
    alarm = {
        "type": "function",
        "function": {"name": "set_alarm", "parameters": SCHEMA},
    }
    tools = [alarm] if choice == "required" else [SET_LIGHT, alarm]
    answer = ask("What is 3 plus 4?", tools=tools, tool_choice=choice, max_tokens=200)
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "set_alarm"
    jsonschema.validate(json.loads(call.function.arguments), SCHEMA)


def test_a_schema_is_kept(ask: Callable[..., Any]) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA, "strict": True}}
    answer = ask("Where?", temperature=1.5, seed=1, response_format=wanted)
    jsonschema.validate(json.loads(answer.choices[0].message.content), SCHEMA)
    assert answer.choices[0].finish_reason == "stop"


def test_text_is_a_response_format(ask: Callable[..., Any]) -> None:
    expected = ask(COMMAND).choices[0].message.content
    assert ask(COMMAND, response_format={"type": "text"}).choices[0].message.content == expected


def test_messages_of_one_role_are_one(ask: Callable[..., Any], server: Any) -> None:
    answer = ask(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "developer", "content": [{"type": "text", "text": "Be kind."}]},
            {"role": "user", "content": COMMAND},
            {"role": "user", "content": [{"type": "text", "text": "Please."}]},
        ]
    )
    expected = server.model.generate(
        [
            {"role": "system", "content": "Be brief.\n\nBe kind."},
            {"role": "user", "content": f"{COMMAND}\n\nPlease."},
        ],
        temperature=0,
    )
    assert answer.usage.prompt_tokens == expected.statistics.prompt_tokens
    assert answer.choices[0].message.content == expected.text


def test_what_changes_nothing_is_ignored(ask: Callable[..., Any]) -> None:
    expected = ask(COMMAND).choices[0].message.content
    harmless = {
        "user": "me",
        "metadata": {"a": "b"},
        "store": False,
        "n": 1,
        "logprobs": False,
        "presence_penalty": 0.0,
        "logit_bias": {},
        "stop": None,
    }
    assert ask(COMMAND, **harmless).choices[0].message.content == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n": 2}, "n is 2: expected 1"),
        ({"n": True}, "n is true: expected 1"),
        ({"logprobs": True}, "logprobs is true: expected false"),
        ({"logit_bias": {"1": 5}}, "logit_bias"),
        ({"frequency_penalty": 0.5}, "frequency_penalty is 0.5: expected 0"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"temperature": 2.5}, "temperature is 2.5: expected a number from 0 to 2"),
        ({"temperature": "hot"}, 'temperature is "hot"'),
        ({"max_tokens": 0}, "max_tokens is 0: expected a whole number from 1"),
        ({"seed": 0.5}, "seed is 0.5"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"tool_choice": "required"}, "there are no tools"),
        ({"tools": [SET_LIGHT], "tool_choice": {"function": {"name": "x"}}}, "tool_choice"),
        ({"tools": [SET_LIGHT], "response_format": {"type": "json_object"}}, "leaves no room for calls"),
        ({"tools": [{"type": "function"}]}, "a tool is a dict without a function"),
        ({"response_format": {"type": "xml"}}, "the response format"),
        ({"extra_body": {"level": "small"}}, "not elastic"),
        ({"extra_body": {"speculate": "level"}}, "speculate is 'level'"),
        ({"extra_body": {"wisdom": 11}}, "there is no field 'wisdom'"),
    ],
)
def test_what_cannot_be_done_is_refused(ask: Callable[..., Any], fields: Any, message: str) -> None:
    assert message in str(error(lambda: ask(COMMAND, **fields)).body["message"])


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "expected a list with a message"),
        ([{"role": "owner", "content": "hi"}], "expected a message of the role system, developer, user"),
        ([{"role": "user"}], "messages[0] has no content"),
        ([{"role": "user", "content": ""}], "is empty"),
        ([{"role": "user", "content": 5}], "messages[0].content is 5"),
        ([{"role": "user", "content": "half \ud83d"}], "holds half a character"),
        ([{"role": "assistant", "content": "hi"}], "the last message must be of the role user or tool"),
        ([{"role": "user", "content": [{"type": "video"}]}], "expected a part of type text, image_url"),
        ([{"role": "tool", "content": "7"}], "messages[0] has no tool_call_id"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://a.b/c.png"}}]}],
            "nothing is downloaded",
        ),
        (
            [
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}],
                }
            ],
            "nothing is downloaded",
        ),
        (
            [
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,@@"}}],
                }
            ],
            "is not base64",
        ),
        (
            [
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}}],
                }
            ],
            "no picture that Pillow",
        ),
        (
            [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "QUJD"}}]}],
            "cannot be read as a sound",
        ),
        (
            [
                {"role": "user", "content": "hi"},
                {"role": "assistant", "content": media("image", "picture-1.png", "")[0]["content"]},
                {"role": "user", "content": "hi"},
            ],
            "belong into messages of the user",
        ),
        ([{"role": "user", "content": "word " * 1000}], "the context 768"),
        ([{"role": "user", "content": "hi"}] * 257, "there are 257 messages: expected at most 256"),
        ([{"role": "user", "content": "x" * 500_000}], "more than 400,000 characters"),
    ],
)
def test_messages_that_cannot_be_used(server: Any, messages: Any, message: str) -> None:
    body = json.dumps({"model": "demo", "messages": messages, "max_tokens": 5})
    found = http.post(
        f"{server.url}/v1/chat/completions", content=body, headers={"content-type": "application/json"}
    )
    assert found.status_code == 400, found.text
    assert message in found.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 400, "is not JSON"),
        (b'{"model": "demo\xff"}', 400, "is not UTF-8"),
        (b"[1]", 400, "expected a JSON object"),
        (b'{"temperature": NaN}', 400, "NaN is no JSON"),
        (b'{"a":' * 100_000, 400, "nested too deeply"),
        (b'{"seed": ' + b"9" * 5000 + b"}", 400, "is not JSON"),
        (b"{}", 400, "model is missing"),
        (b'{"model": "gpt-5", "messages": []}', 404, "there is no model 'gpt-5': this server has demo"),
    ],
)
def test_bodies_that_cannot_be_used(server: Any, body: bytes, status: int, message: str) -> None:
    url, headers = f"{server.url}/v1/chat/completions", {"content-type": "application/json"}
    found = http.post(url, content=body, headers=headers)
    assert found.status_code == status, found.text
    assert message in found.json()["error"]["message"]
    assert http.post(url, content=body).status_code == 415


def test_images_count_together(make_server: Callable[..., Any]) -> None:
    server = make_server(max_image_pixels=3 * 64 * 64)
    (message,) = media("image", "picture-1.png", "Describe the image.")
    message["content"] *= 40
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        found = error(lambda: client.chat.completions.create(model="demo", messages=[message]))
    assert "pixels: scale them down" in str(found)


def test_filters(make_server: Callable[..., Any]) -> None:
    """A refusal is an answer, of the prompt as of what would have been said."""
    from edge_gemma.runtime.safety import KeywordFilter

    server = make_server(filters=(KeywordFilter(["volcano", "set_light"]),))
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:

        def ask(text: str, **options: Any) -> Any:
            messages: Any = [{"role": "user", "content": text}]
            return client.chat.completions.create(model="demo", messages=messages, temperature=0, **options)

        prompt = ask("Build me a volcano").choices[0]
        assert prompt.finish_reason == "content_filter"
        assert (prompt.message.content, prompt.message.refusal) == (
            None,
            "the prompt is refused: it has keyword 1 of 2",
        )
        answer = ask(COMMAND).choices[0]
        assert answer.finish_reason == "content_filter"
        assert "set_light" not in answer.message.content
        for text in ("Build me a volcano", COMMAND):
            chunks = list(ask(text, stream=True))
            assert chunks[-1].choices[0].finish_reason == "content_filter"
            assert "set_light" not in joined(chunks)


def test_an_error_in_a_stream_is_an_event(make_server: Callable[..., Any], monkeypatch: Any) -> None:
    from edge_gemma.errors import PromptError

    server = make_server()
    real = server.model.stream

    def breaks(*args: Any, **options: Any) -> Iterator[Any]:
        yield next(real(*args, **options))
        raise PromptError("the grammar has become too complex")

    monkeypatch.setattr(server.model, "stream", breaks)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        messages: Any = [{"role": "user", "content": COMMAND}]
        chunks = client.chat.completions.create(model="demo", messages=messages, stream=True)
        with pytest.raises(openai.APIError, match="the grammar has become too complex"):
            list(chunks)


def test_what_no_one_expected_tells_nothing(make_server: Callable[..., Any], monkeypatch: Any) -> None:
    server = make_server()

    def breaks(*args: Any, **options: Any) -> Any:
        raise ZeroDivisionError("the secret of life")

    monkeypatch.setattr(server.model, "stream", breaks)
    body = {"model": "demo", "messages": [{"role": "user", "content": "hi"}]}
    for stream in (False, True):
        found = http.post(f"{server.url}/v1/chat/completions", json=body | {"stream": stream})
        assert found.status_code == 500
        assert found.json()["error"]["message"] == "the server failed: its log tells more"
        assert found.headers["x-request-id"].startswith("req_")
