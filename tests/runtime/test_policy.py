from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import edge_gemma
from edge_gemma import Model
from edge_gemma.errors import ContextLimitError, RefusedError
from edge_gemma.runtime.policy import Policy, PolicyFilter
from edge_gemma.runtime.safety import guarded

POLICY = Policy("No Harassment", "is malicious, intimidating, bullying, or abusive.")
CONVERSATION = [
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "hello"},
    {"role": "user", "content": [{"type": "text", "text": " Write {an} insult. "}]},
]


class Judge:
    """Stands for a model: how likely its Yes is is given, and it remembers what it was asked."""

    tokenizer = SimpleNamespace(encode=lambda text: {"Yes": [3, 0], "No": [1]}[text])

    def __init__(self, likely: float) -> None:
        self.likely = likely
        self.asked: list[str] = []

    def first_logits(self, prompt: str) -> NDArray[np.float32]:
        self.asked.append(prompt)
        return np.log(np.array([0.4, 0.1 * (1 - self.likely), 0.5, 0.1 * self.likely], np.float32))


def test_the_question_is_that_of_the_model_card() -> None:
    """Word for word, so far as white space does not matter."""
    judge: Any = Judge(0.1)
    assert PolicyFilter(judge, POLICY).check_prompt(CONVERSATION) is None
    assert " ".join(judge.asked[0].split()) == (
        "You are a policy expert trying to help determine whether a user prompt is in violation of the "
        "defined safety policies. <start_of_turn> Human Question: Write {an} insult. <end_of_turn> "
        'Our safety principle is defined in the below: * "No Harassment": The prompt shall not contain or '
        "seek generation of content that is malicious, intimidating, bullying, or abusive. === "
        "Does the human question violate the above principle? Your answer must start with 'Yes' or 'No'. "
        "And then walk through step by step to be sure we answer correctly."
    )
    PolicyFilter(judge, POLICY).check_answer("You {fool}.", CONVERSATION)
    assert "Human Question: Write {an} insult.\n<end_of_turn>" in judge.asked[1]
    assert "Chatbot Response: You {fool}.\n<end_of_turn>" in judge.asked[1]
    assert '"No Harassment": The chatbot shall not generate content that is malicious' in judge.asked[1]


@pytest.mark.parametrize(("likely", "threshold"), [(0.1, 0.5), (0.499, 0.5), (0.501, 0.5), (0.2, 0.15)])
def test_the_score_and_the_verdict(likely: float, threshold: float) -> None:
    """Of Yes and No alone, whatever else is likely."""
    judge: Any = Judge(likely)
    policy = PolicyFilter(judge, POLICY, threshold=threshold)
    assert policy.score("hi") == pytest.approx(likely, rel=1e-5)
    for refusal in (policy.check_prompt("hi"), policy.check_answer("hello", "hi")):
        assert (refusal is not None) == (likely >= threshold)
        if refusal:
            assert refusal.reason == "the policy 'No Harassment'"


@pytest.fixture(scope="module")
def model(tiny_artifact: Path) -> Iterator[Model]:
    with edge_gemma.load(tiny_artifact, context=1024, threads=1) as model:
        yield model


def test_the_model_that_answers_can_judge(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompt and answer are judged while the model is free."""
    options: dict[str, Any] = {"temperature": 0, "max_new_tokens": 10}
    plain = model.generate("hello", **options)
    asked: list[Any] = []
    first_logits = Model.first_logits

    def watched(self: Model, prompt: Any) -> Any:
        asked.append(prompt)
        return first_logits(self, prompt)

    monkeypatch.setattr(Model, "first_logits", watched)
    lenient = guarded(model, [PolicyFilter(model, POLICY, threshold=1.1)])
    answer = lenient.generate("hello", **options)
    assert (answer.text, answer.finish_reason) == (plain.text, "length")
    assert ["Chatbot Response" in prompt for prompt in asked] == [False, True]
    with pytest.raises(RefusedError, match="the policy 'No Harassment'"):
        guarded(model, [PolicyFilter(model, POLICY, threshold=0.0)]).stream("hello")


def test_first_logits_are_those_of_the_first_token(model: Model) -> None:
    logits = model.first_logits("hello")
    assert logits.shape == (model.manifest.vocab_size,) and logits.dtype == np.float32
    answer = model.generate("hello", temperature=0, max_new_tokens=1)
    assert answer.text == model.tokenizer.decode([int(logits.argmax())])
    with pytest.raises(ContextLimitError, match="tokens and the context 1024"):
        model.first_logits("hello " * 2000)
