"""Loss by recipe, block size and bits, on the demo checkpoint: the table behind the default recipe.

    python -m benchmarks.quantization [--items 100] [--only Q4_0 --only int4]

Logits are compared with the fp32 artifact's, over prompt and right answer of held-out questions; accuracy
is that of greedy answers. Q4_0 is llama.cpp's form of attention and MLP, in the same graph, with 8 bits
for all else. The last column is what the weights of E2B take in memory under the same recipe.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from unittest import mock

import click
import numpy as np
import torch

from benchmarks.block_error import q4_0_codes
from benchmarks.command import Benchmark
from benchmarks.demo_accuracy import CHECKPOINT, answers_of
from benchmarks.report import print_report
from demo.data import TASKS, held_out, is_right
from edge_gemma import artifact as artifacts
from edge_gemma.config import parse_config
from edge_gemma.export import weights
from edge_gemma.export.checkpoint import open_checkpoint
from edge_gemma.export.parity import combine, compare
from edge_gemma.export.pipeline import export
from edge_gemma.export.quantize import BlockQuantized, quantize_matrix
from edge_gemma.export.synthetic import CONFIGS
from edge_gemma.export.verify import forced_logits
from edge_gemma.footprint import memory_spec
from edge_gemma.memory import format_bytes
from edge_gemma.recipes import MatrixFormat, Recipe, RowFormat, load_recipes
from edge_gemma.runtime.chat import ChatTemplate
from edge_gemma.runtime.decoder import Decoder
from edge_gemma.runtime.embeddings import EmbeddingStore
from edge_gemma.runtime.tokenizer import Tokenizer

ATTENTION = ("attention", "attention_output")
LAYERS = (*ATTENTION, "mlp")
Q4_0 = "Q4_0"
PLAIN = "4 bits in all of attention"


def q4_0_matrix(weight: torch.Tensor, fmt: MatrixFormat) -> BlockQuantized:
    """`quantize_matrix` in llama.cpp's form where a matrix has 4 bits."""
    if fmt.bits != 4:
        return quantize_matrix(weight, fmt)
    codes, scales = q4_0_codes(weight.reshape(len(weight), -1, fmt.block))
    stored = (codes + 8).to(torch.uint8)
    packed = stored[..., 0::2] | stored[..., 1::2] << 4
    middle = np.full((len(weight), -(-scales.shape[1] // 2)), 0x88, np.uint8)
    return BlockQuantized(packed.numpy(), scales[..., 0].numpy(), middle)


def variants() -> Iterator[Recipe]:
    """The built-in recipes, Q4_0, int4 with 4 bits in all of attention, and that with one thing changed."""
    built_in = load_recipes()
    yield from built_in.values()
    int4 = built_in["int4"]
    four = MatrixFormat(bits=4, block=32, zero_points=False)
    quarter = dict.fromkeys(LAYERS, four)
    eight = {kind: RowFormat(bits=8, block=32) for kind in int4.rows}
    head = {"head": MatrixFormat(bits=8, block=32, zero_points=False)}
    yield replace(int4, name=Q4_0, matrices=int4.matrices | quarter | head, rows=eight)
    int4 = replace(int4, name=PLAIN, matrices=int4.matrices | {"attention": int4.matrices["mlp"]})
    yield int4

    def change(name: str, kinds: Sequence[str], bits: int, block: int, zero_points: bool) -> Recipe:
        fmt = MatrixFormat(bits=bits, block=block, zero_points=zero_points)
        return replace(int4, name=name, matrices=int4.matrices | dict.fromkeys(kinds, fmt))

    for zero_points, word in ((False, "middle"), (True, "fitted")):
        for block in (32, 64, 128):
            name = f"attention, mlp: block {block}, {word} zero points"
            yield change(name, LAYERS, 4, block, zero_points)
    for bits, block in ((4, 32), (4, 64), (4, 128), (8, 128)):
        yield change(f"head: {bits} bits, block {block}", ["head"], bits, block, bits == 4)
    for kinds in (ATTENTION, ("mlp",)):
        yield change(f"{kinds[0]}: 8 bits", kinds, 8, 128, False)
    yield change("attention, head: 8 bits", [*ATTENTION, "head"], 8, 128, False)
    for kind in ("altup", "laurel", "per_layer_input"):
        yield change(f"{kind}: 4 bits", [kind], 4, 128, True)
    yield replace(
        int4, name="embedding rows: 4 bits", rows=int4.rows | {"embedding": RowFormat(bits=4, block=32)}
    )
    yield replace(
        int4, name="per-layer rows: 8 bits", rows=int4.rows | {"per_layer": RowFormat(bits=8, block=32)}
    )
    yield replace(int4, name="float32 activations", accuracy_level=1)
    yield replace(int4, name="int8 global KV", kv_cache=int4.kv_cache | {"global": "int8"})


@click.command(cls=Benchmark)
@click.option("--items", default=100, show_default=True, help="Held-out questions per task.")
@click.option("--only", multiple=True, help="A recipe of the table; repeat for more. By default all.")
def main(items: int, only: tuple[str, ...]) -> None:
    """Loss of each variant against fp32 on the demo checkpoint."""
    questions = [item for task in TASKS for item in held_out(task, items)]
    e2b = parse_config(CONFIGS["E2B"]).text
    rows, data = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        reference = _logits(_export(load_recipes()["fp32"], folder / "reference"), questions)
        asked = [recipe for recipe in variants() if not only or recipe.name in only]
        for number, recipe in enumerate(asked):
            artifact = _export(recipe, folder / str(number))
            report = combine(
                [compare(o, r) for o, r in zip(_logits(artifact, questions), reference, strict=True)]
            )
            right = list(map(is_right, questions, answers_of(artifact, questions)))
            size = memory_spec(e2b, recipe, 0).weights
            accuracy = sum(right) / len(right)
            rows.append(
                (
                    recipe.name,
                    f"{report.kl_divergence:.2e}",
                    f"{report.snr_db:.1f}",
                    f"{report.argmax_agreement:.2%}",
                    f"{accuracy:.1%}",
                    format_bytes(size),
                )
            )
            data.append({"recipe": recipe.name, "accuracy": accuracy, "e2b_weights": size} | report.to_dict())
    header = ("recipe", "KL (nats)", "SNR (dB)", "argmax equal", "answers right", "E2B weights")
    print_report("benchmarks.quantization", header, rows, data)


def _export(recipe: Recipe, target: Path) -> Path:
    form = mock.patch.object(weights, "quantize_matrix", q4_0_matrix)
    with form if recipe.name == Q4_0 else contextlib.nullcontext():
        export(open_checkpoint(str(CHECKPOINT)), recipe, target, audio=False, vision=False)
    return target


def _logits(artifact: Path, questions: list) -> list:
    """Logits over prompt and right answer of each question, float32 [S, V] each."""
    opened = artifacts.read(artifact)
    manifest = opened.manifest
    tokenizer = Tokenizer(opened.path(manifest.tokenizer.file), manifest.tokenizer)
    template = ChatTemplate.from_file(opened.path(manifest.chat_template))
    decoder = Decoder(opened)
    store = EmbeddingStore(opened.path(manifest.embeddings.file), manifest.embeddings)
    outputs = []
    for item in questions:
        prompt = template.encode(item.messages, tokenizer)
        answer = [*tokenizer.encode(item.answer), manifest.tokens.stop[-1]]
        outputs.append(forced_logits(decoder, store, prompt, answer, chunk=128))
    store.close()
    return outputs


if __name__ == "__main__":
    main()
