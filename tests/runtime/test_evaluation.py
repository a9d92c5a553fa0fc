from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_gemma.errors import PromptError
from edge_gemma.runtime.evaluation import (
    answer_line,
    read_answers,
    read_questions,
    score,
)
from edge_gemma.runtime.speech import SpeechSegment, Transcript

SAMPLES = Path(__file__).parent.parent.parent / "demo" / "samples" / "eval.jsonl"


def dataset(folder: Path, *lines: Any) -> Path:
    path = folder / "set.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + "\n", "utf-8")
    return path


class Recorder:
    """Stands for a model: every method answers what it was called with."""

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            said = json.dumps([name, *arguments, options], default=str)
            if name in ("transcribe", "translate"):
                return Transcript((SpeechSegment(0, 1, said),))
            return type("Answer", (), {"text": said})

        return call


def test_what_each_kind_of_line_asks(tmp_path: Path) -> None:
    (tmp_path / "a.wav").touch()
    (tmp_path / "b.png").touch()
    clip, picture = str(tmp_path / "a.wav"), str(tmp_path / "b.png")
    user = {"role": "user", "content": [{"type": "image", "path": "b.png"}, {"type": "text", "text": "hi"}]}
    path = dataset(
        tmp_path,
        {"prompt": "one", "reference": "1"},
        "",
        {"id": "two", "audio": "a.wav", "language": "es", "reference": ["2", "zwei"]},
        {"audio": "a.wav", "task": "translate", "target": "German", "reference": "3"},
        {"image": "b.png", "reference": "4"},
        {"image": "b.png", "prompt": "who?", "reference": "5", "metric": "contains"},
        {"messages": [user], "reference": "6"},
    )
    questions = read_questions(path)
    assert [(q.id, q.metric) for q in questions] == [
        ("1", "exact"),
        ("two", "wer"),
        ("4", "chrf"),
        ("5", "exact"),
        ("6", "contains"),
        ("7", "exact"),
    ]
    assert questions[1].references == ("2", "zwei")
    model: Any = Recorder()
    greedy = {"temperature": 0}
    with_path = {"role": "user", "content": [{"type": "image", "image": picture}, user["content"][1]]}  # type: ignore[index]
    assert [json.loads(question.put_to(model, **greedy)) for question in questions] == [
        ["generate", "one", greedy],
        ["transcribe", clip, "es", greedy],
        ["translate", clip, "German", None, greedy],
        ["describe", picture, "Describe this image.", greedy],
        ["describe", picture, "who?", greedy],
        ["generate", [with_path], greedy],
    ]
    assert [q.metric for q in read_questions(path, metric="bleu")] == ["bleu"] * 4 + ["contains", "bleu"]
    assert len(read_questions(path, limit=2)) == 2


GOOD = {"prompt": "hi", "reference": "hello"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "is not JSON: expected an object"),
        ("[1]", "asks nothing: expected one of 'audio', 'image', 'messages', 'prompt'"),
        ({"reference": "x"}, "asks nothing"),
        (
            GOOD | {"promt": "x"},
            "has the key 'promt': beside 'prompt' expected id, metric, prompt, reference",
        ),
        (GOOD | {"audio": "a.wav"}, "has the key 'prompt': beside 'audio'"),
        (GOOD | {"prompt": 3}, "has 3 as 'prompt': expected some text"),
        (GOOD | {"id": 3}, "has 3 as 'id'"),
        (GOOD | {"id": "\ud800"}, "has '\\ud800' as 'id': expected some text"),
        ('{"prompt": ' + "[" * 100_000, "is not JSON"),
        (GOOD | {"metric": "f1"}, "has the metric 'f1': expected one of wer, exact"),
        ({"prompt": "hi"}, "has None as 'reference': expected words"),
        (GOOD | {"reference": []}, "has [] as 'reference'"),
        (GOOD | {"reference": ["a", "..."]}, "has ['a', '...'] as 'reference'"),
        ({"audio": "none.wav", "reference": "x"}, "names 'none.wav', and there is no file"),
        (
            {"audio": "set.jsonl", "task": "sing", "reference": "x"},
            "has the task 'sing': expected transcribe",
        ),
        ({"audio": "set.jsonl", "language": "xx", "reference": "x"}, "'xx' is not a known language code"),
        ({"messages": [], "reference": "x"}, "the messages are []"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}], "reference": "x"},
            "names None, and there is no file",
        ),
        (GOOD | {"id": "first"}, "the id 'first' is taken"),
    ],
    ids=lambda value: str(value).encode("ascii", "replace").decode()[:60],
)
def test_a_bad_line_is_named(line: Any, message: str, tmp_path: Path) -> None:
    path = dataset(tmp_path, GOOD | {"id": "first"}, line)
    with pytest.raises(PromptError) as error:
        read_questions(path)
    assert str(error.value).startswith(f"{path} line 2") and message in str(error.value)
    assert "\n" not in str(error.value)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    path.write_bytes(b'{"prompt": "\xff"}\n')
    with pytest.raises(PromptError, match="line 1 is not JSON"):
        read_questions(path)
    path.write_bytes(b"\n\n")
    with pytest.raises(PromptError, match="has no questions"):
        read_questions(path)


def test_what_the_model_refuses_names_the_line(tmp_path: Path) -> None:
    class Refuses:
        def generate(self, *_: object, **__: object) -> Any:
            raise PromptError("the prompt has 9 tokens")

    (question,) = read_questions(dataset(tmp_path, GOOD))
    model: Any = Refuses()
    with pytest.raises(PromptError, match=r"set.jsonl line 1: the prompt has 9 tokens"):
        question.put_to(model)


def test_answers_are_read_back(tmp_path: Path) -> None:
    lines = [GOOD | {"id": name} for name in "abc"]
    path, out = dataset(tmp_path, *lines), tmp_path / "answers.jsonl"
    questions = read_questions(path)
    assert read_answers(out, questions) == {}
    text = answer_line(questions[0], "é\n1") + answer_line(questions[1], "2")
    out.write_text(text + '{"id": "c", "dig', "utf-8")  # cut short
    assert read_answers(out, questions) == {"a": "é\n1", "b": "2"}
    assert out.read_text("utf-8") == text
    assert read_answers(out, questions[1:]) == {"b": "2"}
    changed = read_questions(dataset(tmp_path, GOOD | {"id": "a", "prompt": "ho"}))
    with pytest.raises(PromptError, match="line 1 of .* answers another question 'a'"):
        read_answers(out, changed)
    out.write_text('{"id": "a"}\n', "utf-8")
    with pytest.raises(PromptError, match="line 1 of .* is no answer"):
        read_answers(out, questions)


@pytest.mark.parametrize(
    "text", ['{"my": "settings"}', '{"prompt": "hi", "reference": "x"}\n{"prompt": "ho"', "\n{}", '{"id": 1}']
)
def test_a_file_that_is_none_of_answers_stays(text: str, tmp_path: Path) -> None:
    questions = read_questions(dataset(tmp_path, GOOD))
    out = tmp_path / "other"
    out.write_text(text, "utf-8")
    with pytest.raises(PromptError, match="is no answer of an evaluation: name another file"):
        read_answers(out, questions)
    assert out.read_text("utf-8") == text
    for begun in ("", '{"i', '{"id": "a", "dig'):
        out.write_text(begun, "utf-8")
        assert read_answers(out, questions) == {} and out.read_text("utf-8") == ""


def test_scores_are_by_metric_and_of_what_was_answered(tmp_path: Path) -> None:
    lines = [GOOD, GOOD, GOOD | {"metric": "wer"}, GOOD | {"metric": "bleu"}]
    questions = read_questions(dataset(tmp_path, *lines))
    scores = score(questions, {"1": "Hello", "2": "bye", "3": "hello you"})
    assert {name: (s.value, s.items) for name, s in scores.items()} == {"wer": (1.0, 1), "exact": (0.5, 2)}
    assert score(questions, {}) == {}


def test_the_demo_answers_its_sample(demo_artifact: Path) -> None:
    """Every kind of question, rightly."""
    import edge_gemma

    questions = read_questions(SAMPLES)
    with edge_gemma.load(demo_artifact, context=1024, threads=1) as model:
        answers = {q.id: q.put_to(model, temperature=0, max_new_tokens=96) for q in questions}
    found = {name: s.value for name, s in score(questions, answers).items()}
    assert np.allclose([found.pop("wer")], 0)
    assert found == {"exact": 1.0, "contains": 1.0, "chrf": 100.0, "bleu": 100.0}
