"""Trains the demo checkpoint: `python -m demo.train` from the repository's root.

Four stages. espeak-ng speaks the clips; then the audio tower and the vision tower learn alone, each in a
process of its own; then everything learns together from conversations about text, clips and pictures. Every
step draws its batch, a feed-forward width and whether the matrices are rounded to 4 bits from the seed and
the step's number, so an interrupted run goes on from demo/.training/ as if it had never stopped. Progress
goes to stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, distributed, multiprocessing
from torch.nn import functional as F
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from demo import loop, train_audio, train_vision
from demo.checkpoint_files import write_checkpoint
from demo.clips import Clip, training_clips
from demo.conversations import Batch, mixed_batch, picture_batch, speech_batch, text_batch
from demo.model import FULL_WIDTH, HALF_WIDTH, Gemma3nForConditionalGeneration, new_model, use_width
from demo.rounding import int4_weights
from demo.sight import image_tokens
from demo.tokenizer import write_tokenizer

HERE = Path(__file__).parent
FOLDER = HERE / ".training"
RENDEZVOUS = "processes"  # a file by which the processes of the last stage find each other
PROCESSES = 2  # of one thread each: less waiting for each other than two threads in every operation
STAGE = loop.Stage(
    name="joint",
    seed=0,
    steps=2400,
    rate=2.5e-3,
    warmup=100,
    decay=0.5,
    slow=("model.audio_tower", "model.vision_tower", "model.embed_vision"),
    slow_rate=4e-4,
)
SPEECH, TEXTS, PICTURES, MIXED = 16, 16, 6, 4  # conversations of each kind in a batch
KINDS = (
    "text",
    "pictures",
    "text",
    "pictures",
    "text",
    "pictures",
    "text",
    "mixed",
)  # beside speech, in turn
HALF_SHARE = 0.3  # of the steps train the narrow feed-forward blocks
INT4_FROM, INT4_SHARE = 0.5, 0.5  # after this share of the steps, this share of them has rounded weights


def loss_of(model: Gemma3nForConditionalGeneration, batch: Batch) -> Tensor:
    """The mean cross-entropy of the answers' tokens."""
    inner = model.model
    seen = None
    if batch.images is not None:
        tokens = image_tokens(inner.vision_tower, inner.embed_vision, batch.images)
        seen = {"image": SimpleNamespace(pooler_output=tokens)}
    heard = None if batch.mel is None else torch.ones(batch.mel.shape[:2], dtype=torch.bool)
    hidden = inner(
        input_ids=batch.ids,
        mm_encoder_outputs=seen,
        input_features=batch.mel,
        input_features_mask=heard,
        use_cache=False,
    ).last_hidden_state  # [B, S, H]
    wanted = batch.labels != -100
    logits = model.lm_head(hidden[wanted])  # [answer tokens, vocabulary]
    cap = model.config.text_config.final_logit_softcapping
    return F.cross_entropy(cap * torch.tanh(logits / cap), batch.labels[wanted])


def with_towers(
    model: Gemma3nForConditionalGeneration,
    hearing: train_audio.PhonemeReader,
    seeing: train_vision.SceneReader,
) -> None:
    """Puts the towers that learned alone into `model`."""
    model.model.audio_tower.load_state_dict(hearing.tower.state_dict())
    model.model.vision_tower.load_state_dict(seeing.tower.state_dict())
    model.model.embed_vision.load_state_dict(seeing.embedder.state_dict())


def train_together(
    model: Gemma3nForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    clips: list[Clip],
    stage: loop.Stage = STAGE,
    *,
    folder: Path = FOLDER,
) -> None:
    """The last stage; `model` has the towers that learned alone.

    A process of a group takes every PROCESSES-th conversation of a step.
    """
    rank, processes = (
        (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)
    )
    lengths = tuple(len(clip.samples) for clip in clips)

    def some_clips(count: int, order: int, index: int) -> list[Clip]:
        chosen = train_audio.batch_of(lengths, count, stage.seed + order, index)
        return [clips[i] for i in chosen[rank::processes]]

    batches = {
        "speech": lambda step, seed: speech_batch(tokenizer, some_clips(SPEECH, 1, step), seed),
        "text": lambda _, seed: text_batch(tokenizer, seed, TEXTS // processes),
        "pictures": lambda _, seed: picture_batch(tokenizer, seed, PICTURES // processes),
        "mixed": lambda step, seed: mixed_batch(tokenizer, some_clips(MIXED, 2, step // len(KINDS)), seed),
    }

    def losses(step: int) -> Iterator[tuple[str, Tensor]]:
        rng = random.Random(f"{stage.seed} joint {step}")
        seed = (stage.seed * 1_000_003 + step) * processes + rank
        use_width(model, HALF_WIDTH if rng.random() < HALF_SHARE else FULL_WIDTH)
        rounded = rng.random() < INT4_SHARE and step >= INT4_FROM * stage.steps
        with int4_weights(model) if rounded else contextlib.nullcontext():
            for kind in ("speech", KINDS[step % len(KINDS)]):
                yield kind, loss_of(model, batches[kind](step, seed))

    loop.run(model, stage, losses, folder=folder)
    use_width(model, FULL_WIDTH)


def train_towers() -> None:
    """Both towers, each on one core in its own process."""
    training_clips(FOLDER, seed=train_audio.STAGE.seed, count=train_audio.CLIPS)
    running = [
        subprocess.Popen([sys.executable, "-m", module])
        for module in ("demo.train_audio", "demo.train_vision")
    ]
    if any([process.wait() for process in running]):
        raise SystemExit("a tower's training failed: see the messages above")


def last_stage(rank: int, processes: int, out: Path) -> None:
    """What each process of the group does: one core, its share of the conversations; the first one writes."""
    torch.set_num_threads(1)
    store = f"file://{(FOLDER / RENDEZVOUS).resolve()}"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=processes)
    clips = training_clips(FOLDER, seed=train_audio.STAGE.seed, count=train_audio.CLIPS)
    tokenizer = AutoTokenizer.from_pretrained(out)
    model = new_model(STAGE.seed)
    with_towers(model, train_audio.train_audio(clips), train_vision.train_vision())
    train_together(model, tokenizer, clips)
    if rank == 0:
        write_checkpoint(model, out)
    distributed.destroy_process_group()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=FOLDER / "checkpoint")
    out = parser.parse_args().out
    train_towers()
    write_tokenizer(out)
    (FOLDER / RENDEZVOUS).unlink(missing_ok=True)
    multiprocessing.spawn(last_stage, args=(PROCESSES, out), nprocs=PROCESSES)
    print(f"wrote {out}: now python -m demo.evaluate {out}", file=sys.stderr)


if __name__ == "__main__":
    main()
