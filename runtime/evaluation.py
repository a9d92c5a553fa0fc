"""Questions with known answers, one JSON object a line, and what a model says to them.

    {"prompt": "What is 12 + 5?", "reference": "17"}
    {"messages": [{"role": "user", "content": "…"}], "reference": ["…", "…"], "metric": "contains"}
    {"image": "picture.png", "prompt": "What is this?", "reference": "Two blue circles"}
    {"audio": "clip.wav", "task": "translate", "language": "es", "target": "English", "reference": "…"}

Media are paths relative to the file. `id` names a line, which otherwise goes by its number; `metric` is one
of `scoring.METRICS`: by default wer for a transcription, chrf for a translation and exact for all else.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edge_gemma.errors import PromptError
from edge_gemma.runtime import scoring, tasks
from edge_gemma.runtime.chat import normalize
from edge_gemma.runtime.engine import Model
from edge_gemma.runtime.scoring import METRICS, Score

SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can hold a lone one, a file of text cannot
KEYS = {
    "audio": {"audio", "task", "language", "target"},
    "image": {"image", "prompt"},
    "messages": {"messages"},
    "prompt": {"prompt"},
}
COMMON = {"id", "reference", "metric"}
BEGINNING = b'{"id": "'  # of a line of answers
TASKS = ("transcribe", "translate")
DEFAULT_METRICS = {"transcribe": "wer", "translate": "chrf"}


@dataclass(frozen=True, kw_only=True)
class Question:
    """One line of a dataset, checked."""

    id: str
    where: str  # file and line, for messages
    digest: str  # of the line
    asked: Mapping[str, Any]  # its keys but COMMON; media are whole paths
    references: tuple[str, ...]
    metric: str

    def put_to(self, model: Model, **options: Any) -> str:
        """The model's answer; `options` are those of `Model.stream`.

        Raises:
            PromptError: the model cannot take it, with the line.
        """
        ask = self.asked
        try:
            if "audio" in ask and ask.get("task") == "translate":
                target = ask.get("target", "English")
                return model.translate(ask["audio"], target, ask.get("language"), **options).text
            if "audio" in ask:
                return model.transcribe(ask["audio"], ask.get("language"), **options).text
            if "image" in ask:
                prompt = ask.get("prompt", tasks.DESCRIBE_PROMPT)
                return model.describe(ask["image"], prompt, **options).text
            return model.generate(ask.get("messages") or ask["prompt"], **options).text
        except PromptError as error:
            raise type(error)(f"{self.where}: {error}") from None


@dataclass(frozen=True)
class Answered:
    """A line of the file of answers."""

    id: str
    digest: str  # of the question
    answer: str


def read_questions(path: Path, metric: str | None = None, limit: int | None = None) -> list[Question]:
    """The questions of a file, the first `limit` of them; `metric` is for lines that name none.

    Raises:
        PromptError: a line cannot be used, with its number.
        OSError: the file cannot be read.
    """
    questions: dict[str, Question] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if limit is not None and len(questions) == limit:
            break
        if line.strip():
            question = _read(line, path, number, metric)
            if question.id in questions:
                raise PromptError(f"{question.where}: the id {question.id!r} is taken: ids must differ")
            questions[question.id] = question
    if not questions:
        raise PromptError(f"{path} has no questions: expected a JSON object in each line")
    return list(questions.values())


def read_answers(path: Path, questions: Iterable[Question]) -> dict[str, str]:
    """Answers to these questions that a file has from before, by id; none where there is no file.

    What an interrupted run left of its last line is cut off; of a file that is none of answers, nothing is.

    Raises:
        PromptError: it is no file of answers, or of another dataset.
    """
    if not path.exists():
        return {}
    raw = path.read_bytes()
    *lines, cut = raw.split(b"\n")
    if not BEGINNING.startswith(cut[: len(BEGINNING)]):  # neither nothing nor a part of an answer
        lines.append(cut)
    digests = {question.id: question.digest for question in questions}
    found = {}
    for number, line in enumerate(lines, 1):
        try:
            answered = Answered(**json.loads(line))
        except (ValueError, TypeError, RecursionError):
            raise PromptError(
                f"line {number} of {path} is no answer of an evaluation: name another file to write to"
            ) from None
        if answered.id not in digests:
            continue  # of more lines than are asked now
        if answered.digest != digests[answered.id]:
            raise PromptError(
                f"line {number} of {path} answers another question {answered.id!r} than the dataset has: "
                "name another file to write to"
            )
        found[answered.id] = answered.answer
    if cut:
        os.truncate(path, len(raw) - len(cut))
    return found


def answer_line(question: Question, answer: str) -> str:
    """A line for `read_answers`."""
    found = Answered(question.id, question.digest, answer)
    return json.dumps(asdict(found), ensure_ascii=False) + "\n"


def score(questions: Iterable[Question], answers: Mapping[str, str]) -> dict[str, Score]:
    """The score of every metric over the questions that have an answer.

    Raises:
        DependencyError: a metric's package is missing.
    """
    answered = [question for question in questions if question.id in answers]
    return {
        name: compute([(answers[q.id], q.references) for q in answered if q.metric == name])
        for name, compute in METRICS.items()
        if any(q.metric == name for q in answered)
    }


def _read(line: bytes, path: Path, number: int, metric: str | None) -> Question:
    where = f"{path} line {number}"
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        raise PromptError(f"{where} is not JSON: expected an object in each line") from None
    kind = next((kind for kind in KEYS if kind in data), None) if isinstance(data, dict) else None
    if kind is None:
        raise PromptError(f"{where} asks nothing: expected one of {', '.join(map(repr, KEYS))}")
    if unknown := sorted(data.keys() - KEYS[kind] - COMMON):
        known = ", ".join(sorted(KEYS[kind] | COMMON))
        raise PromptError(f"{where} has the key {unknown[0]!r}: beside {kind!r} expected {known}")
    for key in data.keys() - {"messages", "reference"}:
        if not isinstance(data[key], str) or not data[key].strip() or SURROGATE.search(data[key]):
            raise PromptError(f"{where} has {data[key]!r} as {key!r}: expected some text")
    if data.get("task", TASKS[0]) not in TASKS:
        raise PromptError(f"{where} has the task {data['task']!r}: expected {' or '.join(TASKS)}")
    task = data.get("task", TASKS[0]) if kind == "audio" else ""
    for key in data.keys() & {"language", "target"}:
        try:
            tasks.language_name(data[key])
        except PromptError as error:
            raise PromptError(f"{where}: {error}") from None
    used = data.get("metric", metric) or DEFAULT_METRICS.get(task, "exact")
    if used not in METRICS:
        raise PromptError(f"{where} has the metric {used!r}: expected one of {', '.join(METRICS)}")
    scoring.require(used)
    return Question(
        id=data.get("id", str(number)),
        where=where,
        digest=hashlib.sha256(line.strip()).hexdigest()[:16],
        asked=_with_paths({key: data[key] for key in data.keys() - COMMON}, path.parent, where),
        references=_references(data.get("reference"), where),
        metric=used,
    )


def _references(found: Any, where: str) -> tuple[str, ...]:
    references = [found] if isinstance(found, str) else found
    if (
        not isinstance(references, list)
        or not references
        or not all(isinstance(one, str) and scoring.words_only(one) for one in references)
    ):
        raise PromptError(f"{where} has {found!r} as 'reference': expected words, or a list of alternatives")
    return tuple(references)


def _with_paths(asked: dict[str, Any], folder: Path, where: str) -> dict[str, Any]:
    """The same with paths of media that are there, also in messages."""

    def place(name: Any) -> Path:
        path = folder / str(name)
        if not path.is_file():
            raise PromptError(f"{where} names {name!r}, and there is no file {path}")
        return path

    def parts(content: Any) -> Iterator[dict[str, Any]]:
        for part in content:
            kind = part["type"]
            yield part if kind == "text" else {"type": kind, kind: place(part.get(kind, part.get("path")))}

    for kind in ("audio", "image"):
        if kind in asked:
            asked[kind] = place(asked[kind])
    if "messages" in asked:
        try:
            messages = normalize(asked["messages"])
        except PromptError as error:
            raise PromptError(f"{where}: {error}") from None
        asked["messages"] = [
            m if isinstance(m["content"], str) else m | {"content": list(parts(m["content"]))}
            for m in messages
        ]
    return asked
