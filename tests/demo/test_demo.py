"""The demo checkpoint's tokenizer, template, data and configuration."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from demo import data
from demo.tokenizer import AUDIO_OFFSET, TEXT_VOCAB, VISION_OFFSET, VOCAB_SIZE, build_tokenizer

CHECKPOINT = Path(__file__).parents[2] / "demo" / "checkpoint"
# "▁" stands for the space, so a text that holds it comes back with spaces, as with Gemma's own tokenizer.
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=40)


@pytest.fixture(scope="module")
def raw() -> Tokenizer:
    return Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))


@pytest.fixture(scope="module")
def auto() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(CHECKPOINT)


@pytest.fixture(scope="module")
def config() -> dict:
    return json.loads((CHECKPOINT / "config.json").read_text())


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        ("<pad>", 0),
        ("<eos>", 1),
        ("<bos>", 2),
        ("<unk>", 3),
        ("<start_of_turn>", 4),
        ("<end_of_turn>", 5),
        ("<end_of_image>", 1024),
        ("<image_soft_token>", 1025),
        ("<end_of_audio>", 1032),
        ("<audio_soft_token>", 1033),
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


def test_the_committed_tokenizer_is_the_built_one(raw: Tokenizer) -> None:
    assert json.loads(raw.to_str()) == json.loads(build_tokenizer().to_str())


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


def test_the_two_copies_of_the_template_are_equal() -> None:
    stored = json.loads((CHECKPOINT / "tokenizer_config.json").read_text())["chat_template"]
    assert stored == (CHECKPOINT / "chat_template.jinja").read_text()


def test_template_is_bos_once(auto: PreTrainedTokenizerBase) -> None:
    ids = auto.apply_chat_template([{"role": "user", "content": "Hi"}], return_dict=True)["input_ids"]
    assert ids.count(2) == 1
    assert ids[0] == 2


def conversations(seed: int, count: int) -> list[list[data.Message]]:
    return list(itertools.islice(data.train_examples(seed), count))


def test_training_data_depends_on_the_seed_alone() -> None:
    assert conversations(3, 50) == conversations(3, 50)
    assert conversations(3, 50) != conversations(4, 50)


@pytest.mark.parametrize("task", list(data.TASKS))
def test_held_out_is_disjoint_from_training(task: str) -> None:
    trained = {m["content"] for talk in conversations(0, 5000) for m in talk if m["role"] == "user"}
    items = data.held_out(task, 500)
    questions = [item.messages[0]["content"] for item in items]
    assert len(set(questions)) == 500
    assert trained.isdisjoint(questions)
    assert items == data.held_out(task, 500)


def test_no_order_or_phrasing_of_a_held_out_sum_is_trained() -> None:
    pairs = {
        tuple(sorted(int(number) for number in words if number.isdigit()))
        for talk in conversations(0, 5000)
        for message in talk
        if message["role"] == "user"
        and len(words := "".join(c if c.isdigit() else " " for c in message["content"]).split()) == 2
    }
    held = {tuple(map(int, item.key.split("+"))) for item in data.held_out("sums", 500)}
    assert len(pairs) > 1000
    assert pairs.isdisjoint(held)


def test_sums_are_right() -> None:
    for item in data.held_out("sums", 100):
        a, b = map(int, item.key.split("+"))
        assert a + b == int(item.answer)
        assert str(a) in item.messages[0]["content"]


def test_scoring_compares_numbers_and_json() -> None:
    total, command = data.held_out("sums", 1)[0], data.held_out("commands", 1)[0]
    assert data.is_right(total, f" {total.answer}\n")
    assert not data.is_right(total, total.answer + "1")
    assert data.is_right(command, command.answer.replace(": ", ":"))
    assert not data.is_right(command, command.answer[:-1])
    assert not data.is_right(command, command.answer.replace('"name": "', '"name": "un'))


def test_configuration_fits_the_tokenizer(config: dict, raw: Tokenizer) -> None:
    assert config["vocab_size"] == raw.get_vocab_size()
    assert config["vocab_size_per_layer_input"] == raw.token_to_id("<end_of_image>")
    assert config["pad_token_id"] == raw.token_to_id("<pad>")
    assert config["bos_token_id"] == raw.token_to_id("<bos>")
    stops = json.loads((CHECKPOINT / "generation_config.json").read_text())["eos_token_id"]
    assert stops == [raw.token_to_id("<eos>"), raw.token_to_id("<end_of_turn>")]


def test_configuration_exercises_the_architecture(config: dict) -> None:
    own = config["num_hidden_layers"] - config["num_kv_shared_layers"]
    assert set(config["layer_types"][:own]) == set(config["layer_types"][own:])
    assert {0.0, 0.95} == set(config["activation_sparsity_pattern"])
    assert config["altup_num_inputs"] == 4


def test_most_prompts_exceed_the_sliding_window(config: dict, auto: PreTrainedTokenizerBase) -> None:
    lengths = []
    for item in data.held_out("sums", 100) + data.held_out("commands", 100):
        prompt = auto.apply_chat_template(list(item.messages), add_generation_prompt=True, return_dict=True)
        lengths.append(len(prompt["input_ids"]))
    assert sum(length > config["sliding_window"] for length in lengths) > len(lengths) / 2


def test_checkpoint_is_small() -> None:
    assert sum(file.stat().st_size for file in CHECKPOINT.iterdir()) <= 8_000_000
