"""The demo's tokenizer and chat template, built afresh."""

from __future__ import annotations

import json
from pathlib import Path

import jinja2
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from demo.tokenizer import AUDIO_OFFSET, TEXT_VOCAB, VISION_OFFSET, VOCAB_SIZE, write_tokenizer
from edge_gemma.runtime.tasks import transcription_prompt, translation_prompt

# "▁" stands for the space, so a text that holds it comes back with spaces, as with Gemma's own tokenizer.
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(target)
    return target


@pytest.fixture(scope="module")
def raw(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def auto(folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        ("<pad>", 0),
        ("<eos>", 1),
        ("<bos>", 2),
        ("<unk>", 3),
        ("<start_of_turn>", 4),
        ("<end_of_turn>", 5),
        ("<end_of_image>", 1280),
        ("<image_soft_token>", 1281),
        ("<end_of_audio>", 1288),
        ("<audio_soft_token>", 1289),
    ],
)
def test_special_tokens_are_single_and_in_place(raw: Tokenizer, token: str, expected: int) -> None:
    assert raw.encode(f"a{token}b", add_special_tokens=False).ids[1] == expected
    assert raw.id_to_token(expected) == token


def test_media_ranges_follow_the_text_vocabulary(raw: Tokenizer) -> None:
    assert (VISION_OFFSET, AUDIO_OFFSET, VOCAB_SIZE) == (TEXT_VOCAB, TEXT_VOCAB + 8, TEXT_VOCAB + 16)
    assert raw.get_vocab_size() == VOCAB_SIZE
    assert raw.token_to_id("<start_of_image>") < TEXT_VOCAB
    assert raw.token_to_id("<start_of_audio>") < TEXT_VOCAB


@given(text=TEXTS)
def test_any_text_comes_back(raw: Tokenizer, text: str) -> None:
    assume(not any(token.content in text for token in raw.get_added_tokens_decoder().values()))
    ids = raw.encode(text, add_special_tokens=False).ids
    assert raw.decode(ids, skip_special_tokens=False) == text
    assert all(8 <= index < TEXT_VOCAB for index in ids)


@given(text=TEXTS, special=st.booleans())
def test_transformers_and_tokenizers_agree(
    raw: Tokenizer, auto: PreTrainedTokenizerBase, text: str, special: bool
) -> None:
    ids = raw.encode(text, add_special_tokens=special).ids
    assert auto(text, add_special_tokens=special)["input_ids"] == ids
    assert ids[:1] == [2] if special else 2 not in ids


def test_a_multibyte_character_spans_several_tokens(raw: Tokenizer) -> None:
    encoded = raw.encode("ö😀", add_special_tokens=False)
    assert encoded.tokens == ["<0xC3>", "<0xB6>", "<0xF0>", "<0x9F>", "<0x98>", "<0x80>"]
    assert "�" in raw.decode(encoded.ids[:3])


def test_spaces_stay_and_digits_stand_alone(raw: Tokenizer) -> None:
    assert raw.encode(" 12 +  3", add_special_tokens=False).tokens == ["▁", "1", "2", "▁+", "▁", "▁", "3"]


def test_template_merges_the_system_text_and_opens_the_answer(auto: PreTrainedTokenizerBase) -> None:
    messages = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "  Hello \n"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "Bye"},
    ]
    expected = (
        "<bos><start_of_turn>user\nBe short.\n\nHello<end_of_turn>\n"
        "<start_of_turn>model\nHi<end_of_turn>\n"
        "<start_of_turn>user\nBye<end_of_turn>\n"
    )
    assert auto.apply_chat_template(messages, tokenize=False) == expected
    opened = auto.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert opened == expected + "<start_of_turn>model\n"


def test_template_renders_parts_in_order(auto: PreTrainedTokenizerBase) -> None:
    system = {"role": "system", "content": [{"type": "text", "text": "Look."}]}
    parts = [{"type": "image"}, {"type": "text", "text": " and "}, {"type": "audio"}]
    rendered = auto.apply_chat_template([system, {"role": "user", "content": parts}], tokenize=False)
    assert rendered == (
        "<bos><start_of_turn>user\nLook.\n\n<image_soft_token>and<audio_soft_token><end_of_turn>\n"
    )


@pytest.mark.parametrize("roles", [["assistant"], ["user", "user"], ["user", "system"], ["user", "tool"]])
def test_template_refuses_roles_that_do_not_alternate(
    auto: PreTrainedTokenizerBase, roles: list[str]
) -> None:
    messages = [{"role": role, "content": "x"} for role in roles]
    with pytest.raises(jinja2.TemplateError, match="must alternate"):
        auto.apply_chat_template(messages, tokenize=False)


def test_the_two_copies_of_the_template_are_equal(folder: Path) -> None:
    stored = json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
    assert stored == (folder / "chat_template.jinja").read_text()


def test_template_is_bos_once(auto: PreTrainedTokenizerBase) -> None:
    ids = auto.apply_chat_template([{"role": "user", "content": "Hi"}], return_dict=True)["input_ids"]
    assert ids.count(2) == 1
    assert ids[0] == 2


def test_spanish_is_not_spelt_in_bytes(raw: Tokenizer) -> None:
    text = "¿Está cerrada la verja del jardín? Añade 4 plátanos. ¡Pingüino, ésta, sótano, baño!"
    encoded = raw.encode(text, add_special_tokens=False)
    assert not [token for token in encoded.tokens if token.startswith("<0x")]
    assert raw.decode(encoded.ids) == text


@pytest.mark.parametrize("prompt", [transcription_prompt(), translation_prompt("Spanish", "English")])
def test_a_word_of_the_prompts_is_one_token(raw: Tokenizer, prompt: str) -> None:
    words = prompt.replace("'", "").replace(".", "").replace(",", "").replace(":", "").split()
    marks = sum(prompt.count(mark) for mark in ".,:'")
    assert len(raw.encode(prompt, add_special_tokens=False).ids) <= len(words) + marks + 1


def test_the_processor_finds_its_tokens(auto: PreTrainedTokenizerBase) -> None:
    assert (auto.image_token, auto.boi_token, auto.eoi_token) == (
        "<image_soft_token>",
        "<start_of_image>",
        "<end_of_image>",
    )
    assert (auto.audio_token_id, auto.boa_token, auto.eoa_token) == (
        1289,
        "<start_of_audio>",
        "<end_of_audio>",
    )
