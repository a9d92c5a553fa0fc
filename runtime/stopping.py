"""Stop strings in a stream of text."""

from __future__ import annotations

from collections.abc import Iterable

from edge_gemma.errors import PromptError


class StopStrings:
    """Cuts a stream of text at the first stop string, however the text is cut into pieces.

    The first stop string is the one that is complete first: the stream stops at the earliest character
    that ends one, and where several end there the longest counts. So with ("abcd", "bc") the text
    "abcd" stops after its third character and "a" is emitted. What is emitted depends only on the text,
    never on the pieces.

    One object serves one stream. Raises PromptError unless `stops` is a collection of non-empty strings;
    an empty collection never stops.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        if isinstance(stops, str) or not isinstance(stops, Iterable):
            raise PromptError(
                f"the stop strings are {stops!r}; expected a tuple of strings, such as ('###',)"
            )
        self._stops = tuple(stops)
        for index, stop in enumerate(self._stops):
            if not isinstance(stop, str) or not stop:
                raise PromptError(f"stop string {index} is {stop!r}; expected a string that is not empty")
        self._longest = max(map(len, self._stops), default=1)
        self._held = ""
        self._stopped = False

    def push(self, piece: str) -> tuple[str, bool]:
        """The text that is now safe to emit, and whether a stop string was hit.

        Text that may be the beginning of a stop string is held back. Once a stop string was hit, the
        text before it is emitted, and every later call gives ("", True).
        """
        if self._stopped:
            return "", True
        text = self._held + piece
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            self._stopped, self._held = True, ""
            return text[: min(found)[1]], True
        safe = max(0, len(text) - self._longest + 1)
        while safe < len(text) and not any(stop.startswith(text[safe:]) for stop in self._stops):
            safe += 1
        self._held = text[safe:]
        return text[:safe], False

    def flush(self) -> str:
        """The text held back, at the end of the stream: no stop string came of it."""
        held, self._held = self._held, ""
        return held
