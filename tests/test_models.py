"""What is foretold of Google's models agrees with what was measured, and needs nothing of the export."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from edge_gemma.export.synthetic import SyntheticCheckpoint
from edge_gemma.export.tokenizer_tables import write_tables
from edge_gemma.models import MODELS, TOKENIZER_BYTES, foretell, model_name, text_config
from edge_gemma.planning import TURNS, settle
from edge_gemma.recipes import load_recipes

MIB = 1 << 20
RECIPES = load_recipes()


def test_a_conversation_needs_what_was_measured() -> None:
    """VmHWM of `edge-gemma check` on E2B int4 at 4096 tokens, docs/memory.md."""
    needs = foretell("E2B", RECIPES["int4"])
    assert settle(needs, context=4096, encoders=TURNS).peak / MIB == pytest.approx(1719, rel=0.02)


@pytest.mark.parametrize(("kind", "measured"), [("audio", 863), ("image", 739)])
def test_an_encoder_needs_what_was_measured(kind: str, measured: int) -> None:
    """docs/media.md, at 8 bits; in float32 its file alone (tests/test_footprint.py) is larger."""
    assert foretell("E2B", RECIPES["int4"]).encoders[kind] / MIB == pytest.approx(measured, rel=0.03)
    assert foretell("E4B", RECIPES["int8"]).encoders == foretell("E2B", RECIPES["int4"]).encoders
    file = {"audio": 2597, "image": 1139}[kind]
    assert file < foretell("E2B", RECIPES["fp32"]).encoders[kind] / MIB < file + 500


def test_the_tokenizer_is_that_of_the_synthetic_checkpoints(tmp_path: Path) -> None:
    raw = SyntheticCheckpoint.from_name("synthetic:E2B").tokenizer_json()
    write_tables(Tokenizer.from_buffer(raw), tmp_path / "tokenizer.bin", "a test")
    assert (tmp_path / "tokenizer.bin").stat().st_size == pytest.approx(TOKENIZER_BYTES, rel=0.01)


def test_a_model_is_known_by_its_shapes() -> None:
    for name in MODELS:
        config = text_config(name)
        assert model_name(config) == name
        assert model_name(replace(config, rms_norm_eps=1e-5)) == name
        wider = (8192, *config.intermediate_size[1:-1], 4096)
        assert model_name(replace(config, intermediate_size=wider)) is None
    assert model_name(SyntheticCheckpoint.from_name("synthetic:tiny").config.text) is None
