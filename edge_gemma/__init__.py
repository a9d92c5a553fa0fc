"""Export Gemma 3n to quantized ONNX and run it on small machines.

import edge_gemma

model = edge_gemma.load("artifacts/e2b")
for piece in model.stream("Why is the sky blue?", max_new_tokens=64):
    print(piece.text, end="")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_gemma.errors import EdgeGemmaError as EdgeGemmaError
    from edge_gemma.runtime.answer import Answer as Answer
    from edge_gemma.runtime.answer import Piece as Piece
    from edge_gemma.runtime.conversation import Session as Session
    from edge_gemma.runtime.engine import Model as Model
    from edge_gemma.runtime.loading import load as load
    from edge_gemma.runtime.monitoring import Monitor as Monitor
    from edge_gemma.runtime.sampling import SamplingOptions as SamplingOptions
    from edge_gemma.runtime.speech import SpeechSegment as SpeechSegment
    from edge_gemma.runtime.speech import Transcript as Transcript
    from edge_gemma.runtime.statistics import Statistics as Statistics
    from edge_gemma.runtime.tool_loop import run_tools as run_tools
    from edge_gemma.runtime.tools import Tool as Tool
    from edge_gemma.runtime.tools import ToolCall as ToolCall

__version__ = "0.1.0"

# Imported at first use, so that `import edge_gemma` costs nothing.
_HOMES = {
    "load": "edge_gemma.runtime.loading",
    "Model": "edge_gemma.runtime.engine",
    "AsyncModel": "edge_gemma.runtime.aio",
    "Answer": "edge_gemma.runtime.answer",
    "Piece": "edge_gemma.runtime.answer",
    "Monitor": "edge_gemma.runtime.monitoring",
    "SamplingOptions": "edge_gemma.runtime.sampling",
    "Session": "edge_gemma.runtime.conversation",
    "SpeechSegment": "edge_gemma.runtime.speech",
    "Statistics": "edge_gemma.runtime.statistics",
    "Tool": "edge_gemma.runtime.tools",
    "ToolCall": "edge_gemma.runtime.tools",
    "Transcript": "edge_gemma.runtime.speech",
    "run_tools": "edge_gemma.runtime.tool_loop",
    "EdgeGemmaError": "edge_gemma.errors",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'edge_gemma' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
