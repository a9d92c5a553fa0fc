"""A fixed conversation that shows what a model needs: its script, and the process that it runs in.

It has four turns and ends at the context's last token, less what an answer leaves by stopping early:

1. a text that fills what the later turns leave,
2. an image, 1920×1080 pixels, and a question,
3. a clip as long as the audio encoder takes, and a question,
4. a text that fills what is left.

Answers are greedy, of 32 tokens at most (less in a context below 2048). All input is computed: the same each
time. What the artifact has no encoder for is left out.

`python -m edge_gemma.runtime.check JOB` holds it in a process of its own, since a process cannot lower its
own peak, and prints a line of JSON after each phase.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from edge_gemma.artifact import AudioSpec
from edge_gemma.errors import EdgeGemmaError, PromptError
from edge_gemma.memory import peak_resident_bytes, resident_bytes
from edge_gemma.planning import longest
from edge_gemma.runtime.engine import Model
from edge_gemma.runtime.loading import load
from edge_gemma.runtime.statistics import Statistics

ANSWER = 32  # tokens of an answer, at most
SIZE = (1080, 1920)  # height and width of the image
COLOURS = ("red", "blue", "green", "white", "black", "yellow", "grey")
THINGS = (
    "lamp",
    "table",
    "window",
    "clock",
    "radio",
    "chair",
    "kettle",
    "mirror",
    "basket",
    "ladder",
    "carpet",
)
ROOMS = ("kitchen", "garden", "bedroom", "cellar", "hall", "garage", "attic", "office")
Part = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Phase:
    """What a part of the run took. Memory is that of the process so far, in bytes."""

    name: str  # "start", "load", "text", "image", "audio" or "second text"
    seconds: float
    peak: int  # VmHWM at its end
    resident: int  # VmRSS at its end
    storage_bytes: int | None  # that came from storage in it, mapped files included; None where not known
    statistics: dict[str, float] | None = None  # of the answer


def converse(model: Model, *, image: bool, audio: bool) -> Iterator[tuple[str, Statistics]]:
    """Hold the conversation; yields each turn's name and what its answer cost.

    Raises:
        PromptError: the context has no room for it.
    """
    answer = max(1, min(ANSWER, model.context // 64))
    shown = [_photo()] if image else []
    if audio and model.manifest.audio:
        shown.append(_clip(model.manifest.audio))
    # What the later turns will take, at least: places in a prompt do not depend on the size of what is shown.
    replied = _model("a " * (2 * answer))  # read back as a prompt, an answer may have more tokens
    later = [message for item in shown for message in (replied, _user(item.small, item.question))]
    later += [replied, _user(inventory(1))]
    room = model.context - answer
    history = [_user(_fill(model, lambda text: [_user(text), *later], room))]
    yield "text", _turn(model, history, answer)
    for item in shown:
        history.append(_user(item.part(), item.question))
        yield item.name, _turn(model, history, answer)
    held = list(history)
    history.append(_user(_fill(model, lambda text: [*held, _user(text)], room)))
    yield "second text", _turn(model, history, model.context)


@dataclass(frozen=True)
class _Shown:
    """What a turn shows or lets hear."""

    name: str
    part: Callable[[], Part]  # made when it is its turn, as it takes memory
    small: Part  # takes as many places in a prompt
    question: str


def _photo() -> _Shown:
    def part(height: int, width: int) -> Part:
        return {"type": "image", "image": picture(height, width)}

    return _Shown("image", lambda: part(*SIZE), part(8, 8), "What is in this picture?")


def _clip(spec: AudioSpec) -> _Shown:
    """A clip as long as the encoder takes."""

    def part(samples: int) -> Part:
        return {"type": "audio", "audio": tones(samples, spec.sample_rate)}

    question = "What is heard in this recording?"
    return _Shown("audio", lambda: part(spec.max_samples), part(spec.min_samples), question)


def picture(height: int, width: int) -> NDArray[np.uint8]:
    """A gradient with noise, uint8 [height, width, 3]; always the same."""
    pixels = np.random.default_rng(0).integers(0, 64, (height, width, 3), np.uint8)
    pixels += np.linspace(0, 191, width).astype(np.uint8)[None, :, None]
    return pixels


def tones(samples: int, rate: int) -> NDArray[np.float32]:
    """Tones of 220, 330 and 440 Hz, a second each, that swell and fade: float32 [samples] at `rate` Hz."""
    seconds = np.arange(samples, dtype=np.float32) / np.float32(rate)
    pitch = np.float32(220) + np.float32(110) * (seconds.astype(np.int32) % 3).astype(np.float32)
    swell = np.float32(0.2) + np.float32(0.2) * np.sin(np.float32(6) * seconds)
    wave: NDArray[np.float32] = swell * np.sin(np.float32(2 * np.pi) * pitch * seconds)
    return wave


def inventory(words: int) -> str:
    """A text of so many words, in sentences that differ."""
    sentences = (
        f"{n}. The {COLOURS[n % 7]} {THINGS[n % 11]} in the {ROOMS[n % 8]} is {n * n % 997} cm wide."
        for n in range(1, words // 5 + 2)
    )
    return " ".join(" ".join(sentences).split()[:words])


def _fill(model: Model, conversation: Callable[[str], list[Part]], limit: int) -> str:
    """The longest inventory with which a conversation's prompt has at most `limit` tokens."""

    def tokens(words: int) -> int:
        return len(model.encode(conversation(inventory(words))))

    if (least := tokens(1)) > limit:
        raise PromptError(
            f"the context has {model.context} tokens and the conversation needs at least "
            f"{least + model.context - limit}: give a larger --context, or --no-media"
        )
    return inventory(longest(lambda words: tokens(words) <= limit, limit))


def _turn(model: Model, history: list[Part], answer: int) -> Statistics:
    """Answer the last message and append the answer."""
    room = model.context - len(model.encode(history))
    found = model.generate(history, max_new_tokens=min(room, answer), temperature=0.0)
    said = found.text.strip()
    # Read back, what random weights say may have many more tokens than they took to say it.
    kept = longest(lambda end: len(model.tokenizer.encode(said[:end])) <= answer, len(said))
    history.append(_model(said[:kept].strip() or "Yes."))
    return found.statistics


def _user(*parts: Part | str) -> Part:
    content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return {"role": "user", "content": content}


def _model(text: str) -> Part:
    return {"role": "assistant", "content": text}


def hold(artifact: str, model: dict[str, Any], media: bool) -> Iterator[dict[str, Any]]:
    """Load and converse; yields each phase as it ends, after "load" the plan, and last the files it mapped.

    Args:
        artifact: its folder.
        model: options of `load`.
        media: show an image and a clip, as far as the artifact has encoders.
    """
    clock = _Clock()
    yield asdict(clock.phase("start"))
    with load(artifact, **model) as loaded:
        yield asdict(clock.phase("load"))
        estimates = {name: sum(parts.values()) for name, parts in loaded.plan.phases.items()}
        yield {"plan": asdict(loaded.plan) | {"peak": loaded.plan.peak, "phases": estimates}}
        image, audio = loaded.manifest.vision is not None, loaded.manifest.audio is not None
        for name, statistics in converse(loaded, image=media and image, audio=media and audio):
            yield asdict(clock.phase(name, statistics))
        mapped = {Path(entry.path) for entry in psutil.Process().memory_maps()}
        yield {"files": sorted(str(path) for path in mapped if path.is_file())}


class _Clock:
    """Times phases, the first from the start of the process."""

    def __init__(self) -> None:
        self._time = float(psutil.Process().create_time())
        self._read = 0

    def phase(self, name: str, statistics: Statistics | None = None) -> Phase:
        """The phase that ends now."""
        now, read = time.time(), _storage_bytes()
        found = Phase(
            name=name,
            seconds=now - self._time,
            peak=peak_resident_bytes(),
            resident=resident_bytes(),
            storage_bytes=None if read is None else read - self._read,
            statistics=statistics.to_dict() if statistics else None,
        )
        self._time, self._read = now, read or 0
        return found


def _storage_bytes() -> int | None:
    """Bytes that the system read from storage for this process; None where it does not tell."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/io").read_text("ascii").splitlines():
            if line.startswith("read_bytes:"):
                return int(line.split()[1])
    return None


def main(job: str) -> int:
    """Print what `hold` yields as lines of JSON; an error is the last of them."""
    try:
        for found in hold(**json.loads(job)):
            print(json.dumps(found), flush=True)
    except EdgeGemmaError as error:
        print(json.dumps({"error": type(error).__name__, "message": str(error)}), flush=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
