"""What the runtime imports, and what that costs."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = (
    *("torch", "transformers", "onnx", "safetensors", "huggingface_hub", "yaml", "librosa", "scipy"),
    "tokenizers",
)
RUNTIME = [f"edge_gemma.runtime.{path.stem}" for path in (ROOT / "runtime").glob("[a-z]*.py")]
PACKAGE = sorted((ROOT / "edge_gemma").glob("*.py"))
MIB = 1 << 20

BLOCK = f"""
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY}:
            raise ModuleNotFoundError("blocked", name=name)

sys.meta_path.insert(0, Block())
"""
PEAK = """
with open("/proc/self/status") as status:
    print(next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM")))
"""


def python(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def imported(path: Path) -> set[str]:
    """Modules that a file imports anywhere, but for the type checker alone."""
    found: set[str] = set()
    nodes: list[ast.AST] = [ast.parse(path.read_text("utf-8"))]
    for node in nodes:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path} has a relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_the_runtime_needs_nothing_heavy(tiny_artifact: Path) -> None:
    code = f"""{BLOCK}
import importlib
for name in {["edge_gemma.runtime", "edge_gemma.cli", *RUNTIME]}:
    importlib.import_module(name)
import edge_gemma
with edge_gemma.load(sys.argv[1], context=64, threads=1) as model:
    print(model.generate("hello", max_new_tokens=5).statistics.generated_tokens)
"""
    assert python(code, str(tiny_artifact)) == "5\n"


def test_a_server_needs_nothing_heavy() -> None:
    pytest.importorskip("uvicorn", reason="uvicorn, which a server needs, is not installed")
    python(f"{BLOCK}\nimport edge_gemma.runtime.serving.app, edge_gemma.runtime.serving.process")


def test_exporting_without_its_packages_is_one_line() -> None:
    code = f"{BLOCK}\nfrom edge_gemma.cli import run; print(run(['export']))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout == "6\n"
    assert done.stderr.count("\n") == 1 and "pip install 'edge-gemma[export]'" in done.stderr


@pytest.mark.parametrize("module", ["edge_gemma", "edge_gemma.runtime", "edge_gemma.cli"])
def test_importing_is_cheap(module: str) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    roots = {name.partition(".")[0] for name in python(code).split()}
    assert not roots & {"numpy", "onnxruntime", "jinja2", "rich", *HEAVY}


@pytest.mark.parametrize(
    ("module", "limit"),
    [("edge_gemma.runtime", 24 * MIB), ("edge_gemma.runtime.engine", 64 * MIB)],  # 11 and 53 MiB measured
)
def test_memory_after_importing(module: str, limit: int) -> None:
    assert int(python(f"import {module}{PEAK}")) <= limit


@pytest.mark.parametrize("path", sorted((ROOT / "runtime").rglob("*.py")), ids=lambda path: path.name)
def test_the_runtime_does_not_know_the_export(path: Path) -> None:
    names = imported(path)
    assert not [name for name in names if name.startswith("edge_gemma.export")]
    assert not {name.partition(".")[0] for name in names} & set(HEAVY)


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: path.name)
def test_what_both_share_knows_neither(path: Path) -> None:
    """`__init__.py` and `cli.py` have tables of names, and import what is asked for."""
    sides = ("edge_gemma.export", "edge_gemma.runtime")
    assert not [name for name in imported(path) if name.startswith(sides)]


def test_nothing_is_reported_home(tmp_path: Path) -> None:
    """onnxruntime keeps a file of events that wait to be sent, unless it is told not to."""
    environment = {
        k: v for k, v in os.environ.items() if k not in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")
    }
    environment["HOME"] = str(tmp_path)
    code = "import edge_gemma.runtime.engine"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True, timeout=120)
    assert not list(tmp_path.iterdir())
