"""Answers of a given form: at each step a grammar says which tokens may come next, and no other can.

llguidance has the grammars. Its tokenizer is made here from tokenizer.bin: its own way, by tokenizer.json and
the `tokenizers` library, takes hundreds of MiB for a moment at Gemma's vocabulary (docs/memory.md).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge_gemma.errors import ArtifactError, BudgetError, DependencyError, PromptError
from edge_gemma.memory import format_bytes
from edge_gemma.runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    import llguidance

    from edge_gemma.artifact import TokenSpec

ResponseFormat = Mapping[str, Any]
TYPES = ("text", "json_object", "json_schema", "regex", "choice")
MEMORY_PER_TOKEN = 240  # bytes of a vocabulary's entry, with one answer's grammar (benchmarks/structured.py)
LEXER_FUEL = 100_000  # a tenth of llguidance's own, at which "(a{1000}){1000}" takes ten seconds
COMPACT = {"whitespace_flexible": False}  # free whitespace can go on until the limit, at a high temperature


class Constraint:
    """What the tokens of one answer may be: the state of its grammar."""

    def __init__(self, matcher: llguidance.LLMatcher, vocabulary: int) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._bits = np.zeros((vocabulary + 31) // 32, np.uint32)  # a bit per token, the lowest first
        self._check()

    @property
    def finished(self) -> bool:
        """Whether the answer is complete and nothing may follow."""
        return self._matcher.is_stopped()

    def allowed(self) -> NDArray[np.bool_]:
        """Which tokens may come next, bool [V]; stop tokens where the answer may end.

        Where the grammar leaves only one text to come, its usual first token alone.

        Raises:
            PromptError: the grammar has become too complex to follow.
        """
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        self._check()
        bits = self._bits.view(np.uint8)
        return np.unpackbits(bits, count=self._vocabulary, bitorder="little").view(np.bool_)

    def mask(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """A copy of logits [V] with -inf for every token that may not come next; raises as `allowed`."""
        return np.where(self.allowed(), logits, np.float32(-np.inf))

    def advance(self, token: int) -> None:
        """Go on behind a token, which must be an allowed one.

        Raises:
            PromptError: the grammar has become too complex to follow.
        """
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise PromptError(
                f"the response format cannot be enforced ({_reason(self._matcher.get_error())}): "
                "docs/assistant.md says what it may use"
            )


class Grammars:
    """Makes the constraints of a model's answers. The first one waits for llguidance's tokenizer."""

    def __init__(self, tokenizer: Tokenizer, vocabulary: int, tokens: TokenSpec) -> None:
        """`vocabulary` is the number of logits."""
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._tokens = tokens
        self._lock = Lock()
        self._built: llguidance.LLTokenizer | None = None

    @property
    def memory(self) -> int:
        """Bytes that structured answers add to a process, by estimate."""
        return MEMORY_PER_TOKEN * self._vocabulary

    @property
    def taken(self) -> int:
        """Of these, what they have added so far."""
        return self.memory if self._built is not None else 0

    def constraint(self, response_format: ResponseFormat, room: int | None = None) -> Constraint | None:
        """The constraint of one answer; None where any text will do.

        Args:
            response_format: see `read_format`.
            room: bytes that a memory budget leaves for `memory`.

        Raises:
            PromptError: the format is malformed, or uses what llguidance does not support.
            BudgetError: there is no room.
            ArtifactError: the artifact has no stop token.
            DependencyError: llguidance is not installed.
        """
        wanted = read_format(response_format)
        if wanted is None:
            return None
        lib = _library()
        grammar = _grammar(lib, *wanted)
        with self._lock:
            if self._built is None:
                self._built = self._build(lib, room)
        limits = lib.LLParserLimits(initial_lexer_fuel=LEXER_FUEL)
        matcher = lib.LLMatcher(self._built, grammar, log_level=0, limits=limits)
        return Constraint(matcher, self._vocabulary)

    def _build(self, lib: Any, room: int | None) -> llguidance.LLTokenizer:
        if room is not None and room < self.memory:
            raise BudgetError(
                f"a response format needs {format_bytes(self.memory)} and the budget leaves "
                f"{format_bytes(max(room, 0))}: load with a smaller context or a larger memory_budget"
            )
        if not self._tokens.stop:
            raise ArtifactError(
                "the artifact has no stop token, with which an answer in a given form ends: export a "
                "checkpoint whose configuration has an eos_token_id"
            )
        # Slices, tables of tokens that strings may hold, would make the mask of a string ten times as fast;
        # they double the memory, and the mask takes a few milliseconds without.
        return lib.LLTokenizer(  # type: ignore[no-any-return]
            lib.TokenizerWrapper(_Words(self._tokenizer, self._vocabulary, self._tokens)),
            n_vocab=self._vocabulary,
            eos_token=list(self._tokens.stop),
            slices=[],
        )


def read_format(response_format: ResponseFormat) -> tuple[str, Any] | None:
    """The type of a response format and what it asks for; None for "text".

    Of OpenAI's forms: {"type": "text"}, {"type": "json_object"}, {"type": "json_schema", "json_schema":
    {"schema": {…}}}, whose other keys change nothing; and {"type": "regex", "regex": "…"}, {"type": "choice",
    "choices": ["…", …]}.

    Raises:
        PromptError: it is none of these.
    """
    kind = response_format.get("type") if isinstance(response_format, Mapping) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return "json_schema", {"type": "object"}
    if kind == "json_schema":
        described = response_format.get("json_schema")
        schema = described.get("schema") if isinstance(described, Mapping) else None
        if not isinstance(schema, Mapping):
            raise PromptError(
                'the response format has no schema; expected {"type": "json_schema", "json_schema": '
                '{"name": "…", "schema": {…}}} with a JSON Schema that is an object'
            )
        return kind, dict(schema)
    if kind == "regex":
        regex = response_format.get("regex")
        if not isinstance(regex, str):
            raise PromptError(f"the regex of the response format is a {type(regex).__name__}, expected a str")
        return kind, regex
    if kind == "choice":
        choices = response_format.get("choices")
        texts = isinstance(choices, (list, tuple)) and all(isinstance(c, str) and c for c in choices)
        if not choices or not texts:
            raise PromptError(
                "the choices of the response format are missing or of another kind; expected a list of texts "
                "that are not empty"
            )
        return kind, list(choices)
    raise PromptError(
        f"the response format has the type {repr(kind)[:60]}; expected a dict whose 'type' is one of "
        f"{', '.join(TYPES)}"
    )


def _grammar(lib: Any, kind: str, wanted: Any) -> str:
    """A format in llguidance's own form."""
    try:
        if kind == "json_schema":
            # as text, whose depth its parser limits: a dict of any depth would overflow its stack
            grammar: str = lib.LLMatcher.grammar_from_json_schema(json.dumps(wanted), overrides=COMPACT)
            return grammar
        regex = wanted if kind == "regex" else "|".join(map(re.escape, wanted))
        grammar = lib.LLMatcher.grammar_from_regex(regex)
        grammar.encode()
        return grammar
    except (TypeError, ValueError, RecursionError) as error:  # not JSON, a lone surrogate, too deep
        raise PromptError(
            f"the response format cannot be read ({error}); expected plain JSON types and valid Unicode"
        ) from None


def _reason(message: str) -> str:
    """llguidance's message, cut to the line that says what is wrong."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return next((line[7:] for line in lines if line.startswith("error: ")), lines[0]).rstrip(".")


class _Words:
    """A tokenizer as llguidance's TokenizerWrapper takes it."""

    def __init__(self, tokenizer: Tokenizer, vocabulary: int, tokens: TokenSpec) -> None:
        self.tokens = _TokenBytes(tokenizer, vocabulary)
        self.bos_token_id = tokens.bos
        self.eos_token_id = tokens.stop[0]
        self._tokenizer = tokenizer

    def __call__(self, text: bytes) -> list[int]:
        """The usual ids of a text that a grammar leaves no choice about; it holds whole characters."""
        return self._tokenizer.encode_plain(text.decode())


class _TokenBytes(Sequence[bytes]):
    """The bytes of every token, each made when it is asked for: a list of them takes 16 MiB."""

    def __init__(self, tokenizer: Tokenizer, count: int) -> None:
        self._tokenizer = tokenizer
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < self._count:
            raise IndexError(index)
        return self._tokenizer.token_bytes(index)


def _library() -> Any:
    try:
        import llguidance
    except ModuleNotFoundError:
        raise DependencyError(
            "response formats need llguidance: pip install 'edge-gemma[structured]'"
        ) from None
    return llguidance
