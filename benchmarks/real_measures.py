"""The story of benchmarks.real: which parts there are, what they need, and what is done where that lacks."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import real_parts
from benchmarks.first_layers import FirstLayers
from benchmarks.real_inputs import Clip
from benchmarks.real_work import NOT_RUN, Part, Result, Work, slug
from edge_gemma.artifact import MANIFEST, sha256
from edge_gemma.config import TextConfig
from edge_gemma.export.checkpoint import Checkpoint
from edge_gemma.export.pipeline import has_tower
from edge_gemma.footprint import memory_spec
from edge_gemma.memory import format_bytes
from edge_gemma.models import TOKENIZER_BYTES
from edge_gemma.planning import Needs, plan
from edge_gemma.recipes import MatrixFormat, Recipe, load_recipes

KINDS = ("verify", "loss", "blocks", "words", "memory", "speed")  # of parts, besides exports
EXACT, NEARLY_EXACT, BLOCKWISE = "fp32", "int8", "int4"  # recipes
BLOCKS = (32, 64, 128)  # weights that share a scale
CONTEXT = 2048  # tokens, for what a part needs in memory
IMPORTS = 1 << 30  # bytes that torch and transformers take before there is a model


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the user wants to know."""

    checkpoint: Checkpoint
    recipes: tuple[Recipe, ...]
    texts: tuple[str, ...]
    clips: tuple[Clip, ...]
    language: str | None  # spoken in the clips
    new_tokens: int  # of an answer, in comparisons of logits
    runs: int  # of bench
    memory: int  # bytes that a part may take
    skip: frozenset[str]  # of KINDS


class Measures:
    """Runs the parts in order; `work` has what became of them."""

    def __init__(self, asked: Asked, work: Work) -> None:
        self.asked = asked
        self.work = work
        self.cache = work.folder / "prepared"  # weights as onnxruntime packs them
        self._exports: dict[str, Path | None] = {}
        self._recipes = load_recipes()

    def run(self) -> None:
        """Every part, once."""
        for recipe in self.asked.recipes:
            self._export(recipe)
        self._unless_skipped("verify", self._verify)
        self._unless_skipped("loss", self._losses)
        self._unless_skipped("words", self._words)
        for recipe in self.asked.recipes:
            self._measure("memory", recipe, real_parts.memory, {}, cache=self.cache)
        for recipe in self.asked.recipes:
            runs = self.asked.runs
            self._measure("speed", recipe, real_parts.speed, {"runs": runs}, runs=runs, cache=self.cache)

    def _unless_skipped(self, kind: str, parts: Callable[[], None]) -> None:
        if kind in self.asked.skip:
            self.work.leave_out(kind, f"--skip {kind}")
        else:
            parts()

    # -- artifacts --------------------------------------------------------------------------------------

    def _export(self, recipe: Recipe, checkpoint: Checkpoint | None = None) -> Path | None:
        """The artifact, of the whole checkpoint or of another one; None where it could not be made."""
        whole = checkpoint is None
        name = f"export {recipe.name}" if whole else f"export {recipe.name}, first layers"
        if name not in self._exports:
            target = self.work.folder / "artifacts" / slug(name.removeprefix("export "))
            part = self.work.run(
                name,
                real_parts.export_recipe,
                settings={"recipe": recipe.details()},
                product=target / MANIFEST,
                checkpoint=checkpoint or self.asked.checkpoint,
                recipe=recipe,
                target=target,
            )
            self._exports[name] = target if part.done else None
        return self._exports[name]

    def _measure(
        self, kind: str, recipe: Recipe, task: Callable[..., Result], settings: Result, **arguments: Any
    ) -> Part:
        """A part that runs a recipe's artifact."""
        name = f"{kind} {recipe.name}"
        if kind in self.asked.skip:
            return self.work.leave_out(name, f"--skip {kind}")
        if lack := self._lack(name, runtime_bytes(self.asked.checkpoint.config.text, recipe)):
            return self.work.leave_out(name, lack)
        artifact = self._export(recipe)
        if artifact is None:
            return self.work.leave_out(name, f"there is no {recipe.name} artifact")
        return self._run_on(artifact, name, task, settings, **arguments)

    def _run_on(
        self, artifact: Path, name: str, task: Callable[..., Result], settings: Result, **arguments: Any
    ) -> Part:
        made = {"artifact": sha256(artifact / MANIFEST)}
        return self.work.run(name, task, settings=settings | made, artifact=artifact, **arguments)

    def _lack(self, name: str, needed: int) -> str:
        """Why there is too little memory for a part; nothing where there is enough, or was before."""
        if needed <= self.asked.memory or self.work.has(name):
            return ""
        return (
            f"it needs about {format_bytes(needed)} of memory, and {format_bytes(self.asked.memory)} are free"
        )

    def _precise_first(self, recipes: list[Recipe]) -> list[Recipe]:
        """Each once, the one with the largest weights first."""
        text = self.asked.checkpoint.config.text
        unique = {recipe.name: recipe for recipe in recipes}.values()
        return sorted(unique, key=lambda recipe: memory_spec(text, recipe, 0).weights, reverse=True)

    # -- against transformers ---------------------------------------------------------------------------

    def _verify(self) -> None:
        """fp32 against transformers; where memory does not allow that, what it does allow."""
        checkpoint = self.asked.checkpoint
        exact = self._recipes[EXACT]
        artifact = None
        if self._against(exact, checkpoint).status == NOT_RUN:
            others = [recipe for recipe in self._precise_first([*self.asked.recipes]) if recipe.name != EXACT]
            for recipe in others:
                if self._against(recipe, checkpoint).status != NOT_RUN:
                    break
            artifact = self._verify_first_layers(exact)
        self._verify_towers(artifact)

    def _verify_first_layers(self, exact: Recipe) -> Path | None:
        """As many layers as have every kind; the artifact."""
        first = FirstLayers(self.asked.checkpoint)
        layers = [c.config.text.num_hidden_layers for c in (first, self.asked.checkpoint)]
        if layers[0] >= layers[1]:
            name = f"verify {EXACT}, first layers"
            self.work.leave_out(name, f"the model has {layers[1]} layers, and {layers[0]} are needed")
            return None
        self._against(exact, first)
        return self._exports.get(f"export {EXACT}, first layers")

    def _against(self, recipe: Recipe, checkpoint: Checkpoint) -> Part:
        """Logits of a recipe's artifact of a checkpoint against transformers."""
        whole = checkpoint is self.asked.checkpoint
        layers = checkpoint.config.text.num_hidden_layers
        name = f"verify {recipe.name}" if whole else f"verify {recipe.name}, first {layers} layers"
        if lack := self._lack(name, pair_bytes(checkpoint, recipe)):
            return self.work.leave_out(name, f"beside transformers in float32 {lack}")
        artifact = self._export(recipe, None if whole else checkpoint)
        if artifact is None:
            return self.work.leave_out(name, f"there is no {recipe.name} artifact")
        tokens = {"new_tokens": self.asked.new_tokens}
        return self._run_on(artifact, name, real_parts.verify_text, tokens, checkpoint=checkpoint, **tokens)

    def _verify_towers(self, artifact: Path | None) -> None:
        """Soft tokens, of the given artifact or of the most precise one there is."""
        name = "verify encoders"
        if not self._has("audio") and not self._has("vision"):
            self.work.leave_out(name, "the checkpoint has neither an audio nor a vision tower")
            return
        best = [f"export {recipe.name}" for recipe in self._precise_first([*self.asked.recipes])]
        made = [self._exports.get(f"export {EXACT}"), artifact, *map(self._exports.get, best)]
        chosen = next(filter(None, made), None)
        if chosen is None:
            self.work.leave_out(name, "there is no artifact")
        else:
            checkpoint = self.asked.checkpoint
            self._run_on(chosen, name, real_parts.verify_towers, {}, checkpoint=checkpoint)

    def _has(self, kind: str) -> bool:
        return has_tower(self.asked.checkpoint, kind)

    # -- quantization loss ------------------------------------------------------------------------------

    def _losses(self) -> None:
        """By recipe, then by block size."""
        folder = self.work.folder / "reference"
        chosen = self._reference(folder)
        if chosen is None:
            for recipe in self.asked.recipes:
                self.work.leave_out(f"loss {recipe.name}", "there is nothing to compare with")
            self.work.leave_out("blocks", "there is nothing to compare with")
            return
        reference, settings = chosen
        for recipe in self.asked.recipes:
            if recipe.name != reference.name:
                self._measure("loss", recipe, real_parts.loss, settings, folder=folder)
        self._unless_skipped("blocks", lambda: self._blocks(folder, settings))

    def _reference(self, folder: Path) -> tuple[Recipe, Result] | None:
        """The most precise recipe that fits, whose logits are kept in `folder`, and what they depend on."""
        asked = self.asked
        settings: Result = {"texts": digest(asked.texts), "new_tokens": asked.new_tokens}
        extra = [self._recipes[name] for name in (EXACT, NEARLY_EXACT)]
        for recipe in self._precise_first([*extra, *asked.recipes]):
            part = self._measure(
                "reference",
                recipe,
                real_parts.reference_logits,
                settings,
                product=folder / real_parts.IDS,
                texts=asked.texts,
                new_tokens=asked.new_tokens,
                folder=folder,
            )
            if part.done:
                return recipe, {"reference": part.settings}
            if part.status != NOT_RUN:
                return None
        return None

    def _blocks(self, folder: Path, settings: Result) -> None:
        """The same rounding with blocks of different sizes."""
        text = self.asked.checkpoint.config.text
        for recipe in block_variants(self._recipes[BLOCKWISE]):
            if any(recipe.matrices == asked.matrices for asked in self.asked.recipes):
                continue
            name = f"loss {recipe.name}"
            if lack := self._lack(name, runtime_bytes(text, recipe)):
                self.work.leave_out(name, lack)
                continue
            self.work.run(
                name,
                real_parts.loss_of_variant,
                settings=settings | {"recipe": recipe.details()},
                checkpoint=self.asked.checkpoint,
                recipe=recipe,
                target=self.work.folder / "artifacts" / slug(recipe.name),
                folder=folder,
            )

    # -- speech -----------------------------------------------------------------------------------------

    def _words(self) -> None:
        """Word error rate by recipe."""
        clips, language = self.asked.clips, self.asked.language
        if not clips or not self._has("audio"):
            why = "the checkpoint has no audio tower" if clips else "no --clips were given"
            self.work.leave_out("words", why)
            return
        known = [[clip.path.name, clip.path.stat().st_size, clip.text] for clip in clips]
        settings = {"clips": digest(known), "language": language}
        for recipe in self.asked.recipes:
            self._measure(
                "words", recipe, real_parts.words, settings, clips=clips, language=language, cache=self.cache
            )


def block_variants(recipe: Recipe) -> list[Recipe]:
    """The recipe with 4 bits in attention and MLP, which hold most of the weights, by size of the blocks."""
    kinds = [kind for kind in recipe.matrices if kind.startswith(("attention", "mlp"))]
    found = []
    for block in BLOCKS:
        fmt = MatrixFormat(bits=4, block=block, zero_points=True)
        matrices = recipe.matrices | dict.fromkeys(kinds, fmt)
        found.append(replace(recipe, name=f"attention, MLP: 4 bits, blocks of {block}", matrices=matrices))
    return found


def runtime_bytes(text: TextConfig, recipe: Recipe) -> int:
    """About the memory that the runtime takes with a decoder."""
    needs = Needs.of_parts(memory_spec(text, recipe, TOKENIZER_BYTES), None, None)
    context = min(CONTEXT, text.max_position_embeddings)
    return plan(needs, context=context, prepared=False).peak


def pair_bytes(checkpoint: Checkpoint, recipe: Recipe) -> int:
    """About what transformers in float32 and the runtime take together."""
    parameters = sum(map(math.prod, checkpoint.text_shapes().values()))
    return 4 * parameters + IMPORTS + runtime_bytes(checkpoint.config.text, recipe)


def digest(data: Any) -> str:
    """Tells data from other data."""
    return hashlib.sha256(json.dumps(data).encode()).hexdigest()[:16]
