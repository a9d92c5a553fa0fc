"""Puts the repository's root on the path: `demo` is run from there and is not installed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
