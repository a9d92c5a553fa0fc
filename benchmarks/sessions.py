"""What a turn of a session costs: a first one, one that follows, one after another conversation, from a file.

    python -m benchmarks.sessions DIR [--tokens 2000] [--answer 16]

The first turn has a document of so many tokens and a question about it. Then the session goes on; goes on
after an unrelated prompt of a hundred tokens took its place in the KV cache; is forked, and the fork goes on
after the session did; another session asks about the same document. At last the session goes on from a file,
with the artifact loaded anew, and for comparison the same turn is computed from the first token on. Each row
has the tokens of the prompt, those of them that were computed, and the seconds to the first token; for the
file those of loading it are counted, too.

The answers are greedy, of at most `--answer` tokens. Values do not change times: random weights will do.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import click

import edge_gemma
from benchmarks.command import Benchmark
from benchmarks.report import print_report
from benchmarks.speculation_texts import SPOKEN, WRITTEN
from edge_gemma import Answer, Model, Session
from edge_gemma.memory import format_bytes

UNRELATED_TOKENS = 100


@dataclass(frozen=True)
class Turn:
    """What was measured of one turn."""

    prompt: int  # tokens
    computed: int  # of them
    seconds: float  # to the first token, from a call

    @classmethod
    def of(cls, answer: Answer, before: float = 0.0) -> Turn:
        found = answer.statistics
        seconds = before + found.time_to_first_token
        return cls(found.prompt_tokens, found.prompt_tokens - found.reused_tokens, seconds)


def text_of(model: Model, text: str, tokens: int) -> str:
    """A text of so many tokens, more or less one."""
    ids = model.tokenizer.encode(text)
    return model.tokenizer.decode((ids * (tokens // len(ids) + 1))[:tokens])


def measure(artifact: Path, tokens: int, options: dict[str, Any], **load: Any) -> dict[str, Any]:
    """Turns by name, the bytes of the KV state and of the file, and seconds of saving and loading it."""
    turns: dict[str, Turn] = {}

    def ask(name: str, session: Session, content: Any, before: float = 0.0) -> None:
        turns[name] = Turn.of(session.generate(content, **options), before)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.session"
        with edge_gemma.load(artifact, session_memory="2GiB", **load) as model:
            document = {"type": "text", "text": text_of(model, WRITTEN, tokens)}
            unrelated = text_of(model, SPOKEN, UNRELATED_TOKENS)
            model.generate("hello", **options)  # the first one warms up
            session = model.session()
            ask("first turn", session, [document, {"type": "text", "text": "What is it about?"}])
            ask("follow-up", session, "And what does it leave out?")
            model.generate(unrelated, **options)
            ask("after another conversation", session, "Who wrote it?")
            fork = session.fork()
            ask("follow-up of a forked one", session, "When?")
            ask("its fork", fork, "Where?")
            other = [document, {"type": "text", "text": "Is it any good?"}]
            ask("another session, same document", model.session(), other)
            began = perf_counter()
            session.save(path)
            saving, size = perf_counter() - began, path.stat().st_size
            state = model._open().state(session._follow_up().keys)
            assert state is not None
        with edge_gemma.load(artifact, session_memory="2GiB", **load) as model:
            model.generate("hello", **options)
            began = perf_counter()
            session = model.load_session(path)
            loading = perf_counter() - began
            fork = session.fork()
            ask("from a file, loading it included", session, "Why?", loading)
            model._session_memory = model._open().prefixes.limit = 0
            model._open().occupy([])
            ask("the same, computed anew", fork, "Why?")
            name = f"{model.manifest.source.name}, {model.manifest.recipe}, KV {model.plan.global_kv}"
    return {
        "model": name,
        "turns": {turn: asdict(found) for turn, found in turns.items()},
        "state_tokens": len(state),
        "state_bytes": state.bytes,
        "file_bytes": size,
        "save_seconds": saving,
        "load_seconds": loading,
    }


@click.command(cls=Benchmark)
@click.argument("artifact", type=click.Path(exists=True, path_type=Path))
@click.option("--tokens", default=2000, show_default=True, help="Of the document.")
@click.option("--answer", default=16, show_default=True, help="Longest answer, in tokens.")
@click.option("--context", type=int, help="[4096, or the model's limit]")
@click.option("--threads", type=int, help="[all cores]")
def main(artifact: Path, tokens: int, answer: int, context: int | None, threads: int | None) -> None:
    """What a turn of a session costs."""
    options = {"temperature": 0, "max_new_tokens": answer}
    found = measure(artifact, tokens, options, context=context, threads=threads)
    rows = [
        (name, str(turn["prompt"]), str(turn["computed"]), f"{turn['seconds']:.3f}")
        for name, turn in found["turns"].items()
    ]
    header = (found["model"], "prompt tokens", "computed", "seconds to the first token")
    click.echo(
        f"KV state of {found['state_tokens']} tokens: {format_bytes(found['state_bytes'])}; file: "
        f"{format_bytes(found['file_bytes'])}, saved in {found['save_seconds']:.3f} s, loaded in "
        f"{found['load_seconds']:.3f} s\n"
    )
    print_report("benchmarks.sessions", header, rows, found)


if __name__ == "__main__":
    main()
