"""Data files that users may write themselves: recipes, devices and sub-models, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edge_gemma.errors import DependencyError, EdgeGemmaError

PAGES = {"recipe": "quantization", "device": "devices", "sub-model": "matformer"}


def read_entries(path: Path, kind: str, error: type[EdgeGemmaError]) -> dict[str, dict[str, Any]]:
    """The entries of a YAML file, each a mapping. `kind`, one of PAGES, names them in errors.

    Raises:
        error: the file is missing, cannot be read, or holds something else.
    """
    try:
        import yaml  # takes longer to import than the whole command line
    except ImportError:
        raise DependencyError("PyYAML is missing: pip install 'edge-gemma'") from None
    try:
        data = yaml.safe_load(path.read_text("utf-8"))
    except FileNotFoundError:
        raise error(f"{path} does not exist: expected a {kind} file, see docs/{PAGES[kind]}.md") from None
    except OSError as reason:
        raise error(f"{path} cannot be read: {reason.strerror}") from None
    # odd scalars, such as the date 2026-02-30, raise others than YAMLErrors, and so does what is nested deep
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as reason:
        raise error(f"{path} is not valid YAML: {' '.join(str(reason).split())}") from None
    if not isinstance(data, dict):
        raise error(f"{path} holds {type(data).__name__}, expected {kind}s by name")
    for name, fields in data.items():
        if not isinstance(fields, dict):
            raise error(f"{kind} {name!r} in {path}: holds {type(fields).__name__}, expected a mapping")
    return {str(name): fields for name, fields in data.items()}
