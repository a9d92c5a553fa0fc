"""The demo's sums and commands."""

from __future__ import annotations

import itertools

import pytest

from demo import data


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
    again = data.held_out(task, 500)
    assert [(i.messages, i.answer, i.key) for i in again] == [(i.messages, i.answer, i.key) for i in items]


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
