"""Ids and texts equal those of the `tokenizers` library, with vocabularies of all kinds and sizes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tables import runtime_tokenizer
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

from edge_gemma.errors import ArtifactError
from edge_gemma.export.synthetic import SyntheticCheckpoint
from edge_gemma.export.tokenizer_tables import BYTE_TOKENS, write_tables
from edge_gemma.runtime.tokenizer import Tokenizer
from edge_gemma.tokenizer_spec import TokenizerSpec

Pair = tuple[Tokenizer, tokenizers.Tokenizer]
ROOT = Path(__file__).parent.parent.parent
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
SOUP = st.text("ab ▁\n<>é😀\u0301", max_size=40)
LETTERS = "ab▁"
PIECES = [
    first + "".join(rest)
    for n in range(4)
    for first in LETTERS
    for rest in itertools.product(LETTERS, repeat=n)
]
CORPUS = [
    "the cat sat on the mat and the dog sat on the log ",
    "to be or not to be ",
    "  a  b  a b",
    "ends  . ",
] * 5


def pair(inner: tokenizers.Tokenizer) -> Pair:
    return runtime_tokenizer(inner), inner


@pytest.fixture(scope="module")
def demo() -> Pair:
    return pair(tokenizers.Tokenizer.from_file(str(ROOT / "demo" / "checkpoint" / "tokenizer.json")))


@pytest.fixture(scope="module")
def large() -> Pair:
    """262400 tokens."""
    return pair(
        tokenizers.Tokenizer.from_buffer(SyntheticCheckpoint.from_name("synthetic:E2B").tokenizer_json())
    )


@pytest.fixture(params=["demo", "large"])
def tested(request: pytest.FixtureRequest) -> Pair:
    found: Pair = request.getfixturevalue(request.param)
    return found


def same(tested: Pair, text: str) -> None:
    ours, theirs = tested
    ids = theirs.encode(text, add_special_tokens=False).ids
    assert ours.encode(text) == ids
    assert ours.decode(ids) == theirs.decode(ids)


examples = settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])


@examples
@given(text=TEXTS | SOUP)
def test_any_text(tested: Pair, text: str) -> None:
    same(tested, text)


@examples
@given(data=st.data())
def test_texts_of_tokens(tested: Pair, data: st.DataObject) -> None:
    """Control tokens as often as all others, whole or broken."""
    ours, theirs = tested
    plain = st.integers(0, ours.vocab_size - 1).map(theirs.id_to_token)
    control = st.sampled_from(ours.special_tokens)
    same(
        tested,
        "".join(data.draw(st.lists(plain | control | control.map(lambda text: text[:-1]), max_size=20))),
    )


@examples
@given(data=st.data())
def test_any_ids(tested: Pair, data: st.DataObject) -> None:
    ours, theirs = tested
    byte = st.sampled_from([ours.token_id(text) for text in BYTE_TOKENS[0x7F::0x10]])
    ids = data.draw(st.lists(byte | st.integers(0, ours.vocab_size + 100), max_size=30))
    stream = ours.stream()
    assert ours.decode(ids) == theirs.decode(ids) == "".join([*map(stream.push, ids), stream.flush()])


def bpe(texts: Sequence[str], merges: Sequence[tuple[str, str]]) -> tokenizers.Tokenizer:
    """A tokenizer of Gemma's kind."""
    vocab = {text: i for i, text in enumerate([*BYTE_TOKENS, *texts])}
    inner = tokenizers.Tokenizer(models.BPE(vocab, list(merges), byte_fallback=True))
    inner.normalizer = normalizers.Replace(" ", "▁")
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return inner


@settings(max_examples=300)
@given(data=st.data())
def test_any_merges(data: st.DataObject) -> None:
    """Random pieces, of which every split merges, in random order: the queue is full of outdated entries."""
    known = [*LETTERS, *data.draw(st.lists(st.sampled_from(PIECES[3:]), max_size=12, unique=True))]
    splits = [(text[:at], text[at:]) for text in known for at in range(1, len(text))]
    merges = [split for split in splits if {*split} <= {*known}]
    tested = pair(bpe(known, data.draw(st.permutations(merges))))
    for text in data.draw(st.lists(st.text("ab ▁c", max_size=30), min_size=1, max_size=10)):
        same(tested, text)


@pytest.mark.parametrize(
    "splitter", [None, pre_tokenizers.Split("▁", "merged_with_next")], ids=["across", "in"]
)
def test_trained_vocabularies(splitter: Any) -> None:
    """With merges across words, and within words alone."""
    trained = tokenizers.Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    if splitter:
        trained.pre_tokenizer = splitter
    trained.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=120, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    assert any("▁" in text.lstrip("▁") for text in model["vocab"]) == (splitter is None)
    tested = pair(bpe(list(model["vocab"]), [(left, right) for left, right in model["merges"]]))
    for text in (*CORPUS, "".join(CORPUS), "a cat  is  on  the dog" * 9):
        same(tested, text)


@pytest.mark.parametrize(("merges", "words"), [([("▁", "a"), ("▁", "▁")], True), ([("a", "▁")], False)])
def test_words_are_cut_where_no_merge_crosses(
    merges: list[tuple[str, str]], words: bool, tmp_path: Path
) -> None:
    inner = bpe(["▁", "a", *map("".join, merges)], merges)
    assert write_tables(inner, tmp_path / "tokenizer.bin", "a test").words == words
    same(pair(inner), "a aa  a   ▁a ")


def test_a_space_that_is_spelt_in_bytes_is_no_place_to_cut(tmp_path: Path) -> None:
    merges = [("a", "<0xE2>"), ("a<0xE2>", "<0x96>")]
    inner = bpe(["a", *map("".join, merges)], merges)
    assert not write_tables(inner, tmp_path / "tokenizer.bin", "a test").words
    same(pair(inner), "a a")


def test_the_leftmost_and_there_the_longest_added_token() -> None:
    inner = bpe([*"ab▁", "ba"], [("b", "a")])
    inner.add_tokens([AddedToken(text, normalized=False) for text in ("ab", "abab", "bb", " ", "b ")])
    inner.add_tokens([AddedToken(text, normalized=True) for text in ("aa", "▁a", "aab")])
    tested = pair(inner)
    for letters in itertools.product("ab ▁", repeat=6):
        same(tested, "".join(letters))


def test_ids_without_a_token() -> None:
    inner = tokenizers.Tokenizer(
        models.BPE({text: 3 * i for i, text in enumerate([*BYTE_TOKENS, "a"])}, [], byte_fallback=True)
    )
    tested = ours, theirs = pair(inner)
    same(tested, "a é")
    assert ours.vocab_size == theirs.get_vocab_size() == 257
    assert ours.decode([768, 767, 769, 768]) == theirs.decode([768, 767, 769, 768]) == "a a"
    with pytest.raises(ArtifactError, match="has no token 767"):
        ours.texts([768, 767])


@pytest.mark.parametrize("unit", ["a", " ", "ab", "😀", "\u0301", "<", "<end_of_turn>"])
def test_long_runs(large: Pair, unit: str) -> None:
    same(large, unit * 20_000)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TokenizerSpec]:
    inner = bpe(["a", "b", "▁", "ab", "▁a"], [("a", "b"), ("▁", "a")])
    inner.add_special_tokens(["<bos>"])
    path = tmp_path_factory.mktemp("tables") / "tokenizer.bin"
    return path, write_tables(inner, path, "a test")


def use(path: Path, spec: TokenizerSpec) -> None:
    """Only an ArtifactError may come of it."""
    try:
        tokenizer = Tokenizer(path, spec)
        tokenizer.decode(tokenizer.encode("ab a<bos>é ▁"))
        tokenizer.decode(range(spec.ids))
        tokenizer.token_id("ab")
    except ArtifactError as error:
        assert str(path) in str(error) and "again" in str(error)


@settings(max_examples=500)
@given(place=st.floats(0, 1, exclude_max=True), value=st.binary(min_size=1, max_size=16))
def test_damaged_tables(small: tuple[Path, TokenizerSpec], place: float, value: bytes) -> None:
    path, spec = small
    raw = bytearray(path.read_bytes())
    at = int(place * len(raw))
    raw[at : at + len(value)] = value[: len(raw) - at]
    damaged = path.with_name("damaged.bin")
    damaged.write_bytes(raw)
    use(damaged, spec)


@pytest.mark.parametrize("fill", [b"\0", b"\xff", b"\x7f"])
def test_a_file_of_something_else(small: tuple[Path, TokenizerSpec], fill: bytes, tmp_path: Path) -> None:
    path, spec = small
    (tmp_path / "tokenizer.bin").write_bytes(fill * path.stat().st_size)
    use(tmp_path / "tokenizer.bin", spec)


@settings(max_examples=300)
@given(data=st.data())
def test_wrong_geometry(small: tuple[Path, TokenizerSpec], data: st.DataObject) -> None:
    """Tables at other places, or of other lengths, where they fit all the same."""
    path, spec = small
    names = [name for name, table in vars(spec).items() if hasattr(table, "offset")]
    name = data.draw(st.sampled_from(names))
    table = replace(getattr(spec, name), offset=data.draw(st.integers(-8, path.stat().st_size)))
    use(path, replace(spec, **{name: table}))
    ids = data.draw(st.integers(0, 300))
    starts = {key: replace(getattr(spec, key), count=ids + 1) for key in ("merge_starts", "piece_starts")}
    use(path, replace(spec, ids=ids, tokens=0, **starts))


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"x" * 999),
    ],
)
def test_a_file_that_is_missing_or_cut(
    small: tuple[Path, TokenizerSpec], tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    path = tmp_path / "tokenizer.bin"
    path.write_bytes(small[0].read_bytes())
    damage(path)
    with pytest.raises(ArtifactError, match="tokenizer.bin .*: copy or export the artifact again"):
        Tokenizer(path, small[1])
