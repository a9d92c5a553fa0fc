"""How long work reports its progress; the command line draws it, a library caller may ignore it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    def stage(self, name: str, total: int) -> None:
        """A new stage begins; `total` is what its `advance` calls add up to."""

    def advance(self, amount: int = 1) -> None:
        """Part of the current stage is done."""


class Silent:
    """Reports nothing."""

    def stage(self, name: str, total: int) -> None:
        pass

    def advance(self, amount: int = 1) -> None:
        pass
