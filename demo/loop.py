"""The loop that every training stage runs in: schedule, optimizer, progress, and going on after a stop.

A stage draws everything that is random in a step from the seed and the step's number, so a run that was cut
goes on from its last saved state as if it had never stopped.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, distributed, nn

SAVE_SECONDS = 150
REPORT_EVERY = 25  # steps


@dataclass(frozen=True, kw_only=True)
class Stage:
    """How one stage is run. `decay` is the share of the steps in which the rate falls linearly to zero."""

    name: str
    seed: int
    steps: int
    rate: float
    warmup: int = 100
    decay: float = 0.5
    weight_decay: float = 0.05
    slow: tuple[str, ...] = ()  # parameters whose names start so learn at `slow_rate`
    slow_rate: float = 0.0

    def factor(self, step: int) -> float:
        """What the rates are multiplied with at a step."""
        return min(1.0, (step + 1) / self.warmup, (self.steps - step) / (self.decay * self.steps))


def set_threads(description: str | None) -> None:
    """The command line of a stage that runs alone: how many threads torch takes."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    torch.set_num_threads(parser.parse_args().threads)


def make_optimizer(model: nn.Module, stage: Stage) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices and kernels, none on norms and scales."""
    groups = []
    for slow in (False, True):
        named = [
            (name, p)
            for name, p in model.named_parameters()
            if p.requires_grad and (name.startswith(stage.slow) if stage.slow else False) == slow
        ]
        rate = stage.slow_rate if slow else stage.rate
        for matrix in (True, False):
            params = [p for _, p in named if (p.dim() >= 2) == matrix]
            decay = stage.weight_decay if matrix else 0.0
            if params:
                groups.append({"params": params, "lr": rate, "peak": rate, "weight_decay": decay})
    return torch.optim.AdamW(groups, betas=(0.9, 0.98))


def run(
    model: nn.Module,
    stage: Stage,
    losses: Callable[[int], Iterator[tuple[str, Tensor]]],
    *,
    folder: Path,
    after: Callable[[int], None] | None = None,
) -> nn.Module:
    """Trains `model` by the named losses that `losses(step)` yields; each is differentiated as it comes.

    `after(step)` is called after every step, for tests and evaluation. In a group of processes each has
    losses of its own; the gradients are averaged, so the models stay equal; the first saves and reports.
    """
    first_process = not distributed.is_initialized() or distributed.get_rank() == 0
    optimizer = make_optimizer(model, stage)
    state = folder / f"{stage.name}.pt"
    first = load_state(state, model, optimizer, stage)
    model.train()
    started = saved = time.monotonic()
    recent: dict[str, list[float]] = {}
    for step in range(first, stage.steps):
        for name, loss in losses(step):
            loss.backward()
            recent.setdefault(name, []).append(loss.item())
        average_gradients(model)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * stage.factor(step)
        optimizer.step()
        optimizer.zero_grad()
        done, now = step + 1, time.monotonic()
        if done % REPORT_EVERY == 0 and first_process:
            means = "  ".join(f"{name} {sum(values) / len(values):.4f}" for name, values in recent.items())
            pace = (now - started) / (done - first)
            left = f"{pace:.2f} s a step, {(stage.steps - done) * pace / 60:.0f} min left"
            print(f"{stage.name} {done}/{stage.steps}  {means}  {left}", file=sys.stderr, flush=True)
            recent = {}
        if first_process and (done == stage.steps or now - saved > SAVE_SECONDS):
            save_state(state, model, optimizer, stage, done)
            saved = now
        if after is not None:
            after(step)
    return model


def average_gradients(model: nn.Module) -> None:
    """Over all processes of the group, if there is one; all have gradients for the same parameters."""
    if not distributed.is_initialized():
        return
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def save_state(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, stage: Stage, step: int
) -> None:
    """Replaces the saved state in one move, so that a run cut short while saving keeps the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {
        "stage": repr(stage),
        "step": step,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def load_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, stage: Stage) -> int:
    """Restores the saved state of the same stage, if there is one, and returns the next step."""
    if not path.exists():
        return 0
    state = torch.load(path)
    if state["stage"] != repr(stage):
        print(f"{path} is of another run and will be replaced", file=sys.stderr)
        return 0
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    print(f"{stage.name}: continuing after step {state['step']}", file=sys.stderr)
    return int(state["step"])
