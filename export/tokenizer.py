"""Writes the tokenizer, for the runtime and for other programs, and the chat template; reads special ids."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import jinja2

from edge_gemma.artifact import CHAT_TEMPLATE, TOKENIZER, TOKENIZER_JSON, TokenSpec
from edge_gemma.errors import CheckpointError
from edge_gemma.export.checkpoint import Checkpoint
from edge_gemma.export.tokenizer_tables import write_tables
from edge_gemma.runtime.tokenizer import Tokenizer
from edge_gemma.tokenizer_spec import TokenizerSpec

if TYPE_CHECKING:
    import tokenizers

STOP_TOKENS = ("<eos>", "<end_of_turn>")
PIECES = 2000  # of the vocabulary, that the comparison with the library encodes and decodes
SAMPLES = (
    "",
    " ",
    "The quick brown fox jumps over the lazy dog. 1234567890",
    "  two spaces, a\ttab\r\n\r\n\n\n\n and     more \n",
    "\0\x01\x1b\x7f\x85\u200b\u200d\u2028\ufeff\ufffd\U000e0001",
    "def f(x: int) -> list[str]:\n    return [f'{x:>08}' for _ in range(x ** 2)]  # ≥ 0\n",
    "<div class=\"a\">&amp;</div> https://example.org/?q=a%20b#c {'key': [null, 1e-9]} C:\\new\\table",
    "El pingüino Añade ¿qué? ¡Sí! Übergrößenträger, français, Čeština, Tiếng Việt, Íslenska",
    "Съешь ещё этих мягких французских булок; Ξεσκεπάζω την ψυχοφθόρα βδελυγμία",
    "いろはにほへと 色は匂へど散りぬるを 我能吞下玻璃而不伤身体 키스의 고유조건은",
    "נקבה של דג, אֲנִי יכול أنا قادر على أكل الزجاج मैं काँच खा सकता हूँ ฉันกินกระจกได้ ይህ ጥሩ ነው",
    "👩‍👩‍👧‍👦🇩🇪🏴󠁧󠁢󠁳󠁣󠁴󠁿 e\u0301 Z\u0351\u0343\u0349a\u0323\u0302 𝕬𝖇𝖈 𐍈 𓀀 \U0010ffff",
    "▁ ▁▁a▁ b▁",
    "a" * 100 + " " * 100 + "\n" * 40 + "ab" * 50 + "😀" * 10,
)


def write_tokenizer(checkpoint: Checkpoint, folder: Path) -> tuple[TokenSpec, TokenizerSpec]:
    """Write tokenizer.bin, and tokenizer.json and chat_template.jinja unchanged, to `folder`.

    Raises:
        CheckpointError: one cannot be read, the tokenizer is not of Gemma's kind, or the special ids are not
            there.
    """
    from tokenizers import Tokenizer as Library

    raw = checkpoint.tokenizer_json()
    try:
        tokenizer = Library.from_buffer(raw)
    except Exception as error:  # tokenizers raises bare Exception for a malformed file
        raise CheckpointError(
            f"the tokenizer.json of {checkpoint.name} cannot be read ({error}): download the checkpoint again"
        ) from None
    (folder / TOKENIZER_JSON).write_bytes(raw)
    tables = write_tables(tokenizer, folder / TOKENIZER, checkpoint.name)
    check_tables(tokenizer, folder / TOKENIZER, tables, checkpoint.name)
    template = checkpoint.chat_template()
    try:
        jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(template)
    except jinja2.TemplateSyntaxError as error:
        raise CheckpointError(
            f"the chat template of {checkpoint.name} is not valid jinja "
            f"({error.message}, line {error.lineno}): download the checkpoint again"
        ) from None
    (folder / CHAT_TEMPLATE).write_text(template, "utf-8")
    return _special_ids(checkpoint, tokenizer), tables


def check_tables(tokenizer: tokenizers.Tokenizer, path: Path, spec: TokenizerSpec, source: str) -> None:
    """Refuse tables with which the runtime does not encode and decode as the library does.

    Raises:
        CheckpointError: a text or ids whose results differ.
    """
    tokenizer.no_truncation()
    tokenizer.no_padding()
    ours = Tokenizer(path, spec)
    some = range(0, spec.ids, 1 + spec.ids // PIECES)
    special = list(tokenizer.get_added_tokens_decoder())[:PIECES]
    pieces = [tokenizer.id_to_token(i) or "" for i in (*some, *special)]
    for text in (*SAMPLES, "".join(pieces), " ".join(pieces)):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        same = ours.encode(text) == ids and ours.decode(ids) == tokenizer.decode(ids)
        if not same or ours.decode(ids[::-1]) != tokenizer.decode(ids[::-1]):
            raise CheckpointError(
                f"the tokenizer of {source} gives other ids or another text than the library's for "
                f"{text[:40]!r}: please report it, with its tokenizer.json"
            )


def _special_ids(checkpoint: Checkpoint, tokenizer: tokenizers.Tokenizer) -> TokenSpec:
    """From generation_config.json; what it leaves open, from the tokenizer."""
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
