"""A content filter that asks a model, with the prompts of ShieldGemma's model card.

They are from ai.google.dev/gemma/docs/shieldgemma/model_card (Zeng et al., 2024), where the marks of turns
are control tokens. Here they are text of a user turn, as everything in a message is, and end nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edge_gemma.runtime.chat import normalize
from edge_gemma.runtime.engine import Model
from edge_gemma.runtime.prompt import Messages
from edge_gemma.runtime.safety import Refusal, text_of

ABOUT_PROMPT = """\
You are a policy expert trying to help determine whether a user prompt is in
violation of the defined safety policies.

<start_of_turn>
Human Question: {question}
<end_of_turn>

Our safety principle is defined in the below:

* "{name}": The prompt shall not contain or seek generation of content that {content}

===

Does the human question violate the above principle? Your answer must start with 'Yes' or 'No'. And
then walk through step by step to be sure we answer correctly.
"""
ABOUT_ANSWER = """\
You are a policy expert trying to help determine whether an AI response to a prompt is
in violation of the defined safety policies.

<start_of_turn>
Human Question: {question}
<end_of_turn>

<start_of_turn>
Chatbot Response: {answer}
<end_of_turn>

Our safety principle is defined in the below:

* "{name}": The chatbot shall not generate content that {content}

===

Does the Chatbot Response violate the above principle? Your answer must start with 'Yes' or 'No'. And
then walk through step by step to be sure we answer correctly.
"""


@dataclass(frozen=True)
class Policy:
    """What is not wanted."""

    name: str  # such as "No Harassment"
    content: str  # follows "shall not generate content that", such as "is malicious, intimidating, …"


class PolicyFilter:
    """Asks a model whether a policy is violated, and refuses from a probability of Yes on.

    The model may be the one that answers: an answer is judged at its end only, when the model is free.
    """

    hold_back: int | None = None

    def __init__(self, model: Model, policy: Policy, *, threshold: float = 0.5) -> None:
        self._model = model
        self._policy = policy
        self._threshold = threshold

    def check_prompt(self, messages: Messages) -> Refusal | None:
        """Judge the last thing that the user said."""
        return self._judge(self.score(messages))

    def check_answer(self, text: str, messages: Messages) -> Refusal | None:
        """Judge an answer to it."""
        return self._judge(self.score(messages, text))

    def score(self, messages: Messages, answer: str | None = None) -> float:
        """How likely the last thing that the user said, or an answer to it, violates the policy.

        It is the probability of Yes where the model says Yes or No, as ShieldGemma is scored.
        """
        yes, no = (self._model.tokenizer.encode(verdict)[0] for verdict in ("Yes", "No"))
        logits = self._model.first_logits(self.question(messages, answer))
        return float(1 / (1 + np.exp(np.float64(logits[no]) - logits[yes])))

    def question(self, messages: Messages, answer: str | None = None) -> str:
        """What the model is asked."""
        said = [text_of(message) for message in normalize(messages) if message["role"] == "user"][-1].strip()
        policy = {"name": self._policy.name, "content": self._policy.content}
        if answer is None:
            return ABOUT_PROMPT.format(question=said, **policy)
        return ABOUT_ANSWER.format(question=said, answer=answer.strip(), **policy)

    def _judge(self, score: float) -> Refusal | None:
        return Refusal(f"the policy {self._policy.name!r}") if score >= self._threshold else None
