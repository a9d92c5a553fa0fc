"""The names that callers may rely on; changing one of these tests is changing the public interface."""

from __future__ import annotations

import re
from importlib.metadata import version

import pytest

import edge_gemma
from edge_gemma import errors
from edge_gemma.cli import cli

ERRORS = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, Exception)]


def test_exported_members() -> None:
    assert sorted(edge_gemma.__all__) == [
        "Answer",
        "AsyncModel",
        "EdgeGemmaError",
        "Model",
        "Monitor",
        "Piece",
        "SamplingOptions",
        "Session",
        "SpeechSegment",
        "Statistics",
        "Tool",
        "ToolCall",
        "Transcript",
        "__version__",
        "load",
        "run_tools",
    ]
    assert dir(edge_gemma) == sorted(edge_gemma.__all__)


@pytest.mark.parametrize("name", edge_gemma.__all__)
def test_each_can_be_imported(name: str) -> None:
    assert getattr(edge_gemma, name).__doc__


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'edge_gemma' has no attribute 'lode'"):
        edge_gemma.lode  # type: ignore[attr-defined]  # noqa: B018


def test_the_version_is_that_of_the_package() -> None:
    assert edge_gemma.__version__ == version("edge-gemma")


def test_the_tree_of_errors_is_the_real_one() -> None:
    """The drawing at the top of errors.py: every class, each under its base."""
    drawn: dict[str, str] = {}
    parents = {-1: "Exception"}
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"    (?:EdgeGemmaError$|([ │]*)[├└]── )", line):
            depth = 0 if match[1] is None else 1 + len(match[1]) // 4
            name = line[match.end() :].split()[0] if depth else "EdgeGemmaError"
            drawn[name] = parents[depth - 1]
            parents[depth] = name
    assert drawn == {error.__name__: error.__base__.__name__ for error in ERRORS}


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_exit_statuses_are_those_of_the_help(error: type[errors.EdgeGemmaError]) -> None:
    text = " ".join((cli.help or "").split())
    listed = dict(re.findall(r"(\d+) ([^,.]+)", text.partition("Exit status: ")[2]))
    said = {
        "CheckpointError": "checkpoint",
        "RecipeError": "bad usage or prompt",
        "DeviceError": "bad usage or prompt",
        "SubmodelError": "bad usage or prompt",
        "ExportError": "export",
        "ArtifactError": "artifact",
        "FormatVersionError": "artifact",
        "PromptError": "bad usage or prompt",
        "ContextLimitError": "bad usage or prompt",
        "MediaError": "bad usage or prompt",
        "RefusedError": "bad usage or prompt",
        "ToolCallError": "other errors",
        "BudgetError": "over the memory budget",
        "QueueFullError": "other errors",
        "DeadlineError": "other errors",
        "ClosedError": "other errors",
        "SessionError": "other errors",
        "CacheError": "other errors",
        "DependencyError": "missing package",
        "EdgeGemmaError": "other errors",
    }
    assert listed[str(error.exit_code)] == said[error.__name__]


def test_the_remaining_exit_statuses() -> None:
    from edge_gemma.cli import INTERRUPTED
    from edge_gemma.export.cli import VerificationError

    text = " ".join((cli.help or "").split())
    assert f"{VerificationError.exit_code} verification failed" in text
    assert f"{INTERRUPTED} interrupted" in text
