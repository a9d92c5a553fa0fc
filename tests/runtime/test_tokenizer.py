from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, processors

from edge_gemma.errors import ArtifactError, PromptError
from edge_gemma.runtime.tokenizer import Tokenizer

SPECIAL = ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>")
GEMMA = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
LLAMA = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
)
STRIP_TWO = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 2, 0)])
METASPACE = decoders.Sequence([decoders.Metaspace(), decoders.ByteFallback(), decoders.Fuse()])


def build(decoder: Any = GEMMA) -> tokenizers.Tokenizer:
    pieces = [*"▁abhi\n<\ufffdé", "▁a", "hi", "▁hi", "▁▁", "▁a▁b"]
    vocab = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    merges = [("▁", "a"), ("h", "i"), ("▁", "hi"), ("▁", "▁")]
    inner = tokenizers.Tokenizer(
        models.BPE({text: i for i, text in enumerate(vocab)}, merges, byte_fallback=True, unk_token="<unk>")
    )
    inner.normalizer = normalizers.Replace(" ", "▁")
    if decoder is not None:
        inner.decoder = decoder
    inner.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    inner.add_tokens([AddedToken("\n\n", special=False, normalized=False)])
    inner.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", inner.token_to_id("<bos>"))]
    )
    return inner


DECODERS = {"gemma": GEMMA, "llama": LLAMA, "strip two": STRIP_TWO, "metaspace": METASPACE, "none": None}
TOKENIZERS = {name: Tokenizer(build(decoder)) for name, decoder in DECODERS.items()}
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


@each_decoder
@settings(deadline=None)
@given(ids=random_ids)
@example(ids=[*(BYTES[byte] for byte in "é".encode()), BYTES[0xFF]])  # a bad byte spoils the whole run
def test_streamed_ids_join_to_their_text(tokenizer: Tokenizer, ids: list[int]) -> None:
    assert "".join(pieces_of(tokenizer, ids)) == tokenizer.decode(ids)


@each_decoder
@settings(deadline=None)
@given(text=st.text(max_size=30) | st.text(alphabet=" abhi\n😀é", max_size=30))
def test_streamed_text_joins_to_itself(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert "".join(pieces_of(tokenizer, ids)) == tokenizer.decode(ids)
    if tokenizer is gemma and not any(token in text for token in SPECIAL):
        assert tokenizer.decode(ids) == text.replace("▁", " ")


@settings(deadline=None)
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


def test_from_file(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    inner = build()
    inner.enable_truncation(2)
    inner.enable_padding(length=50)
    inner.save(str(path))
    assert Tokenizer.from_file(path).encode("a b hi") == gemma.encode("a b hi")


def test_a_missing_or_damaged_file_is_an_artifact_error(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with pytest.raises(ArtifactError, match="tokenizer.json is missing.*export"):
        Tokenizer.from_file(path)
    path.write_text('{"version": "1.0"')
    with pytest.raises(ArtifactError, match="cannot be read.*export"):
        Tokenizer.from_file(path)


@pytest.mark.parametrize(
    "decoder",
    [
        decoders.ByteLevel(),
        decoders.CTC(),
        decoders.Sequence([decoders.Fuse(), decoders.Replace("aa", "b")]),
        decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 0, 1)]),
    ],
)
def test_a_decoder_that_cannot_be_streamed_is_an_artifact_error(decoder: Any) -> None:
    with pytest.raises(ArtifactError, match="decoder has the step"):
        Tokenizer(build(decoder))


def test_a_lone_surrogate_is_a_prompt_error() -> None:
    with pytest.raises(PromptError, match="valid Unicode"):
        gemma.encode("a\ud800")
