"""Copies the tokenizer and the chat template, and reads which ids are special."""

from __future__ import annotations

import json
from pathlib import Path

import jinja2

from edge_gemma.artifact import CHAT_TEMPLATE, TOKENIZER, TokenSpec
from edge_gemma.errors import CheckpointError
from edge_gemma.export.checkpoint import Checkpoint

STOP_TOKENS = ("<eos>", "<end_of_turn>")


def loaded_size(path: Path) -> int:
    """What a tokenizer.json's size says about memory: its bytes without the space that indents it."""
    content = json.loads(path.read_text("utf-8"))
    return len(json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode())


def write_tokenizer(checkpoint: Checkpoint, folder: Path) -> TokenSpec:
    """Write tokenizer.json and chat_template.jinja to `folder`, unchanged.

    Raises:
        CheckpointError: either cannot be read, or the special ids are not there.
    """
    from tokenizers import Tokenizer

    raw = checkpoint.tokenizer_json()
    try:
        tokenizer = Tokenizer.from_buffer(raw)
    except Exception as error:  # tokenizers raises bare Exception for a malformed file
        raise CheckpointError(
            f"the tokenizer.json of {checkpoint.name} cannot be read ({error}): download the checkpoint again"
        ) from None
    (folder / TOKENIZER).write_bytes(raw)
    template = checkpoint.chat_template()
    try:
        jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(template)
    except jinja2.TemplateSyntaxError as error:
        raise CheckpointError(
            f"the chat template of {checkpoint.name} is not valid jinja "
            f"({error.message}, line {error.lineno}): download the checkpoint again"
        ) from None
    (folder / CHAT_TEMPLATE).write_text(template, "utf-8")
    generation = checkpoint.generation_config()
    stop = generation.get("eos_token_id")
    if stop is None:
        found = [tokenizer.token_to_id(t) for t in STOP_TOKENS]
        stop = [i for i in found if i is not None]
    stop = stop if isinstance(stop, list) else [stop]
    bos = generation.get("bos_token_id")
    if bos is None:
        bos = tokenizer.token_to_id("<bos>")
    pad = generation.get("pad_token_id")
    if pad is None:
        pad = tokenizer.token_to_id("<pad>")
    if bos is None:
        raise CheckpointError(
            f"the tokenizer of {checkpoint.name} has no <bos>: expected Gemma 3n's tokenizer"
        )
    pad = 0 if pad is None else pad
    if not all(type(i) is int for i in (bos, pad, *stop)):
        raise CheckpointError(
            f"the generation_config.json of {checkpoint.name} has bos {bos!r}, pad {pad!r} and eos {stop!r}: "
            "expected token ids"
        )
    return TokenSpec(
        bos=bos,
        pad=pad,
        stop=tuple(stop),
        media=checkpoint.config.token_ids,
    )
