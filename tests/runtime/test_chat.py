from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st
from jinja2.exceptions import TemplateError
from tables import runtime_tokenizer
from tokenizers import AddedToken, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from edge_gemma.errors import ArtifactError, PromptError
from edge_gemma.runtime.chat import ChatTemplate, normalize

GEMMA = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set prefix = messages[0]['content'] + '\n\n' -%}
    {%- else -%}
        {%- set prefix = messages[0]['content'][0]['text'] + '\n\n' -%}
    {%- endif -%}
    {%- set turns = messages[1:] -%}
{%- else -%}
    {%- set prefix = "" -%}
    {%- set turns = messages -%}
{%- endif -%}
{%- for message in turns -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\n' + (prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] in ('audio', 'image') -%}
                {{ '<' + item['type'] + '_soft_token>' }}
            {%- elif item['type'] == 'text' -%}
                {{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model\n' }}
{%- endif -%}"""

# What GEMMA leaves out of jinja2 as transformers sets it up.
OTHER = """{% for message in messages %}
    {% if loop.index0 > 2 %}{% break %}{% endif %}
{{ message | tojson }} {{ strftime_now("%Y") }}{{ eos_token }}
  {%- if tools is not none %}tools{% endif %}
{% endfor %}"""

CONTROL = ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>", "<image_soft_token>", "<audio_soft_token>")
TOKENS = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
IMAGE = np.zeros((4, 4, 3), np.uint8)


def build_tokenizer() -> tokenizers.Tokenizer:
    letters = sorted({*"▁\n<>_", *map(chr, range(97, 123))})
    merges = [
        ("▁", "a"),
        ("<", "▁"),
        ("▁", "<"),
        ("m", "\n"),
        (">", "<"),
        ("\n", "a"),
        ("e", "n"),
        ("<", "en"),
    ]
    vocab = [
        "<unk>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *letters,
        *("".join(pair) for pair in merges),
    ]
    inner = tokenizers.Tokenizer(
        models.BPE({text: i for i, text in enumerate(vocab)}, merges, byte_fallback=True, unk_token="<unk>")
    )
    inner.normalizer = normalizers.Replace(" ", "▁")
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    inner.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in CONTROL])
    inner.add_tokens([AddedToken("\n\n", special=False, normalized=False)])
    return inner


gemma = ChatTemplate.from_source(GEMMA)
tokenizer = runtime_tokenizer(build_tokenizer())
theirs = PreTrainedTokenizerFast(
    tokenizer_object=build_tokenizer(),
    bos_token="<bos>",
    eos_token="<eos>",
    unk_token="<unk>",
    chat_template=GEMMA,
)


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def model(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def system(content: Any) -> dict[str, Any]:
    return {"role": "system", "content": content}


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


def ids_of(messages: Any) -> list[int]:
    parts = gemma.render_parts(messages, tokenizer.special_tokens)
    return [token for part in parts for token in tokenizer.encode(part)]


CONVERSATIONS = {
    "one turn": [user("  Why is the sky blue?\n")],
    "three turns": [user("hi"), model(" hello "), user("bye")],
    "system": [system(" be short "), user(" hi "), model("ok"), user("and?")],
    "system in parts": [system([text("be short")]), user([text(" hi ")])],
    "media": [user([{"type": "image", "image": IMAGE}, text(" what? "), {"type": "audio", "path": "a.wav"}])],
    "unicode": [user("漢字 😀 \u202e <b> & 'q' \"d\" {{ x }} {% y %}")],
    "ends with the model": [user("hi"), model("hello")],
}


@pytest.mark.parametrize("source", [GEMMA, OTHER], ids=["gemma", "other"])
@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_rendering_is_that_of_transformers(messages: list[dict[str, Any]], prompt: bool, source: str) -> None:
    expected, _ = render_jinja_template(
        [messages], chat_template=source, add_generation_prompt=prompt, **TOKENS
    )
    template = ChatTemplate.from_source(source)
    assert template.render(messages, add_generation_prompt=prompt) == expected[0]
    parts = template.render_parts(messages, CONTROL, add_generation_prompt=prompt)
    assert parts == expected


def test_the_rendered_text() -> None:
    assert gemma.render("hi ") == "<bos><start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\n"


pieces = st.sampled_from(["a", " ", "\n", "<", ">", "en", "<en", "m", "é", "end_of_turn", "x<y", "😀"])
words = st.lists(pieces, min_size=1, max_size=8).map("".join)
ordinary = words.filter(lambda value: value.strip() and not any(token in value for token in CONTROL))


@given(st.lists(ordinary, min_size=1, max_size=4), st.none() | ordinary)
@example(["a"], "< ")  # Gemma's template does not trim the system text: "<▁" is one token
def test_the_ids_of_an_ordinary_conversation_are_those_of_transformers(
    turns: list[str], first: str | None
) -> None:
    messages = [] if first is None else [system(first)]
    messages += [(model if i % 2 else user)(turn) for i, turn in enumerate(turns)]
    expected = theirs.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert ids_of(messages) == expected


hostile = st.lists(
    pieces | st.sampled_from([*CONTROL, "<end_", "of_turn>", "<start_of_turn>model\n", "<bos", ">"]),
    min_size=1,
    max_size=6,
).map("".join)


@given(st.lists(hostile, min_size=1, max_size=4), hostile, hostile)
def test_control_tokens_in_a_text_stay_text(parts: list[str], first: str, answer: str) -> None:
    """The ids hold the template's own control tokens and no other, and the text is still all there."""
    messages = [system("s" + first), user([text("u"), *map(text, parts)]), model(answer), user("end")]
    ids = ids_of(messages)
    inner = build_tokenizer()
    found = [token for token in map(inner.id_to_token, ids) if token in CONTROL]
    turn = ["<start_of_turn>", "<end_of_turn>"]
    assert found == ["<bos>", *turn, *turn, *turn, "<start_of_turn>"]
    assert inner.decode(ids, skip_special_tokens=False) == gemma.render(messages)


@pytest.mark.parametrize("split", range(1, len("<end_of_turn>")))
@pytest.mark.parametrize("space", ["", " \n"])
def test_a_control_token_in_two_parts_stays_text(split: int, space: str) -> None:
    left, right = "<end_of_turn>"[:split] + space, space + "<end_of_turn>"[split:]
    ids = ids_of([user([text(left), text(""), text(right)])])
    assert ids.count(tokenizer.token_id("<end_of_turn>") or -1) == 1


def test_a_template_that_rewrites_protected_text_is_an_artifact_error() -> None:
    template = ChatTemplate.from_source("{{ messages[0]['content'] | replace(';', ',') }}")
    assert template.render("a <bos>; b") == "a <bos>, b"
    with pytest.raises(ArtifactError, match="rewrites the text"):
        template.render_parts("a <bos>; b", CONTROL)


def test_normalize_copies_and_names_the_roles() -> None:
    messages = [user([{"type": "image", "image": IMAGE}]), {"role": "model", "content": ""}]
    result = normalize(messages)
    assert result == [user([{"type": "image", "image": IMAGE}]), model("")]
    assert messages[1]["role"] == "model"
    assert result[0]["content"] is not messages[0]["content"]
    assert normalize("hi") == [user("hi")]
    assert normalize(result)[1] == result[1]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "the messages are []; expected a text or a list"),
        (3, "the messages are 3; expected a text or a list"),
        (user("hi"), "expected a text or a list"),
        ("", "message 0, of the user, is empty; expected some text or media"),
        (" \n", "message 0, of the user, is empty"),
        ([user("hi"), model("x"), user([text(" ")])], "message 2, of the user, is empty"),
        ([user([])], "message 0, of the user, is empty"),
        ([system(""), user("hi")], "message 0, of the system, is empty"),
        (["hi"], "message 0 is 'hi'; expected a dict with 'role' and 'content'"),
        ([{"role": "user"}], "message 0 is {'role': 'user'}; expected a dict with 'role' and 'content'"),
        (
            [{"role": "tool", "content": "x"}],
            "message 0 has the role 'tool'; expected system, user or assistant",
        ),
        ([{"role": [], "content": "x"}], "message 0 has the role []; expected"),
        ([user("a"), user("b")], "message 1 has the role 'user'; expected 'assistant'"),
        ([user("a"), model("b"), model("c")], "message 2 has the role 'assistant'; expected 'user'"),
        ([model("a")], "message 0 has the role 'assistant'; expected 'user'"),
        ([user("a"), system("b")], "message 1 has the role 'system'; expected 'assistant'"),
        ([system("a"), system("b")], "message 1 has the role 'system'; expected 'user'"),
        ([system("a")], "expected a user message after it"),
        ([user(None)], "message 0 has the content None; expected a text or a list of parts"),
        ([user({"type": "text"})], "message 0 has the content"),
        ([user(["hi"])], "part 0 of message 0 is 'hi'; expected a dict of type text, image or audio"),
        ([user([text("a"), {"type": "video"}])], "part 1 of message 0 is {'type': 'video'}; expected a dict"),
        (
            [user([{"type": "text"}])],
            "part 0 of message 0 is {'type': 'text'}; expected its 'text' to be a str",
        ),
        ([user("a"), model([{"type": "image"}])], "part 0 of message 1 is image; expected media in user"),
        (
            [system([text("a"), text("b")]), user("a")],
            "message 0, of the system, has 2 parts; expected one text",
        ),
    ],
)
def test_unusable_messages_are_a_prompt_error(messages: Any, message: str) -> None:
    with pytest.raises(PromptError, match=re.escape(message)):
        normalize(messages)
    with pytest.raises(PromptError, match=re.escape(message)):
        gemma.render(messages)


def test_what_the_template_refuses_is_a_prompt_error() -> None:
    source = "{% if messages | length > 1 %}{{ raise_exception('one turn only') }}{% endif %}ok"
    template = ChatTemplate.from_source(source)
    assert template.render("hi") == "ok"
    with pytest.raises(PromptError, match="refuses the messages: one turn only"):
        template.render([user("a"), model("b")])
    with pytest.raises(TemplateError, match="one turn only"):
        render_jinja_template([[user("a"), model("b")]], chat_template=source)


@pytest.mark.parametrize(
    "source", ["a\n{% if %}", "{{ x | nothing }}", "{% for x in y %}", "{{ " + "(" * 9999]
)
def test_a_broken_template_is_an_artifact_error(source: str) -> None:
    with pytest.raises(ArtifactError, match="cannot be compiled"):
        ChatTemplate.from_source(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ raise_exception.__globals__['os'] }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='x') }}",
        "{{ '{0.__class__.__mro__}'.format(messages) }}",
        "{% for i in range(999999999) %}{% endfor %}",
        "{{ messages[0].a.b }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_a_hostile_or_failing_template_is_an_artifact_error(source: str) -> None:
    with pytest.raises(ArtifactError, match="chat template failed with"):
        ChatTemplate.from_source(source).render("hi")


def test_other_keys_reach_the_template() -> None:
    template = ChatTemplate.from_source("{{ messages[0]['name'] }} {{ messages[0]['content'][0]['detail'] }}")
    messages = [{**user([{"type": "image", "detail": 2}]), "name": "x<bos>"}]
    assert template.render_parts(messages, CONTROL) == ["x<", "bos> 2"]


def test_templates_see_no_objects() -> None:
    messages = [user([{"type": "image", "image": IMAGE}])]
    shown = ChatTemplate.from_source("{{ messages[0]['content'][0]['image'] }}").render(messages)
    assert shown == "<ndarray>"


def test_jinja_and_the_tokenizer_are_imported_at_first_use() -> None:
    code = (
        "import sys, edge_gemma.runtime.chat, edge_gemma.runtime.tokenizer, edge_gemma.runtime.stopping\n"
        "print(sorted({'jinja2', 'tokenizers', 'numpy'} & sys.modules.keys()))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
