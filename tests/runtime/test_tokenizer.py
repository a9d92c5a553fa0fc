"""Encoding, decoding and streaming with a small vocabulary; the library is the reference."""

from __future__ import annotations

from typing import Any

import pytest
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st
from tables import DECODERS, runtime_tokenizer, small_tokenizer
from tokenizers import processors

from edge_gemma.errors import ArtifactError, PromptError
from edge_gemma.runtime.tokenizer import Tokenizer

SPECIAL = ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>")


def build(decoder: Any = DECODERS["gemma"]) -> tokenizers.Tokenizer:
    inner = small_tokenizer(decoder, SPECIAL)
    inner.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", inner.token_to_id("<bos>"))]
    )
    return inner


REFERENCES = {name: build(decoder) for name, decoder in DECODERS.items()}
TOKENIZERS = {name: runtime_tokenizer(inner) for name, inner in REFERENCES.items()}
gemma = TOKENIZERS["gemma"]
BYTES = [gemma.token_id(f"<0x{byte:02X}>") or 0 for byte in range(256)]
each_decoder = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
# Control and byte tokens would drown the others: draw from each kind alike.
random_ids = st.lists(
    st.one_of(
        st.sampled_from([*BYTES[0xC3:0xC4], *BYTES[0xA9:0xAA], *BYTES[0xF0:]]),
        st.integers(257, gemma.vocab_size - 1),
        st.sampled_from([gemma.token_id("▁") or 0, gemma.token_id("\ufffd") or 0, 10**6]),
        st.integers(0, 256),
    ),
    max_size=16,
)


def pieces_of(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    stream = tokenizer.stream()
    return [*(stream.push(token_id) for token_id in ids), stream.flush()]


@pytest.mark.parametrize("name", DECODERS)
@given(ids=random_ids)
@example(ids=[*(BYTES[byte] for byte in "é".encode()), BYTES[0xFF]])  # a bad byte spoils the whole run
def test_ids_have_the_text_of_the_library(name: str, ids: list[int]) -> None:
    assert TOKENIZERS[name].decode(ids) == REFERENCES[name].decode(ids)


@each_decoder
@given(ids=random_ids)
def test_streamed_ids_join_to_their_text(tokenizer: Tokenizer, ids: list[int]) -> None:
    assert "".join(pieces_of(tokenizer, ids)) == tokenizer.decode(ids)


@each_decoder
@given(text=st.text(max_size=30) | st.text(alphabet=" abhi\n😀é", max_size=30))
def test_streamed_text_joins_to_itself(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert "".join(pieces_of(tokenizer, ids)) == tokenizer.decode(ids)
    if tokenizer is gemma and not any(token in text for token in SPECIAL):
        assert tokenizer.decode(ids) == text.replace("▁", " ")


@given(text=st.text(alphabet="ab é😀漢", max_size=30))
def test_no_piece_splits_a_character(text: str) -> None:
    assert not any("\ufffd" in piece for piece in pieces_of(gemma, gemma.encode(text)))


def test_text_comes_as_soon_as_it_is_final() -> None:
    ids = [gemma.token_id("<bos>") or 0, *gemma.encode("hi a😀 hi")]
    assert pieces_of(gemma, ids) == ["", "hi", " a", "", "", "", "", "😀 hi", ""]


def test_flush_gives_the_bytes_that_are_held() -> None:
    assert pieces_of(gemma, gemma.encode("a😀")) == ["a", "", "", "", "", "😀"]
    assert pieces_of(gemma, gemma.encode("a😀")[:-1]) == ["a", "", "", "", "\ufffd\ufffd\ufffd"]


def test_the_cost_of_a_token_does_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    decode = Tokenizer.decode
    monkeypatch.setattr(Tokenizer, "decode", lambda self, ids: decoded.append(len(ids)) or decode(self, ids))
    ids = gemma.encode("hi a😀 a b" * 200)
    pieces_of(gemma, ids)
    assert max(decoded) <= 6
    assert sum(decoded) <= 3 * len(ids)


def test_encode_adds_nothing_and_reads_control_tokens() -> None:
    ids = gemma.encode("<bos><start_of_turn>hi<end_of_turn>\n\n")
    expected = ["<bos>", "<start_of_turn>", "hi", "<end_of_turn>", "\n\n"]
    assert ids == [gemma.token_id(text) for text in expected]
    assert gemma.decode(ids) == "hi\n\n"


def test_vocabulary() -> None:
    assert gemma.token_id("<0x00>") == 1
    assert gemma.token_id("nothing") is None
    assert gemma.vocab_size == build().get_vocab_size()
    assert gemma.special_tokens == SPECIAL
    assert gemma.special_ids == {gemma.token_id(text) for text in SPECIAL}


def test_texts() -> None:
    assert gemma.texts([257, 0]) == {257: "▁", 0: "<unk>"}
    for missing in (gemma.vocab_size, -1):
        with pytest.raises(ArtifactError, match=f"has no token {missing} that the manifest names: export"):
            gemma.texts([0, missing])


def test_every_token_is_found_by_its_text() -> None:
    texts = gemma.texts(range(gemma.vocab_size))
    assert {gemma.token_id(text): text for text in texts.values()} == texts == vocabulary()
    for text in ("", "a▁", "\ud800", "▁\xff", "a" * 100):
        assert gemma.token_id(text) is None


def vocabulary() -> dict[int, str]:
    return {i: text for text, i in build().get_vocab(with_added_tokens=True).items()}


def test_a_lone_surrogate_is_a_prompt_error() -> None:
    with pytest.raises(PromptError, match="valid Unicode"):
        gemma.encode("a\ud800")
