"""A model, of an artifact and its decoder. `loading` imports this while onnxruntime loads the decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from edge_gemma.artifact import Artifact
from edge_gemma.machine import usable_memory
from edge_gemma.memory import release_free_memory
from edge_gemma.planning import KEPT, TURNS, Plan
from edge_gemma.runtime.chat import ChatTemplate, control_tokens
from edge_gemma.runtime.decoder import Decoder
from edge_gemma.runtime.embeddings import EmbeddingStore
from edge_gemma.runtime.encoders import Encoders
from edge_gemma.runtime.engine import Model
from edge_gemma.runtime.generation import Generator
from edge_gemma.runtime.prefixes import Prefixes, room
from edge_gemma.runtime.prompt import PromptBuilder
from edge_gemma.runtime.tokenizer import Tokenizer


class Language(NamedTuple):
    """What an artifact makes of a text."""

    tokenizer: Tokenizer
    template: ChatTemplate


def open_language(artifact: Artifact) -> Language:
    """Tokenizer and chat template.

    Raises:
        ArtifactError: one of them is damaged.
    """
    manifest = artifact.manifest
    tokenizer = Tokenizer(artifact.path(manifest.tokenizer.file), manifest.tokenizer)
    control_tokens(tuple(tokenizer.special_tokens))  # the first prompt need not wait for it
    return Language(tokenizer, ChatTemplate.from_file(artifact.path(manifest.chat_template)))


def assemble(
    artifact: Artifact,
    language: Language,
    decoder: Decoder,
    plan: Plan,
    *,
    context: int,
    threads: int | None,
    providers: Sequence[str],
    session_memory: int | None,
) -> Model:
    """The parts of a model, put together; the options are those of `load`, settled."""
    manifest = artifact.manifest
    weights = [manifest.files[spec.data].bytes for spec in manifest.encoders]
    prefixes = Prefixes(room(plan, session_memory))
    encoders = Encoders(
        artifact,
        threads=threads,
        providers=providers,
        keep=plan.encoders == KEPT,
        make_room=decoder.give_way if plan.encoders == TURNS else release_free_memory,
        scarce=plan.peak + sum(weights) > usable_memory(),
    )
    store = EmbeddingStore(artifact.path(manifest.embeddings.file), manifest.embeddings)
    return Model(
        manifest,
        language.tokenizer,
        PromptBuilder(manifest, language.template, language.tokenizer),
        encoders,
        store,
        Generator(decoder, store, context=context, chunk=plan.chunk, prefixes=prefixes),
        plan,
        session_memory,
    )
