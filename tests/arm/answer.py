"""Answers recorded questions on this machine: the part of benchmarks/arm_accuracy.py that runs on ARM.

    python tests/arm/answer.py FOLDER ARTIFACT SET OUT

Writes OUT/answers-ARTIFACT.npz: the logits along the recorded answers and this machine's own greedy tokens.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "arm")]

import answers  # noqa: E402


def main() -> None:
    folder, artifact, name, out = Path(sys.argv[1]), sys.argv[2], sys.argv[3], Path(sys.argv[4])
    found = []
    with answers.open_model(folder / artifact) as model:
        for question, recorded in zip(
            answers.read_questions(folder, name), answers.read_answers(folder, artifact), strict=True
        ):
            led = answers.answer(model, question, recorded.tokens)
            own = tuple(int(row.argmax()) for row in led.logits)
            if own != recorded.tokens:  # what follows the first other token was chosen on a path not taken
                own = answers.answer(model, question).tokens
            found.append(answers.Answer(own, led.logits))
    answers.write_answers(out, artifact, found)


if __name__ == "__main__":
    main()
