"""Compares an artifact with transformers on the checkpoint it came from.

The reference is transformers' model in float32 with eager attention. It answers each prompt greedily; the
artifact, run by the runtime that ships, is fed the same ids: the prompt in chunks, then the answer token
by token, so that both prefill and decoding are compared, at every position.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray

from edge_gemma import artifact as artifacts
from edge_gemma.config import TextConfig
from edge_gemma.errors import ArtifactError, DependencyError
from edge_gemma.export.checkpoint import Checkpoint
from edge_gemma.export.parity import ParityReport, combine, compare
from edge_gemma.export.timm_support import repair_torchvision
from edge_gemma.progress import Progress, Silent
from edge_gemma.runtime.chat import ChatTemplate
from edge_gemma.runtime.decoder import Decoder
from edge_gemma.runtime.embeddings import EmbeddingStore
from edge_gemma.runtime.kv_cache import KvCache
from edge_gemma.runtime.tokenizer import Tokenizer

PROMPTS = (
    "What is 17 + 25?",
    "Turn on the kitchen light.",
    "Why is the sky blue? Answer in one sentence.",
    "Translate to Spanish: where is the train station?",
    "Write a Python function that returns the n-th Fibonacci number, then explain how it works, line by "
    "line, to somebody who has never programmed before and who would like to know what a function is.",
)
HARD_EMBEDDINGS = ("embed_vision.embedding.weight", "embed_audio.embedding.weight")
ROW_CHUNK = 8192  # rows of a large table copied at once


def verify(
    artifact_folder: Path,
    checkpoint: Checkpoint,
    *,
    prompts: Sequence[str] = PROMPTS,
    new_tokens: int = 32,
    chunk: int = 32,
    progress: Progress | None = None,
) -> ParityReport:
    """Compare logits at every position of every prompt and of the reference's greedy answer.

    Raises:
        ArtifactError: the artifact cannot be opened, or does not have the checkpoint's shape.
        DependencyError: transformers is missing.
    """
    progress = progress or Silent()
    artifact = artifacts.read(artifact_folder)
    manifest = artifact.manifest
    _check_shapes(artifact, checkpoint.config.text)
    tokenizer = Tokenizer(artifact.path(manifest.tokenizer.file), manifest.tokenizer)
    template = ChatTemplate.from_file(artifact.path(manifest.chat_template))
    reference = load_reference(checkpoint, progress)
    decoder = Decoder(artifact)
    store = EmbeddingStore(artifact.path(manifest.embeddings.file), manifest.embeddings)
    reports = []
    progress.stage("prompts", len(prompts))
    for prompt in prompts:
        ids = template.encode(prompt, tokenizer)
        tokens, expected = greedy_reference(reference, ids, new_tokens)
        found = forced_logits(decoder, store, ids, tokens, chunk=chunk)
        reports.append(compare(found, expected))
        progress.advance()
    store.close()
    return combine(reports)


def load_reference(checkpoint: Checkpoint, progress: Progress | None = None) -> Any:
    """transformers' model with the checkpoint's weights in float32 and eager attention, without the towers.

    It is Gemma3nForConditionalGeneration where the checkpoint has hard embeddings of images and audio, which
    replace those of their ids; else Gemma3nForCausalLM.
    """
    repair_torchvision()
    try:
        from transformers import Gemma3nForCausalLM, Gemma3nForConditionalGeneration
        from transformers.initialization import no_init_weights
    except ImportError:
        raise DependencyError("transformers is missing: pip install 'edge-gemma[export]'") from None
    progress = progress or Silent()
    model: Any
    with no_init_weights(), _no_towers():
        if all(map(checkpoint.has, HARD_EMBEDDINGS)):
            model = Gemma3nForConditionalGeneration(_whole_config(checkpoint))
        else:
            model = Gemma3nForCausalLM(reference_config(checkpoint.config.text))
    model.eval()
    text = getattr(model.model, "language_model", model.model)
    parameters = dict(text.named_parameters())
    for embedder in ("embed_vision", "embed_audio"):
        if module := getattr(model.model, embedder, None):
            parameters |= {f"{embedder}.{name}": p for name, p in module.named_parameters()}
    progress.stage("reference", len(parameters))
    with torch.no_grad():
        for name, parameter in parameters.items():
            if parameter.ndim == 2:
                for first in range(0, len(parameter), ROW_CHUNK):
                    last = min(first + ROW_CHUNK, len(parameter))
                    parameter[first:last] = checkpoint.rows(name, first, last).float()
            else:
                parameter.copy_(checkpoint.tensor(name).float())
            progress.advance()
    model.lm_head.weight = text.embed_tokens.weight
    return model


@contextmanager
def _no_towers() -> Iterator[None]:
    """Gemma3nModel made inside has neither tower: they are not run, and are large."""
    from transformers.models.gemma3n import modeling_gemma3n

    real = modeling_gemma3n.AutoModel.from_config

    def from_config(config: Any, **options: Any) -> Any:
        if config.model_type != "gemma3n_text":
            return torch.nn.Identity()
        return real(config, **options | {"dtype": torch.float32})  # Google's config names bfloat16

    with mock.patch.object(modeling_gemma3n.AutoModel, "from_config", from_config):
        yield


def _whole_config(checkpoint: Checkpoint) -> Any:
    from transformers import Gemma3nConfig

    config = Gemma3nConfig.from_dict(copy.deepcopy(checkpoint.config_json))
    config._attn_implementation = config.text_config._attn_implementation = "eager"
    return config


def reference_config(c: TextConfig) -> Any:
    """transformers' Gemma3nTextConfig of the same shape, with eager attention."""
    from transformers import Gemma3nTextConfig

    return Gemma3nTextConfig(
        attn_implementation="eager",
        vocab_size=c.vocab_size,
        vocab_size_per_layer_input=c.vocab_size_per_layer_input,
        hidden_size=c.hidden_size,
        hidden_size_per_layer_input=c.hidden_size_per_layer_input,
        intermediate_size=list(c.intermediate_size),
        num_hidden_layers=c.num_hidden_layers,
        num_attention_heads=c.num_attention_heads,
        num_key_value_heads=c.num_key_value_heads,
        head_dim=c.head_dim,
        layer_types=list(c.layer_types),
        num_kv_shared_layers=c.num_kv_shared_layers,
        sliding_window=c.sliding_window,
        activation_sparsity_pattern=list(c.activation_sparsity_pattern),
        altup_num_inputs=c.altup_num_inputs,
        altup_active_idx=c.altup_active_idx,
        altup_correct_scale=c.altup_correct_scale,
        laurel_rank=c.laurel_rank,
        rms_norm_eps=c.rms_norm_eps,
        final_logit_softcapping=c.final_logit_softcapping,
        rope_parameters={k: {"rope_type": "default", "rope_theta": v} for k, v in c.rope_theta.items()},
        max_position_embeddings=c.max_position_embeddings,
    )


def greedy_reference(
    model: Any, prompt: Sequence[int], new_tokens: int, *, stop: Collection[int] = ()
) -> tuple[list[int], NDArray[np.float32]]:
    """The reference's greedy answer, and its logits at every position that predicts a token.

    Returns:
        new_tokens ids, or those up to the first one in `stop`; and logits float32 [len(prompt) + ids - 1, V].
    """
    rows = []
    tokens: list[int] = []
    step = torch.tensor([list(prompt)])  # int64 [1, S]
    cache = None
    with torch.no_grad():
        while len(tokens) < new_tokens and not (tokens and tokens[-1] in stop):
            output = model(input_ids=step, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            rows.append(output.logits[0].float().numpy())
            tokens.append(int(rows[-1][-1].argmax()))
            step = torch.tensor([[tokens[-1]]])
    return tokens, np.concatenate(rows)


def forced_logits(
    decoder: Decoder, store: EmbeddingStore, prompt: Sequence[int], answer: Sequence[int], *, chunk: int
) -> NDArray[np.float32]:
    """The artifact's logits for the same ids: float32 [len(prompt) + len(answer) - 1, V]"""
    cache = KvCache(decoder.spec, context=len(prompt) + len(answer), chunk=chunk)
    pieces = [list(prompt[i : i + chunk]) for i in range(0, len(prompt), chunk)]
    pieces += [[token] for token in answer[:-1]]
    return np.concatenate([decoder.forward(*store.rows(ids), cache, num_logits=len(ids)) for ids in pieces])


def _check_shapes(artifact: artifacts.Artifact, config: TextConfig) -> None:
    spec = artifact.manifest.embeddings
    found = (spec.layers, spec.hidden_size, spec.per_layer_width, artifact.manifest.vocab_size)
    expected = (
        config.num_hidden_layers,
        config.hidden_size,
        config.hidden_size_per_layer_input,
        config.vocab_size,
    )
    if found != expected:
        raise ArtifactError(
            f"{artifact.folder} has layers, widths and vocabulary {found}, the checkpoint {expected}: "
            f"compare it with the checkpoint it was made from ({artifact.manifest.source.name})"
        )
