"""What the tests of the real size share: an artifact that takes minutes to make."""

from __future__ import annotations

from typing import Any

import pytest
from processes import edge_gemma


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The report of an int4 export of synthetic:E2B with both encoders; "output" is its folder."""
    return edge_gemma("export", "synthetic:E2B", "-o", str(tmp_path_factory.mktemp("e2b") / "int4"))
