"""Embedding records: what is read is what the file holds, and how often it is read."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import edge_gemma
from edge_gemma.artifact import EmbeddingSpec, RowField
from edge_gemma.errors import ArtifactError, EdgeGemmaError, PromptError
from edge_gemma.runtime.embeddings import EmbeddingStore

RECORDS, HIDDEN, LAYERS, WIDTH, BLOCK = 12, 16, 3, 8, 8
IDS = st.lists(st.integers(0, RECORDS - 1), min_size=1, max_size=12)


def make_field(name: str, values: int, bits: int, offset: int) -> tuple[RowField, int]:
    """A field at `offset`, its scales behind its codes, and where it ends."""
    scales = offset + values * bits // 8
    field = RowField(
        name=name,
        offset=offset,
        values=values,
        bits=bits,
        block=BLOCK,
        scale_offset=scales if bits < 32 else 0,
    )
    return field, scales + (2 * values // BLOCK if bits < 32 else 0)


def make_file(path: Path, embedding_bits: int, per_layer_bits: int) -> EmbeddingSpec:
    """Random records; every float in them is finite."""
    embedding, end = make_field("embedding", HIDDEN, embedding_bits, 0)
    per_layer, end = make_field("per_layer", LAYERS * WIDTH, per_layer_bits, end)
    rng = np.random.default_rng(0)
    records = rng.integers(0, 256, (RECORDS, end), dtype=np.uint8)
    for field in (embedding, per_layer):
        if field.bits == 32:
            where, values = field.offset, rng.standard_normal((RECORDS, field.values)).astype(np.float32)
        else:
            where = field.scale_offset
            values = rng.standard_normal((RECORDS, field.values // BLOCK)).astype(np.float16)
        raw = values.view(np.uint8)
        records[:, where : where + raw.shape[1]] = raw
    path.write_bytes(records.tobytes())
    return EmbeddingSpec(
        file=path.name,
        records=RECORDS,
        record_bytes=end,
        hidden_size=HIDDEN,
        layers=LAYERS,
        per_layer_width=WIDTH,
        fields=(embedding, per_layer),
    )


def expected(record: bytes, field: RowField) -> list[float]:
    """RowField's documentation, one value at a time."""
    if field.bits == 32:
        return np.frombuffer(record, np.float32, field.values, field.offset).tolist()
    scales = np.frombuffer(record, np.float16, field.values // BLOCK, field.scale_offset).astype(np.float32)
    values = []
    for i in range(field.values):
        if field.bits == 8:
            code = int.from_bytes(record[field.offset + i : field.offset + i + 1], "little", signed=True)
        else:
            byte = record[field.offset + i // 2]
            code = (byte >> 4 if i % 2 else byte & 15) - 8
        values.append(float(np.float32(code) * scales[i // BLOCK]))
    return values


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EmbeddingSpec]:
    path = tmp_path_factory.mktemp("rows") / "embeddings.bin"
    return path, make_file(path, 8, 4)


@pytest.mark.parametrize("bits", [(32, 32), (8, 8), (4, 4), (8, 4), (32, 4)])
def test_rows_are_what_the_file_holds(bits: tuple[int, int], tmp_path: Path) -> None:
    path = tmp_path / "embeddings.bin"
    spec = make_file(path, *bits)
    store = EmbeddingStore(path, spec)
    embeds, per_layer = store.rows(range(RECORDS))
    assert embeds.shape == (1, RECORDS, HIDDEN) and embeds.dtype == np.float32
    assert per_layer.shape == (1, RECORDS, LAYERS, WIDTH) and per_layer.dtype == np.float32
    raw = path.read_bytes()
    for i in range(RECORDS):
        record = raw[i * spec.record_bytes : (i + 1) * spec.record_bytes]
        assert embeds[0, i].tolist() == expected(record, spec.field("embedding"))
        assert per_layer[0, i].ravel().tolist() == expected(record, spec.field("per_layer"))
    store.close()


@given(calls=st.lists(IDS, min_size=1, max_size=6), records=st.integers(0, 5), extra=st.integers(0, 30))
def test_the_cache_changes_only_what_is_read(
    spec: tuple[Path, EmbeddingSpec], calls: list[list[int]], records: int, extra: int
) -> None:
    """Rows are the same whatever the cache holds; it holds the last ones used and as many as fit, or one."""
    path, shape = spec
    cache_bytes = records * shape.record_bytes + extra
    store = EmbeddingStore(path, shape, cache_bytes=cache_bytes)
    uncached = EmbeddingStore(path, shape, cache_bytes=0)
    every = uncached.rows(range(RECORDS))
    capacity = max(cache_bytes // shape.record_bytes, 1)
    held: OrderedDict[int, None] = OrderedDict()
    reads = 0
    for ids in calls:
        embeds, per_layer = store.rows(ids)
        assert np.array_equal(embeds[0], every[0][0][ids])
        assert np.array_equal(per_layer[0], every[1][0][ids])
        for i in ids:
            reads += i not in held
            held[i] = None
            held.move_to_end(i)
            while len(held) > capacity:
                held.popitem(last=False)
    assert store.counters.rows == sum(map(len, calls))
    assert store.counters.rows_read == reads
    assert store.counters.bytes_read == reads * shape.record_bytes
    store.close()
    uncached.close()


@pytest.mark.parametrize("bad", [-1, RECORDS, 10**12])
def test_an_id_outside_the_vocabulary_is_refused(spec: tuple[Path, EmbeddingSpec], bad: int) -> None:
    store = EmbeddingStore(*spec)
    with pytest.raises(PromptError, match=f"token id {bad} is outside the vocabulary of {RECORDS} ids"):
        store.rows([1, bad])
    assert store.rows([1])[0].shape == (1, 1, HIDDEN)
    store.close()


def test_a_file_that_ends_early_is_reported(spec: tuple[Path, EmbeddingSpec], tmp_path: Path) -> None:
    path = tmp_path / "embeddings.bin"
    path.write_bytes(spec[0].read_bytes()[:-1])
    store = EmbeddingStore(path, spec[1])
    store.rows([RECORDS - 2])
    with pytest.raises(ArtifactError, match="ends inside the record"):
        store.rows([RECORDS - 1])
    store.close()


def test_a_vocabulary_larger_than_the_file_is_reported(spec: tuple[Path, EmbeddingSpec]) -> None:
    store = EmbeddingStore(spec[0], dataclasses.replace(spec[1], records=RECORDS + 1))
    with pytest.raises(ArtifactError, match="copy or export the artifact again"):
        store.rows([RECORDS])
    store.close()


def test_closing_twice_is_fine_and_reading_after_it_is_not(spec: tuple[Path, EmbeddingSpec]) -> None:
    store = EmbeddingStore(*spec)
    store.rows([3])
    store.close()
    store.close()
    with pytest.raises(EdgeGemmaError, match="closed"):
        store.rows([3])  # also where the record is in the cache


def test_nothing_of_it_is_mapped(tiny_artifact: Path) -> None:
    with edge_gemma.load(tiny_artifact, context=64, threads=1) as model:
        assert model.generate("hello", max_new_tokens=2).statistics.rows_read > 0
        assert "embeddings.bin" not in Path("/proc/self/maps").read_text()
