"""Trains the demo checkpoint: `python -m demo.train` from the repository's root.

Every step draws its conversations, a feed-forward width and whether the matrices are rounded to 4 bits, all
from the seed and the step's number. An interrupted run therefore continues from its last saved state as if it
had never stopped. Progress goes to stderr, the table of results to stdout.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import random
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoTokenizer, Gemma3nForCausalLM, GenerationConfig, PreTrainedTokenizerBase

from demo import data
from demo.model import FULL_WIDTH, HALF_WIDTH, int4_weights, new_model, use_width
from demo.tokenizer import BOS_ID, END_OF_TURN_ID, EOS_ID, START_OF_TURN_ID, write_tokenizer

HERE = Path(__file__).parent
CHECKPOINT = HERE / "checkpoint"
STATE = HERE / ".training" / "state.pt"

STEPS = 1500
BATCH = 16  # conversations a step
PEAK_RATE = 3e-3
WARMUP = 100
DECAY = 0.4  # the share of the steps in which the rate falls to zero
WEIGHT_DECAY = 0.1
HALF_SHARE = 0.3  # of the steps
INT4_SHARE = 0.5  # of the steps after INT4_FROM
INT4_FROM = 0.5  # a share of all steps
SAVE_EVERY = 250


def learning_rate(step: int, steps: int) -> float:
    """Warm-up, a constant stretch, then a linear fall to zero."""
    rise = min(1.0, (step + 1) / WARMUP)
    fall = min(1.0, (steps - step) / (DECAY * steps))
    return PEAK_RATE * rise * fall


def make_batch(tokenizer: PreTrainedTokenizerBase, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """The ids and the labels of a step, both int64 [BATCH, S]; ids are padded with 0, labels with -100."""
    conversations = list(itertools.islice(data.train_examples(seed * 1_000_000 + step), BATCH))
    texts = tokenizer.apply_chat_template(conversations, tokenize=False)
    encoded = tokenizer(texts, add_special_tokens=False, padding=True, padding_side="right")
    labels = [answer_labels(ids) for ids in encoded["input_ids"]]
    return torch.tensor(encoded["input_ids"]), torch.tensor(labels)


def answer_labels(ids: list[int]) -> list[int]:
    """The token after each position where it is part of an answer (its end of turn included), else -100."""
    labels = [-100] * len(ids)
    turn, inside = 0, False
    for i in range(2, len(ids) - 1):
        if ids[i - 2] == START_OF_TURN_ID:  # <start_of_turn>, role, "\n": the turns alternate, the user first
            turn += 1
            inside = turn % 2 == 0
        elif ids[i] == END_OF_TURN_ID:
            inside = False
        if inside:
            labels[i] = ids[i + 1]
    return labels


def make_optimizer(model: nn.Module) -> torch.optim.AdamW:
    """AdamW with weight decay on the matrices, none on the norms and scales."""
    groups = [
        {"params": [p for p in model.parameters() if p.dim() == 2], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in model.parameters() if p.dim() != 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.98))


def train(tokenizer: PreTrainedTokenizerBase, *, seed: int, steps: int) -> Gemma3nForCausalLM:
    """Trains a new model, or goes on with the run whose state was saved."""
    model = new_model(seed)
    optimizer = make_optimizer(model)
    first = load_state(model, optimizer, seed, steps)
    model.train()
    started, losses = time.monotonic(), []
    for step in range(first, steps):
        rng = random.Random(f"{seed} {step}")
        ids, labels = make_batch(tokenizer, seed, step)
        use_width(model, HALF_WIDTH if rng.random() < HALF_SHARE else FULL_WIDTH)
        rounded = rng.random() < INT4_SHARE and step >= INT4_FROM * steps
        with int4_weights(model) if rounded else contextlib.nullcontext():
            hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state  # [B, S, H]
            wanted = labels != -100
            logits = model.lm_head(hidden[wanted])  # [answer tokens, vocabulary]
            cap = model.config.final_logit_softcapping
            loss = F.cross_entropy(cap * torch.tanh(logits / cap), labels[wanted])
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if (step + 1) % 50 == 0:
            report(step + 1, steps, sum(losses[-50:]) / len(losses[-50:]), time.monotonic() - started)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            save_state(model, optimizer, seed, steps, step + 1)
    return model


def report(step: int, steps: int, loss: float, seconds: float) -> None:
    """One line of progress on stderr."""
    print(f"step {step}/{steps}  loss {loss:.4f}  {seconds:.0f} s", file=sys.stderr, flush=True)


def save_state(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int, steps: int, step: int) -> None:
    """Replaces the saved state in one move, so that a run cut short while saving keeps the old one."""
    STATE.parent.mkdir(exist_ok=True)
    state = {
        "run": (seed, steps),
        "step": step,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    torch.save(state, STATE.with_suffix(".tmp"))
    STATE.with_suffix(".tmp").replace(STATE)


def load_state(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int, steps: int) -> int:
    """Restores the saved state of the same run, if there is one, and returns the next step."""
    if not STATE.exists():
        return 0
    state = torch.load(STATE)
    if state["run"] != (seed, steps):
        return 0
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    print(f"continuing after step {state['step']}", file=sys.stderr)
    return int(state["step"])


def write_checkpoint(model: Gemma3nForCausalLM, folder: Path) -> None:
    """Writes the weights in bfloat16 with config.json and generation_config.json."""
    model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(
        bos_token_id=BOS_ID, eos_token_id=[EOS_ID, END_OF_TURN_ID], pad_token_id=0
    )
    model.save_pretrained(folder)


@torch.no_grad()
def answer(
    model: Gemma3nForCausalLM, tokenizer: PreTrainedTokenizerBase, items: list[data.Item]
) -> list[str]:
    """The greedy answers to `items`, decoded in one left-padded batch."""
    encoded = tokenizer.apply_chat_template(
        [list(item.messages) for item in items],
        add_generation_prompt=True,
        padding=True,
        return_tensors="pt",
        return_dict=True,
    )
    output = model.generate(**encoded, max_new_tokens=64, do_sample=False)
    new = output[:, encoded["input_ids"].shape[1] :]  # [B, new tokens]
    return tokenizer.batch_decode(new, skip_special_tokens=True)


def evaluate(folder: Path, count: int) -> str:
    """A table of the held-out answers right, in fp32 from the stored weights, by task, width and rounding."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = Gemma3nForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    lines = ["| task | width | weights | right |", "|---|---|---|---|"]
    for task, width, rounded in itertools.product(data.TASKS, (FULL_WIDTH, HALF_WIDTH), (False, True)):
        use_width(model, width)
        items = data.held_out(task, count)
        with int4_weights(model) if rounded else contextlib.nullcontext():
            answers = [
                text for at in range(0, count, 125) for text in answer(model, tokenizer, items[at : at + 125])
            ]
        right = sum(data.is_right(item, text) for item, text in zip(items, answers, strict=True))
        weights = "int4, rounded" if rounded else "bfloat16"
        lines.append(f"| {task} | {width} | {weights} | {right} of {count} ({100 * right / count:.1f} %) |")
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0 = all cores")
    parser.add_argument("--held-out", type=int, default=500, help="held-out questions a task")
    parser.add_argument("--out", type=Path, default=CHECKPOINT)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    write_tokenizer(arguments.out)
    tokenizer = AutoTokenizer.from_pretrained(arguments.out)
    write_checkpoint(train(tokenizer, seed=arguments.seed, steps=arguments.steps), arguments.out)
    STATE.unlink()
    print(evaluate(arguments.out, arguments.held_out))


if __name__ == "__main__":
    main()
