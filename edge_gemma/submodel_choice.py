"""Which published sub-model of E4B fits a memory budget best, and what may lie between two of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from edge_gemma.candidates import Candidate
from edge_gemma.memory import format_bytes
from edge_gemma.models import ENCODERS, foretell, foretell_shape, text_config
from edge_gemma.planning import longest, plan
from edge_gemma.recipes import Recipe
from edge_gemma.submodels import Submodel, apply, block_of, published

SOURCE = "E4B"
NOTABLE = 1.0  # points of MMLU between two published sub-models, from which on one between them is proposed
STEP = 128  # neurons by which a proposed width grows, at least


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A sub-model, and what a budget means for it."""

    submodel: Submodel
    candidate: Candidate
    speed: float  # of decoding relative to all of E4B, by the bytes of weights that a token reads

    @property
    def name(self) -> str:
        return self.submodel.name

    @property
    def mmlu(self) -> float:
        return self.submodel.mmlu or 0.0

    @property
    def fits(self) -> bool:
        return self.candidate.plan.fits


class Chooser:
    """Compares sub-models of E4B under one recipe, context and budget.

    `encoders` are those that the artifact will have: "audio", "image".
    """

    def __init__(
        self, recipe: Recipe, *, context: int, budget: int, encoders: Iterable[str] = tuple(ENCODERS)
    ) -> None:
        self.recipe = recipe
        self.context = context
        self.budget = budget
        self.encoders = frozenset(encoders)
        self._source = text_config(SOURCE)
        self._whole = foretell(SOURCE, recipe).decoder.weights

    def ranked(self) -> list[Choice]:
        """The published ones, the recommended one first.

        Of those that fit that is the one of highest MMLU, then the faster one. Behind them are those that do
        not fit, the smallest first.
        """

        def order(c: Choice) -> tuple[bool, float, int]:
            weights = c.candidate.needs.decoder.weights
            return (False, -c.mmlu, weights) if c.fits else (True, 0.0, c.candidate.plan.peak)

        return sorted(map(self._choice, published(self._source).values()), key=order)

    def between(self, ranked: Sequence[Choice]) -> Choice | None:
        """A sub-model between the first of `ranked` and the next better one, as large as the budget allows.

        It is the first with layers widened that the next better one has wider, from the last layer to the
        first, each to its end before the one before it begins. Its MMLU is interpolated by how much of what
        there is to widen is widened. None where the next better one is hardly better, or no width fits.
        """
        first, better = ranked[0], next_better(ranked)
        if better is None or better.mmlu - first.mmlu < NOTABLE:
            return None
        step = max(STEP, block_of(self.recipe))
        goal = dict(zip(better.submodel.layers, better.submodel.widths, strict=True))
        own = dict(zip(first.submodel.layers, first.submodel.widths, strict=True))
        room = {layer: max(goal.get(layer, 0) - own[layer], 0) for layer in reversed(first.submodel.layers)}

        def grown(steps: int) -> Submodel:
            widths, left = dict(own), steps * step
            for layer, most in room.items():
                more = min(left, most)
                widths[layer] += more
                left -= more
            added = 3e-9 * steps * step * self._source.hidden_size  # gate, up and down
            effective = (first.submodel.effective or 0.0) + added
            share = steps * step / sum(room.values())
            return replace(
                first.submodel,
                name=f"E{effective:.2f}B-proposed",
                widths=tuple(widths.values()),
                mmlu=first.mmlu + share * (better.mmlu - first.mmlu),
                effective=effective,
            )

        steps = longest(lambda n: self._choice(grown(n)).fits, sum(room.values()) // step)
        return self._choice(grown(steps)) if steps else None

    def _choice(self, submodel: Submodel) -> Choice:
        needs = foretell_shape(apply(submodel, self._source, block=block_of(self.recipe)), self.recipe)
        kept = {kind: size for kind, size in needs.encoders.items() if kind in self.encoders}
        needs = replace(needs, encoders=kept)
        candidate = Candidate(
            model=None,
            submodel=submodel.name,
            recipe=self.recipe.name,
            quantized=self.recipe.matrices["mlp"] is not None,
            limit=self._source.max_position_embeddings,
            needs=needs,
            plan=plan(needs, context=self.context, budget=self.budget),
        )
        return Choice(
            submodel=submodel, candidate=candidate, speed=self._whole / candidate.needs.decoder.weights
        )


def next_better(ranked: Sequence[Choice]) -> Choice | None:
    """The smallest of those that are better than the first and do not fit; None where it is the best."""
    return next((c for c in ranked if not c.fits and c.mmlu > ranked[0].mmlu), None)


def explain(ranked: Sequence[Choice]) -> str:
    """Why the first of `ranked`, which fits, is the first, and what the next better one would need."""
    first, better = ranked[0], next_better(ranked)
    fitting = sum(c.fits for c in ranked)
    why = (
        f"{first.name} has the highest published MMLU, {first.mmlu:.2f}, of the {fitting} that fit "
        f"{format_bytes(first.candidate.plan.budget or 0)}"
    )
    if better is None:
        return f"{why}, and no published one has a higher one"
    needed = format_bytes(better.candidate.plan.peak)
    return f"{why}; the next better, {better.name} ({better.mmlu:.2f}), needs {needed}"
