"""Which model under which recipe fits a memory budget, and what would fit where none of them does.

submodel_choice.py compares sub-models of one model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from edge_gemma.artifact import Manifest
from edge_gemma.memory import format_bytes
from edge_gemma.models import MODELS, TEXT, foretell, model_of
from edge_gemma.planning import CHUNKS, TURNS, Needs, Plan, longest, plan, settle
from edge_gemma.recipes import Recipe, load_recipes

ROUND = 256  # tokens: an estimate is not exact to the token
MIB = 1 << 20
INT8 = "int8"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A model under a recipe, and what a budget means for it."""

    model: str | None  # E2B or E4B; None: neither
    recipe: str
    quantized: bool
    limit: int  # tokens of context that the model was made for
    needs: Needs
    plan: Plan  # the fastest settings that fit; the most sparing ones where none does
    submodel: str | None = None  # its name, where it is a part of a model

    @property
    def title(self) -> str:
        return f"{self.submodel or self.model or 'this model'} {self.recipe}"

    @property
    def longest(self) -> int:
        """The longest context that fits, in tokens; 0 if none does. An estimate: a round number."""
        budget = self.plan.budget
        found = longest(lambda tokens: _sparing(self.needs, tokens, budget).fits, self.limit)
        return found if found == self.limit else found // ROUND * ROUND


def of_model(model: str, recipe: Recipe, *, context: int, budget: int) -> Candidate:
    """A model that need not have been exported: "E2B" or "E4B"."""
    needs = foretell(model, recipe)
    return Candidate(
        model=model,
        recipe=recipe.name,
        quantized=recipe.matrices["mlp"] is not None,
        limit=TEXT["max_position_embeddings"],
        needs=needs,
        plan=plan(needs, context=context, budget=budget),
    )


def of_artifact(manifest: Manifest, *, context: int, budget: int, level: int | None = None) -> Candidate:
    """The model of an artifact; of an elastic one, the level of this index, by default the widest."""
    needs = Needs.of(manifest, level)
    return Candidate(
        model=model_of(manifest),
        submodel=manifest.submodel if level is None else manifest.levels[level].name,
        recipe=manifest.recipe,
        quantized=manifest.recipe_details["matrices"]["mlp"] is not None,
        limit=manifest.max_context,
        needs=needs,
        plan=plan(needs, context=context, budget=budget),
    )


def rank(candidates: Iterable[Candidate], preferred: tuple[str, str] | None = None) -> list[Candidate]:
    """The recommended one first.

    Of those that fit, that is the `preferred` (model, recipe), then the larger model, then the larger recipe;
    those without quantization come last. Behind them are those that do not fit, the smallest first.
    """
    models = list(MODELS)

    def order(c: Candidate) -> tuple[bool, bool, bool, int, int]:
        if not c.plan.fits:
            return True, False, False, 0, c.plan.peak
        size = -models.index(c.model) if c.model else 0
        return False, (c.model, c.recipe) != preferred, not c.quantized, size, -c.needs.decoder.weights

    return sorted(candidates, key=order)


def advise(asked: Sequence[Candidate]) -> str:
    """One sentence for candidates of which none fits: how much is missing, and what would fit."""
    nearest = rank(asked)[0]
    context, budget = nearest.plan.context, nearest.plan.budget
    assert budget is not None
    ideas = [
        *_shorter(asked),
        *_smaller_cache(nearest),
        *_others(nearest, asked),
        f"a budget of {-(-nearest.plan.peak // MIB)}MiB",
    ]
    return (
        f"nothing fits {format_bytes(budget)} at {context} tokens of context, {nearest.title} needs "
        f"{format_bytes(nearest.plan.peak)}: what would fit is {' or '.join(ideas)}"
    )


def _shorter(asked: Sequence[Candidate]) -> list[str]:
    best = max(asked, key=lambda c: c.longest)
    tokens = best.longest
    return [f"a context of {tokens} tokens ({best.title})"] if tokens else []


def _smaller_cache(c: Candidate) -> list[str]:
    """Keys and values of the global layers in 8 bits, where there is no choice of them and that is enough."""
    if INT8 in c.needs.global_kv:
        return []
    small = _sparing(replace(c.needs, global_kv=(*c.needs.global_kv, INT8)), c.plan.context, c.plan.budget)
    return [f"an export with --global-kv {INT8}"] if small.fits else []


def _others(c: Candidate, asked: Sequence[Candidate]) -> list[str]:
    """The same model under another recipe, and a smaller model, where they were not asked about and fit."""
    if c.model is None or c.plan.budget is None:
        return []
    known = {(other.model, other.recipe) for other in asked}
    models = list(MODELS)
    fitting = rank(
        other
        for model in models[: models.index(c.model) + 1]
        for recipe in load_recipes().values()
        if (model, recipe.name) not in known
        and (other := of_model(model, recipe, context=c.plan.context, budget=c.plan.budget)).plan.fits
    )
    same = [f"the recipe {other.recipe}" for other in fitting if other.model == c.model]
    smaller = [f"the model {other.model} ({other.recipe})" for other in fitting if other.model != c.model]
    return same[:1] + smaller[:1]


def _sparing(needs: Needs, context: int, budget: int | None) -> Plan:
    """The settings that take least memory."""
    return settle(
        needs,
        context=context,
        global_kv=needs.global_kv[-1],
        chunk=CHUNKS[-1],
        encoders=TURNS,
        budget=budget,
    )
