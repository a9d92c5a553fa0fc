"""Answers of a given form: the demo's model, and grammars over its tokenizer with random logits."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made import needs

import edge_gemma
from edge_gemma import Model
from edge_gemma.cli import run
from edge_gemma.errors import BudgetError, DependencyError, PromptError
from edge_gemma.planning import ESTIMATE_ERROR
from edge_gemma.runtime.sampling import SamplingOptions, make_sampler
from edge_gemma.runtime.structured import Constraint, Grammars, read_format

needs("llguidance")
jsonschema = needs("jsonschema")

PROMPT = "Turn the kitchen lights to 40 percent."
WILD: dict[str, Any] = {"temperature": 1.5, "top_k": 0, "top_p": 1.0}
RUNS = 50  # of each schema
SCHEMAS: dict[str, tuple[Any, str]] = {  # and a longest text: no answer has more tokens than it has bytes
    "nested objects": (
        {
            "type": "object",
            "properties": {
                "at": {
                    "type": "object",
                    "properties": {"x": {"type": "integer", "minimum": -9, "maximum": 9}},
                    "required": ["x"],
                    "additionalProperties": False,
                }
            },
            "required": ["at"],
            "additionalProperties": False,
        },
        '{"at":{"x":-9}}',
    ),
    "optional properties": (
        {
            "type": "object",
            "properties": {"a": {"type": "boolean"}, "b": {"type": "null"}},
            "additionalProperties": False,
        },
        '{"a":false,"b":null}',
    ),
    "array": (
        {
            "type": "array",
            "items": {"type": "integer", "minimum": 0, "maximum": 100},
            "minItems": 1,
            "maxItems": 3,
        },
        "[100,100,100]",
    ),
    "enum": ({"enum": ["on", "off", 3, None, True]}, "false"),
    "unicode": ({"enum": ["é", "日本", "naïve ☃", "😀"]}, '"naïve ☃"'),
    "number": ({"type": "number", "minimum": -2, "maximum": 2, "multipleOf": 0.25}, "-1.75"),
    "string": ({"type": "string", "minLength": 1, "maxLength": 8}, '"' + 8 * "\\u0000" + '"'),
    "pattern": ({"type": "string", "pattern": "^[A-Z]{2}-\\d{3}[à-ü]?$"}, '"AB-123é"'),
    "null or": (
        {"anyOf": [{"type": "null"}, {"type": "string", "format": "date"}, {"type": "boolean"}]},
        '"2000-01-01"',
    ),
    "references": (
        {
            "$defs": {"colour": {"type": "string", "enum": ["red", "blue"]}},
            "type": "array",
            "prefixItems": [{"$ref": "#/$defs/colour"}, {"type": ["integer", "null"], "const": 7}],
            "items": False,
            "minItems": 2,
        },
        '["blue",7]',
    ),
}


@pytest.fixture(scope="module")
def artifact(made: Callable[[str], Path]) -> Path:
    return made("demo-text-fp32")


@pytest.fixture(scope="module")
def model(artifact: Path) -> Iterator[Model]:
    with edge_gemma.load(artifact, context=256, threads=1) as model:
        yield model


def of_schema(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


def of_regex(regex: str) -> dict[str, Any]:
    return {"type": "regex", "regex": regex}


def of_choices(*choices: str) -> dict[str, Any]:
    return {"type": "choice", "choices": list(choices)}


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_answer_is_valid_and_ends(name: str, model: Model) -> None:
    """Acceptance 2 of issue 7: ten bounded schemas, 50 answers each, at temperature 1.5."""
    schema, longest = SCHEMAS[name]
    texts = set()
    for seed in range(RUNS):
        answer = model.generate(PROMPT, response_format=of_schema(schema), seed=seed, **WILD)
        assert answer.finish_reason == "stop"
        assert answer.statistics.generated_tokens <= len(longest.encode()) + 1  # a stop token, at most
        jsonschema.validate(json.loads(answer.text), schema)
        texts.add(answer.text)
    assert len(texts) > 1  # it is not one answer again and again


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0},
        {"speculate": "lookup"},
        {"repetition_penalty": 3.0},
        {"top_k": 1},
        {"min_p": 0.5},
    ],
    ids=str,
)
def test_it_holds_with_every_option(options: dict[str, Any], model: Model) -> None:
    schema = {
        "type": "array",
        "items": {"enum": ["kitchen", "lights", "percent"]},
        "minItems": 6,
        "maxItems": 6,
    }
    answer = model.generate(PROMPT, response_format=of_schema(schema), seed=3, **WILD | options)
    jsonschema.validate(json.loads(answer.text), schema)
    assert answer.finish_reason == "stop"


def test_speculation_changes_nothing(model: Model) -> None:
    options = WILD | {"seed": 5, "response_format": of_regex("(kitchen lights ){12}")}
    plain = model.generate(PROMPT, **options)
    drafted = model.generate(PROMPT, speculate="lookup", **options)
    assert plain.text == drafted.text == "kitchen lights " * 12
    assert drafted.statistics.drafted_tokens > 0


def test_a_complete_answer_ends_without_a_stop_token(model: Model) -> None:
    """And so within exactly as many tokens as it has."""
    whole = model.generate(PROMPT, response_format=of_choices("kitchen"), temperature=0)
    tokens = whole.statistics.generated_tokens
    assert tokens == len(model.tokenizer.encode("kitchen"))
    exact = model.generate(PROMPT, response_format=of_choices("kitchen"), max_new_tokens=tokens)
    assert (exact.text, exact.finish_reason) == (whole.text, "stop") == ("kitchen", "stop")


def test_the_limit_still_ends_an_answer(model: Model) -> None:
    answer = model.generate(PROMPT, response_format=of_regex("[a-z]{500}"), max_new_tokens=5)
    assert answer.finish_reason == "length"
    assert re.fullmatch("[a-z]{5,}", answer.text)


def test_stop_strings_and_cancelling_still_end_an_answer(model: Model) -> None:
    forced = of_regex("one, two, three, four")
    answer = model.generate(PROMPT, response_format=forced, stop=[", three"])
    assert (answer.text, answer.finish_reason) == ("one, two", "stop")
    cancel = Event()
    cancel.set()
    assert model.generate(PROMPT, response_format=forced, cancel=cancel).finish_reason == "cancelled"


def test_the_model_chooses_among_what_is_allowed(model: Model) -> None:
    """A sum that the demo has learned."""
    answer = model.generate(
        "What is 20 plus 30?", response_format=of_choices("49", "50", "51"), temperature=0
    )
    assert answer.text == "50"


def test_text_is_any_text(model: Model) -> None:
    options: dict[str, Any] = {"temperature": 0, "max_new_tokens": 20}
    free = model.generate(PROMPT, **options)
    assert model.generate(PROMPT, response_format={"type": "text"}, **options).text == free.text


def test_json_object_is_any_object(model: Model) -> None:
    reasons = set()
    for seed in range(6):
        options = WILD | {"seed": seed, "max_new_tokens": 50}
        answer = model.generate(PROMPT, response_format={"type": "json_object"}, **options)
        assert answer.text.startswith("{")
        if answer.finish_reason == "stop":
            assert isinstance(json.loads(answer.text), dict)
        reasons.add(answer.finish_reason)
    assert reasons == {"stop", "length"}


def test_control_tokens_are_written_as_text(model: Model) -> None:
    for text in ("<end_of_turn>", "a<eos>", "<image_soft_token>", "a.b|(c"):
        answer = model.generate(PROMPT, response_format=of_choices(text), **WILD)
        assert answer.text == text


@pytest.mark.parametrize(
    ("response_format", "message"),
    [
        ("json", "has the type None; expected a dict whose 'type' is one of text, json_object"),
        ({}, "has the type None"),
        ({"type": "xml"}, "has the type 'xml'"),
        ({"type": "json_schema"}, "has no schema"),
        ({"type": "json_schema", "json_schema": {"schema": True}}, "has no schema"),
        ({"type": "regex"}, "regex of the response format is a NoneType, expected a str"),
        ({"type": "choice", "choices": []}, "expected a list of texts that are not empty"),
        ({"type": "choice", "choices": "yes"}, "expected a list of texts"),
        ({"type": "choice", "choices": ["yes", ""]}, "expected a list of texts"),
        (of_choices("\ud800"), "cannot be read .*surrogates not allowed"),
        (of_regex("(a"), r"cannot be enforced \(unclosed group\)"),
        (of_regex("a(?=b)"), "look-ahead.* is not supported"),
        (of_regex("(" * 300 + ")" * 300), "nested parentheses"),
        (of_schema({"type": "strin"}), "Invalid type: strin"),
        (of_schema({"not": {"type": "null"}}), 'Unimplemented keys: ."not"'),
        (of_schema({"type": "integer", "minimum": 5, "maximum": 3}), "Unsatisfiable"),
        (of_schema({"$ref": "http://127.0.0.1/schema.json"}), "does not fetch"),
        (of_schema({"const": object()}), "cannot be read"),
    ],
)
def test_a_bad_format_is_refused_before_anything_is_computed(
    response_format: Any, message: str, model: Model
) -> None:
    with pytest.raises(PromptError, match=message) as error:
        model.stream(PROMPT, response_format=response_format)  # at the call, not at the first piece
    assert "\n" not in str(error.value)


def test_a_schema_of_any_depth_is_refused(model: Model) -> None:
    """llguidance reads a dict recursively, and its stack is not Python's."""
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(50_000):
        schema = {"items": schema}
    with pytest.raises(PromptError, match="cannot be read"):
        model.stream(PROMPT, response_format=of_schema(schema))
    while schema:  # taking it apart in one go is a recursion, too
        schema = schema.pop("items", None)


def test_a_grammar_that_turns_out_too_complex(model: Model) -> None:
    """Which shows at the first token only; the model answers the next prompt."""
    pieces = model.stream(PROMPT, response_format=of_regex("(a{1000}){1000}"))
    with pytest.raises(PromptError, match=r"cannot be enforced \(lexer error: too many expressions") as error:
        list(pieces)
    assert "\n" not in str(error.value)
    assert model.generate(PROMPT, response_format=of_choices("a")).text == "a"


def test_the_budget_holds(model: Model) -> None:
    grammars = Grammars(model.tokenizer, model.manifest.vocab_size, model.manifest.tokens)
    plan = model.plan
    answering = int(plan.answering * (1 + ESTIMATE_ERROR))
    try:
        model._levels.plan = replace(plan, budget=answering + grammars.memory - 1)
        model._grammars = grammars
        with pytest.raises(BudgetError, match="needs 304 KiB and the budget leaves .*: load with a smaller"):
            model.stream(PROMPT, response_format=of_choices("a"))
        model._levels.plan = replace(plan, budget=answering + grammars.memory)
        assert model.generate(PROMPT, response_format=of_choices("a")).text == "a"
    finally:
        model._levels.plan = plan


def test_without_llguidance(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(DependencyError, match=r"edge-gemma\[structured\]"):
        model.stream(PROMPT, response_format=of_choices("a"))


def test_the_command_line(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], model: Model
) -> None:
    def said(*options: str) -> str:
        assert run(["run", str(artifact), PROMPT, "--no-cache", "--seed", "1", *options]) == 0
        return capsys.readouterr().out.strip()

    file = tmp_path / "schema.json"
    file.write_text('{"type": "integer", "minimum": 3, "maximum": 7}')
    assert said("--choice", "yes", "--choice", "no") in ("yes", "no")
    assert said("--regex", "ab+c").startswith("ab")
    assert 3 <= int(said("--json-schema", str(file))) <= 7
    assert json.loads(said("--json-schema", ' {"const": [1]}')) == [1]
    for options, message in (
        (["--choice", "a", "--regex", "b"], "one form: give one of --json-schema, --regex and --choice"),
        (["--json-schema", str(tmp_path / "none")], "the JSON Schema .*none cannot be read: No such file"),
        (["--json-schema", "{"], "--json-schema holds no JSON Schema"),
    ):
        assert run(["run", str(artifact), PROMPT, *options]) == 2
        assert re.fullmatch(f"error: .*{message}.*\n", capsys.readouterr().err)


# The grammars alone, over the demo's tokenizer


@pytest.fixture(scope="module")
def new_constraint(model: Model) -> Callable[[dict[str, Any]], Constraint]:
    grammars = Grammars(model.tokenizer, model.manifest.vocab_size, model.manifest.tokens)

    def new(response_format: dict[str, Any]) -> Constraint:
        constraint = grammars.constraint(response_format)
        assert constraint
        return constraint

    return new


def test_the_bytes_of_tokens_are_those_of_the_text(model: Model) -> None:
    for text in (PROMPT, "  two  spaces", "é 日本 😀\n\t", "<end_of_turn>", ""):
        ids = model.tokenizer.encode_plain(text)
        assert b"".join(map(model.tokenizer.token_bytes, ids)).decode() == text
    specials = sorted(model.tokenizer.special_ids)
    assert {model.tokenizer.token_bytes(token) for token in specials} == {b""}


@settings(max_examples=60)
@given(
    choices=st.lists(st.text("ab k<>é.(|", min_size=1, max_size=8), min_size=1, max_size=6),
    random=st.randoms(use_true_random=False),
)
def test_the_mask_is_that_of_brute_force(
    choices: list[str], random: Any, model: Model, new_constraint: Callable[..., Constraint]
) -> None:
    """Where one text only can come, a token that begins it; elsewhere each that begins some text."""
    tokens = [model.tokenizer.token_bytes(token) for token in range(model.manifest.vocab_size)]
    rest = {choice.encode() for choice in choices}
    constraint = new_constraint(of_choices(*choices))
    while True:
        expected = {
            token for token, text in enumerate(tokens) if text and any(r.startswith(text) for r in rest)
        }
        if b"" in rest:
            expected |= set(model.manifest.tokens.stop)
        assert constraint.finished == (rest == {b""})
        if constraint.finished:
            return
        allowed = set(np.flatnonzero(constraint.allowed()).tolist())
        forced = b"" not in rest and len({r[0] for r in rest}) == 1
        assert allowed and (allowed <= expected if forced else allowed == expected)
        token = random.choice(sorted(allowed))
        if token in model.manifest.tokens.stop:
            return
        constraint.advance(token)
        rest = {r[len(tokens[token]) :] for r in rest if r.startswith(tokens[token])}


def scalars() -> st.SearchStrategy[dict[str, Any]]:
    bounds = st.tuples(st.integers(-200, 200), st.integers(0, 300))
    lengths = st.tuples(st.integers(0, 3), st.integers(0, 5))
    values = st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.text(max_size=4))
    return st.one_of(
        st.just({"type": "null"}),
        st.just({"type": "boolean"}),
        bounds.map(lambda b: {"type": "integer", "minimum": b[0], "maximum": b[0] + b[1]}),
        bounds.map(lambda b: {"type": "number", "minimum": b[0], "maximum": b[0] + b[1], "multipleOf": 0.5}),
        lengths.map(lambda b: {"type": "string", "minLength": b[0], "maxLength": b[0] + b[1]}),
        st.sampled_from(["^[a-f]{2}$", "^\\d\\w?$", "^(é|日)+x{0,2}$"]).map(
            lambda pattern: {"type": "string", "pattern": pattern, "maxLength": 6}
        ),
        st.lists(values, min_size=1, max_size=3).map(lambda v: {"enum": v}),
    )


def schemas() -> st.SearchStrategy[dict[str, Any]]:
    names = st.text('ab é"\\', min_size=1, max_size=3)

    def objects(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
        return st.dictionaries(names, st.tuples(inner, st.booleans()), max_size=3).map(
            lambda members: {
                "type": "object",
                "properties": {name: schema for name, (schema, _) in members.items()},
                "required": [name for name, (_, required) in members.items() if required],
                "additionalProperties": False,
            }
        )

    return st.recursive(
        scalars(),
        lambda inner: st.one_of(
            objects(inner),
            inner.map(lambda schema: {"type": "array", "items": schema, "minItems": 1, "maxItems": 2}),
            st.lists(inner, min_size=1, max_size=2).map(lambda several: {"anyOf": several}),
        ),
        max_leaves=5,
    )


@settings(max_examples=100)
@given(schema=schemas(), seed=st.integers(0, 2**32))
def test_random_logits_give_valid_json(
    schema: dict[str, Any], seed: int, model: Model, new_constraint: Callable[..., Constraint]
) -> None:
    constraint = new_constraint(of_schema(schema))
    sampler = make_sampler(SamplingOptions(seed=seed, **WILD), constraint)
    logits = np.random.default_rng(seed)
    ids: list[int] = []
    while not constraint.finished and len(ids) < 500:
        token = sampler(logits.normal(0, 3, model.manifest.vocab_size).astype(np.float32), ids)
        if token in model.manifest.tokens.stop:
            break
        ids.append(token)
    assert len(ids) < 500
    jsonschema.validate(json.loads(model.tokenizer.decode(ids)), schema)


def test_reading_formats() -> None:
    assert read_format({"type": "text"}) is None
    assert read_format({"type": "json_object"}) == ("json_schema", {"type": "object"})
    assert read_format(of_schema({"const": 1}) | {"strict": True}) == ("json_schema", {"const": 1})
    assert read_format(of_choices("a", "b")) == ("choice", ["a", "b"])
