"""Memory that the weights of an exported graph take."""

from __future__ import annotations

from pathlib import Path

from edge_gemma.recipes import MatrixFormat


def resident_weights(model: Path, fmt: MatrixFormat | None) -> int:
    """Bytes of memory that the weights of an encoder take once loaded, `fmt` being that of its matrices.

    onnxruntime copies what it reads into its own layout. Beside the codes of a block MatMulNBits keeps three
    floats, where the data file has one and a zero point.
    """
    stored = model.with_name(model.name + ".data").stat().st_size
    if fmt is None:
        return stored
    codes = fmt.block * fmt.bits // 8
    return int(stored * (codes + 12) / (codes + 4 + fmt.bits / 8))
