"""From messages to the prompt that a checkpoint was trained on.

Messages have transformers' form: {"role": "user", "content": "text"}, or content as a list of parts such
as {"type": "text", "text": …}, {"type": "image", …}, {"type": "audio", …}. The template is the
checkpoint's own, rendered as transformers' apply_chat_template renders it
(transformers/utils/chat_template_utils.py).

Two things here are not to be trusted. The *template* comes with a checkpoint: it runs in jinja2's
sandbox, sees copies made of plain str, numbers, lists and dicts, and whatever it raises becomes one of
our errors; it can still waste time and memory. The *text* of a message may hold the text of a control
token: "<end_of_turn>" in a user's text would end the turn, and what follows could speak as the model.
`ChatTemplate.render_parts` cuts the prompt inside such texts: encoded part by part they are ordinary
text. `render` does not protect: use it to look at a prompt.

An answer whose ids are known (`Said`) is never read as text: the prompt is cut around it, and its ids are
taken as they are.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn

from edge_gemma.errors import ArtifactError, PromptError
from edge_gemma.runtime.said import Said

if TYPE_CHECKING:
    from pathlib import Path

    import jinja2

    from edge_gemma.runtime.tokenizer import Tokenizer

Message = dict[str, Any]

GEMMA_TOKENS = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
_KEYWORDS = ("system", "user", "assistant", "text", "image", "audio")


class _Refused(Exception):
    """The template called raise_exception."""


class ChatTemplate:
    """A compiled chat template. Make one with `ChatTemplate.from_source`."""

    def __init__(self, template: jinja2.Template, tokens: Mapping[str, str]) -> None:
        self._template = template
        self._tokens = dict(tokens)

    @classmethod
    def from_source(cls, source: str, *, tokens: Mapping[str, str] = GEMMA_TOKENS) -> ChatTemplate:
        """Compile the text of a `chat_template.jinja`; `tokens` are variables it may use.

        Raises ArtifactError if it is not a valid template.
        """
        import jinja2
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        try:
            return cls(environment.from_string(source), tokens)
        except Exception as error:  # from untrusted text, jinja2 can raise anything (RecursionError, …)
            line = f" (line {error.lineno})" if isinstance(error, jinja2.TemplateSyntaxError) else ""
            raise ArtifactError(
                f"the chat template cannot be compiled: {error}{line}; "
                "expected the checkpoint's jinja template: export the artifact again"
            ) from error

    @classmethod
    def from_file(cls, path: Path) -> ChatTemplate:
        """Read and compile an artifact's `chat_template.jinja`; ArtifactError if it is none, or not UTF-8."""
        try:
            return cls.from_source(path.read_text("utf-8"))
        except UnicodeDecodeError as error:
            raise ArtifactError(
                f"{path} is not UTF-8 text ({error.reason} at byte {error.start}): "
                "copy or export the artifact again"
            ) from None

    def encode(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        tokenizer: Tokenizer,
        expansions: Mapping[str, str] = MappingProxyType({}),
    ) -> list[int]:
        """The ids of the prompt, in which only the template's own control tokens are control tokens.

        `expansions` are control tokens that the template writes for something longer, and that. Raises as
        `render_parts` does.
        """
        ids: list[int] = []
        for part in self.render_parts(messages, tokenizer.special_tokens):
            if isinstance(part, Said):
                ids += part.ids
                continue
            for token, whole in expansions.items():
                part = part.replace(token, whole)
            ids += tokenizer.encode(part)
        return ids

    def render(
        self, messages: str | Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True
    ) -> str:
        """The prompt as one text, equal to transformers' apply_chat_template(..., tokenize=False).

        Takes what `normalize` takes. Raises PromptError as `normalize` does, or with the template's own
        words where it refuses the messages; ArtifactError if the template fails or leaves its sandbox.
        """
        return "".join(self.render_parts(messages, (), add_generation_prompt=add_generation_prompt))

    def render_parts(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        special_tokens: Iterable[str],
        *,
        add_generation_prompt: bool = True,
    ) -> list[str]:
        """The prompt in parts: joined they equal `render`; encoded one by one they are safe.

        `special_tokens` are the control tokens (`Tokenizer.special_tokens`); `encode` writes the ids. Only
        the template's own control tokens are then recognised: a cut goes through every other one, also
        one put together from two texts. A `Said` is a part of its own. Any other conversation is a single
        part, so its ids are those of transformers. Raises as `render` does, and ArtifactError if the
        template rewrites the texts, so that nothing can be told apart.
        """
        guard = _Guard(special_tokens)
        plain = [_plain(message, guard.mark) for message in normalize(messages)]
        try:
            text = self._template.render(
                # templates ask for `tools is not none`, which is true of a name that is not there
                {**self._tokens, "tools": None, "documents": None}
                | {"messages": plain, "add_generation_prompt": add_generation_prompt}
            )
        except _Refused as error:
            raise PromptError(f"the chat template refuses the messages: {error}") from error
        except Exception as error:  # from untrusted code: anything
            raise ArtifactError(
                f"the chat template failed with {type(error).__name__}: {error}; "
                "expected it to render any conversation: use the checkpoint's own template"
            ) from error
        return guard.split(text)


def normalize(prompt: str | Sequence[Mapping[str, Any]]) -> list[Message]:
    """Checked copies of messages; a str is one user turn. The role "model" becomes "assistant".

    Expected: at most one system message, first and of text only; then user and assistant in turn,
    beginning with the user; media only in user messages, and no user message without any content.
    Raises PromptError, in one sentence that names the message by its index.
    """
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if not isinstance(prompt, (list, tuple)) or not prompt:
        raise PromptError(f"the messages are {_brief(prompt)}; expected a text or a list with a user message")
    messages: list[Message] = []
    turn = "user"
    for index, message in enumerate(prompt):
        where = f"message {index}"
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise PromptError(f"{where} is {_brief(message)}; expected a dict with 'role' and 'content'")
        role = "assistant" if message["role"] == "model" else message["role"]
        if role not in ("system", "user", "assistant"):
            raise PromptError(f"{where} has the role {_brief(role)}; expected system, user or assistant")
        if role != turn and not (role == "system" and index == 0):
            raise PromptError(
                f"{where} has the role {role!r}; expected {turn!r}: user and assistant alternate, "
                "and only the first message may be of the system"
            )
        if role != "system":
            turn = "assistant" if role == "user" else "user"
        content = _check_content(message["content"], role, where)
        messages.append({**message, "role": role, "content": content})
    if messages[-1]["role"] == "system":
        raise PromptError("message 0, of the system, is the only one; expected a user message after it")
    return messages


def _check_content(content: Any, role: str, where: str) -> str | list[dict[str, Any]]:
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, (list, tuple)):
        raise PromptError(f"{where} has the content {_brief(content)}; expected a text or a list of parts")
    for number, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in ("text", "image", "audio"):
            raise PromptError(
                f"part {number} of {where} is {_brief(part)}; expected a dict of type text, image or audio"
            )
        if kind == "text" and not isinstance(part.get("text"), str):
            raise PromptError(f"part {number} of {where} is {_brief(part)}; expected its 'text' to be a str")
        if kind != "text" and role != "user":
            raise PromptError(f"part {number} of {where} is {kind}; expected media in user messages only")
    if role == "system" and len(parts) != 1:  # Gemma's template reads the first part only
        raise PromptError(f"{where}, of the system, has {len(parts)} parts; expected one text")
    if role != "assistant" and not any(part["type"] != "text" or part["text"].strip() for part in parts):
        raise PromptError(f"{where}, of the {role}, is empty; expected some text or media")
    return content if isinstance(content, str) else [dict(part) for part in parts]


def _brief(value: object) -> str:
    """A value for an error message: its type, and its text where that is short."""
    text = repr(value) if isinstance(value, (str, int, float, list, tuple, dict, type(None))) else ""
    return text if 0 < len(text) <= 60 else f"a {type(value).__name__}"


def _plain(value: Any, protect: Callable[[str], str]) -> Any:
    """A copy of plain types with protected texts; anything else (an image, an array) is its type's name."""
    if isinstance(value, str):
        return protect(value if isinstance(value, Said) else str.__str__(value))
    if value is None or type(value) in (bool, int, float):
        return value
    if isinstance(value, Mapping):
        return {
            key: item if key in ("role", "type") and item in _KEYWORDS else _plain(item, protect)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_plain(item, protect) for item in value]
    return f"<{type(value).__name__}>"


@functools.cache
def control_tokens(tokens: tuple[str, ...]) -> re.Pattern[str]:
    """Finds the longest of these tokens at each place, overlapping ones too; its group 1 is the token.

    Compiling it takes 20 ms, for all that a tokenizer has.
    """
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile(f"(?=({'|'.join(map(re.escape, longest_first)) or '(?!)'}))")  # "(?!)" matches nowhere


class _Guard:
    """Marks places in texts before they are rendered, and cuts the rendered text there.

    A mark stands for one character with a cut behind it, or for a whole `Said`. It is made of digits, so that
    trimming and changes of case leave it alone, and is random, so that no message can hold it.
    """

    def __init__(self, special_tokens: Iterable[str]) -> None:
        tokens = tuple(special_tokens)
        self._nonce = str(secrets.randbelow(9 * 10**17) + 10**17)
        self._token = control_tokens(tokens)
        self._beginnings = {token[:n] for token in tokens for n in range(1, len(token))}
        self._longest = max(map(len, tokens), default=0)
        self._said: list[Said] = []

    def mark(self, text: str) -> str:
        """Mark where control tokens start, and an end that begins one which another text may complete."""
        if isinstance(text, Said):
            self._said.append(text)
            return f"{self._nonce}:{len(self._said) - 1};"
        marks = {match.start() for match in self._token.finditer(text)}
        end = len(text.rstrip())  # templates trim
        if any(text[end - n : end] in self._beginnings for n in range(1, min(self._longest, end + 1))):
            marks.add(end - 1)
        pieces = list(text)
        for at in marks:
            pieces[at] = f"{self._nonce}.{ord(text[at])};"
        return "".join(pieces)

    def split(self, rendered: str) -> list[str]:
        """The parts of a rendered text without its marks, cut around what was said and in control tokens."""
        pieces = re.split(rf"{self._nonce}:(\d+);", rendered)  # text, index, text, …, text
        parts: list[str] = []
        for number, piece in enumerate(pieces):
            parts += [self._said[int(piece)]] if number % 2 else self._cut(piece)
        return parts

    def _cut(self, rendered: str) -> list[str]:
        """The same of a text in which nothing was said."""
        pieces = re.split(rf"{self._nonce}\.(\d+);", rendered)  # text, character, text, …, text
        pieces[1::2] = [chr(int(code)) for code in pieces[1::2]]
        text = "".join(pieces)
        if self._nonce in text:
            raise ArtifactError(
                "the chat template rewrites the text of messages, so a control token in it cannot be told "
                "from the template's own; expected a template that at most trims it"
            )
        ends = list(itertools.accumulate(map(len, pieces)))[1::2]
        inside = {at for match in self._token.finditer(text) for at in range(match.start() + 1, match.end(1))}
        cuts = [end for end in ends if end in inside]
        return [text[start:stop] for start, stop in itertools.pairwise([0, *cuts, len(text)])]


def _raise_exception(message: str) -> NoReturn:
    raise _Refused(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own filter escapes HTML
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
