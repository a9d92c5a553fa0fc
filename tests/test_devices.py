"""Device profiles: the shipped ones hold together, a user's file is checked, machines find theirs."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from edge_gemma.candidates import of_model
from edge_gemma.cli import run
from edge_gemma.devices import BUILT_IN, Device, detect_device, find_device, load_devices
from edge_gemma.errors import DeviceError
from edge_gemma.machine import FEATURES, Machine
from edge_gemma.memory import parse_bytes
from edge_gemma.recipes import load_recipes

ROOT = Path(__file__).parent.parent
SHIPPED: dict[str, Any] = yaml.safe_load((ROOT / "devices.yaml").read_text("utf-8"))
SCHEMA = json.loads((ROOT / "edge_gemma" / "devices.schema.json").read_text("utf-8"))
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
DEVICES = load_devices()
GIB = 1 << 30
MINE: dict[str, Any] = {
    "title": "Mine",
    "memory": "2GiB",
    "budget": "1GiB",
    "cores": 2,
    "features": ["avx2"],
    "providers": ["CPUExecutionProvider"],
    "storage": {"kind": "disk", "read": "100MB"},
    "memory_bandwidth": "10GB",
    "model": "E2B",
    "recipe": "int4",
    "context": 1024,
    "generic": False,
    "detect": {"boards": ["Board"], "memory_from": "1GiB", "architecture": "aarch64"},
}
OPTIONAL = ("generic", "detect")
ORIN_NANO = "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
GONE = object()


def machine(board: str = "", memory: float = 4, **facts: Any) -> Machine:
    """An ARM board unless told otherwise; memory in GiB."""
    defaults = {"system": "linux", "architecture": "aarch64", "cores": 4, "features": ("asimd",), "ci": False}
    return Machine(board=board, memory=int(memory * GIB), **(defaults | facts))


def phone(board: str, memory: float) -> Machine:
    return machine(board, memory, system="android", cores=5)


def x86(memory: float, cores: int = 8, ci: bool = False) -> Machine:
    return machine("", memory, architecture="x86_64", cores=cores, features=("avx2",), ci=ci)


def changed(path: str, value: object) -> dict[str, Any]:
    """MINE with one place changed, or without it."""
    *way, last = path.split(".")
    fields = copy.deepcopy(MINE)
    place = fields
    for key in way:
        place = place[key]
    if value is GONE:
        del place[last]
    else:
        place[last] = value
    return fields


def write(path: Path, data: object) -> Path:
    path.write_text(data if isinstance(data, str) else yaml.safe_dump(data), "utf-8")
    return path


def refusal(name: str) -> str:
    with pytest.raises(DeviceError) as caught:
        find_device(name)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2
    return str(caught.value)


def test_the_profiles_that_were_promised_are_there() -> None:
    assert set(DEVICES) >= {
        "raspberry-pi-4-4gb", "raspberry-pi-4-8gb", "raspberry-pi-5-4gb", "raspberry-pi-5-8gb",
        "raspberry-pi-5-16gb", "jetson-orin-nano", "jetson-agx-orin", "pixel-8", "galaxy-s24",
        "generic-arm64-phone", "x86-laptop", "x86-server", "ci",
    }  # fmt: skip
    assert DEVICES["jetson-orin-nano"].providers[0] == "CUDAExecutionProvider"


@pytest.mark.parametrize("device", DEVICES.values(), ids=lambda d: d.name)
def test_what_a_profile_recommends_fits_its_budget(device: Device) -> None:
    recipe = load_recipes()[device.recipe]
    found = of_model(device.model, recipe, context=device.context, budget=device.budget)
    assert found.plan.fits and found.plan.chunk == 128
    assert set(device.features) <= set(FEATURES)
    assert device.detect


def test_the_schema_accepts_what_is_shipped() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    VALIDATOR.validate(SHIPPED)
    assert BUILT_IN.read_text("utf-8") == (ROOT / "devices.yaml").read_text("utf-8")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        *((key, GONE, f"missing key '{key}' at the top level") for key in MINE if key not in OPTIONAL),
        ("storage.read", GONE, "missing key 'read' at storage"),
        ("colour", "red", "unknown key 'colour' at the top level"),
        ("name", "mine", "unknown key 'name' at the top level"),
        ("storage.size", "1GB", "unknown key 'size' at storage"),
        ("detect.cpu", "x", "unknown key 'cpu' at detect"),
        ("memory", "2 gigabytes", "memory: '2 gigabytes' is not a size"),
        ("memory", 4, "memory is 4, expected a size such as 4GiB"),
        ("memory", "0GiB", "memory is 0, expected more than 0"),
        ("budget", None, "budget is None, expected a size such as 4GiB"),
        ("storage.read", "fast", "storage.read: 'fast' is not a size"),
        ("storage.read", "0", "storage.read is 0, expected more than 0"),
        ("storage", "microSD", "expected an object"),
        ("memory_bandwidth", ["1GB"], "memory_bandwidth is ['1GB'], expected a size"),
        ("detect.memory_from", "-1GiB", "detect.memory_from: '-1GiB' is not a size"),
        ("detect.boards", "Board", "detect.boards is 'Board', expected tuple"),
        ("detect.ci", "yes", "detect.ci is 'yes', expected"),
        ("detect", "Board", "detect is 'Board', expected"),
        ("cores", 0, "cores is 0, expected more than 0"),
        ("cores", "4", "cores is '4', expected int"),
        ("cores", True, "cores is True, expected int"),
        ("context", -1, "context is -1, expected more than 0"),
        ("features", "avx2", "features is 'avx2', expected tuple"),
        ("features", [2], "features[0] is 2, expected str"),
        ("providers", [], "expected CPUExecutionProvider among them"),
        ("providers", ["CUDAExecutionProvider"], "expected CPUExecutionProvider among them"),
        ("providers", ["CPUExecutionProvider", "GPU"], "providers hold 'GPU'"),
        ("model", "E8B", "model is 'E8B', expected E2B or E4B"),
        ("title", "", "title is empty, expected text"),
        ("recipe", "", "recipe is empty, expected text"),
        ("generic", "no", "generic is 'no', expected bool"),
    ],
)  # fmt: skip
def test_schema_and_dataclasses_refuse_the_same(
    path: str, value: object, message: str, tmp_path: Path
) -> None:
    data = {"mine": changed(path, value)}
    assert not VALIDATOR.is_valid(data)
    file = write(tmp_path / "mine.yaml", data)
    found = refusal(str(file))
    assert found.startswith(f"device 'mine' in {file}: ") and message in found
    assert found.endswith("; see docs/devices.md")


def test_a_recipe_that_is_none(tmp_path: Path) -> None:
    file = str(write(tmp_path / "mine.yaml", {"mine": MINE | {"recipe": "int5"}}))
    assert "recipe is 'int5', expected fp32, int8, int4, int4-hq or a .yaml file" in refusal(file)


@pytest.mark.parametrize("name", ["a:b", "a/b", "a\\b", "mine.yaml"])
def test_names_that_could_not_be_given(name: str, tmp_path: Path) -> None:
    assert not VALIDATOR.is_valid({name: MINE})
    assert "its name cannot be used" in refusal(str(write(tmp_path / "x.yaml", {name: MINE})))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("generic", GONE),
        ("detect", GONE),
        ("detect", {}),
        ("detect", None),
        ("features", []),
        ("budget", "2GiB"),
        ("memory", "4000 mb"),
        ("providers", ["CPUExecutionProvider", "XnnpackExecutionProvider"]),
    ],
)
def test_schema_and_dataclasses_accept_the_same(path: str, value: object, tmp_path: Path) -> None:
    data = {"mine": changed(path, value)}
    VALIDATOR.validate(data)
    assert find_device(str(write(tmp_path / "mine.yaml", data))).name == "mine"


@given(
    st.text("0123456789. KMGkmgiIbBx-", max_size=8)
    | st.from_regex(r"\d{1,3}(\.\d)? ?[KMG]i?B", fullmatch=True)
)
def test_schema_and_dataclasses_read_the_same_sizes(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    data = {"mine": MINE | {"memory": text, "budget": text}}
    file = write(tmp_path_factory.getbasetemp() / "sizes.yaml", data)
    try:
        count = load_devices(file)["mine"].memory
    except DeviceError as error:
        if "is 0, expected" in str(error) and any(digit in text for digit in "123456789"):
            return  # a part of a byte, which only the arithmetic knows to be nothing
        assert not VALIDATOR.is_valid(data), text
    else:
        assert VALIDATOR.is_valid(data), text
        assert count == parse_bytes(text)


def test_more_than_all_memory_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.yaml", {"mine": MINE | {"budget": "3GiB"}})
    assert "budget is larger than memory" in refusal(str(file))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1\nb: }", "is not valid YAML"),
        ("", "holds NoneType, expected devices by name"),
        ("- 1", "holds list, expected devices by name"),
        ("{}", "holds no devices: expected at least one"),
        ("mine: 3", "device 'mine' in "),
    ],
)
def test_malformed_files(text: str, message: str, tmp_path: Path) -> None:
    assert message in refusal(str(write(tmp_path / "mine.yaml", text)))
    assert "does not exist: expected a device file, see docs/devices.md" in refusal(f"{tmp_path}/none.yaml")


def test_finding_a_device_by_name(tmp_path: Path) -> None:
    one = write(tmp_path / "one.yaml", {"mine": MINE})
    two = write(tmp_path / "two.yml", {"mine": MINE, "yours": MINE | {"title": "Yours"}})
    assert find_device("pixel-8") == DEVICES["pixel-8"]
    assert find_device(str(one)).title == "Mine"
    assert find_device(f"{two}:yours").title == "Yours"
    assert find_device("yours", [one, two]).title == "Yours"
    assert find_device("ci", [one]) == DEVICES["ci"]
    assert refusal(str(two)) == f"{two} holds 2 devices: choose one as {two}:NAME, of mine, yours"
    assert refusal(f"{two}:his").startswith(f"no device in {two} is called 'his': choose mine, yours, or")
    assert refusal("raspberry-pi-6").startswith(
        f"no device is called 'raspberry-pi-6': choose {next(iter(DEVICES))}"
    )


@pytest.mark.parametrize(
    ("found", "name"),
    [
        (machine("Raspberry Pi 4 Model B Rev 1.4", 3.7), "raspberry-pi-4-4gb"),
        (machine("Raspberry Pi 4 Model B Rev 1.5", 7.6), "raspberry-pi-4-8gb"),
        (machine("Raspberry Pi Compute Module 4 Rev 1.1", 3.7), "raspberry-pi-4-4gb"),
        (machine("Raspberry Pi 400 Rev 1.0", 3.7), "raspberry-pi-4-4gb"),
        (machine("Raspberry Pi 5 Model B Rev 1.0", 3.95), "raspberry-pi-5-4gb"),
        (machine("Raspberry Pi 5 Model B Rev 1.0", 7.9), "raspberry-pi-5-8gb"),
        (machine("Raspberry Pi 5 Model B Rev 1.1", 15.8), "raspberry-pi-5-16gb"),
        (machine("Raspberry Pi 5 Model B Rev 1.0", 7.9, ci=True), "raspberry-pi-5-8gb"),
        (machine(ORIN_NANO, 7.4), "jetson-orin-nano"),
        (machine("NVIDIA Jetson AGX Orin Developer Kit", 61.4, cores=12), "jetson-agx-orin"),
        (phone("Pixel 8", 7.4), "pixel-8"),
        (phone("SM-S921B", 7.3), "galaxy-s24"),
        (phone("Pixel 8 Pro", 11.5), "generic-arm64-phone"),
        (phone("SM-A546B", 5.5), "generic-arm64-phone"),
        (machine("Orange Pi 5", 7.7), "generic-arm64"),
        (machine("Raspberry Pi 4 Model B Rev 1.4", 1.8), "generic-arm64"),
        (machine("", 16, system="darwin"), "generic-arm64"),
        (x86(7.5), "x86-laptop"),
        (x86(31), "x86-laptop"),
        (x86(252), "x86-server"),
        (x86(15.6, ci=True), "ci"),
        (machine("", 12, architecture="riscv64"), "x86-laptop"),
    ],
)  # fmt: skip
def test_a_machine_finds_its_profile(found: Machine, name: str) -> None:
    assert detect_device(found).name == name


def test_a_board_is_what_its_profile_says_with_the_cores_at_hand() -> None:
    found = detect_device(machine("Raspberry Pi 5 Model B Rev 1.0", 7.9, cores=3))
    assert found.cores == 3
    assert (found.memory, found.budget) == (8 * GIB, 4 * GIB)
    assert detect_device(machine("Jetson AGX Orin", 61, cores=12)).cores == 8


def test_a_generic_machine_has_its_own_figures() -> None:
    found = detect_device(x86(24, cores=2))
    assert (found.memory, found.budget, found.cores, found.features) == (24 * GIB, 12 * GIB, 2, ("avx2",))
    assert (found.model, found.recipe, found.context) == ("E4B", "int4-hq", 8192)


def test_a_small_generic_machine_gets_the_small_model() -> None:
    found = detect_device(x86(7.5))
    assert found.budget == int(3.75 * GIB)
    assert (found.model, found.recipe, found.context) == ("E2B", "int4", 4096)
    assert detect_device(x86(12)).model == "E4B"  # three quarters of the profile's


def test_only_generic_profiles_stand_for_others(tmp_path: Path) -> None:
    mine = load_devices(write(tmp_path / "mine.yaml", {"mine": MINE}))
    assert detect_device(machine("My Board 2", 1.5), mine).name == "mine"
    for other in (machine("My Board 2", 0.5), machine("Another", 1.5), x86(1.5)):
        with pytest.raises(DeviceError, match="none of them is generic: choose one by name"):
            detect_device(other, mine)
    adapted = load_devices(write(tmp_path / "mine.yaml", {"mine": MINE | {"generic": True}}))
    assert detect_device(x86(1), adapted).budget == GIB // 2


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["devices"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and all(name in out for name in DEVICES)
    here = detect_device().name
    assert [line.split()[1] for line in out.splitlines() if line.startswith("  * ")] == [here]
    assert f"\nthis machine: {here}\n" in out
    assert run(["devices", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [d["name"] for d in found["devices"]] == list(DEVICES)
    assert found["this_machine"]["name"] == here


def test_one_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["devices", "raspberry-pi-4-8gb"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("raspberry-pi-4-8gb: Raspberry Pi 4 Model B, 8 GB\n")
    for text in ("microSD, 44 MB/s", "12.8 GB/s", "E2B int4-hq, 4096 tokens", "from 6.00 GiB, to 8.00 GiB"):
        assert text in out
    assert run(["devices", "ci", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["budget"] == 2 * GIB


def test_a_file_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(write(tmp_path / "mine.yaml", {"mine": MINE | {"detect": {}}, "ci": MINE}))
    assert run(["devices", "--file", file, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    titles = {d["name"]: d["title"] for d in found["devices"]}
    assert set(titles) == {*DEVICES, "mine"} and titles["ci"] == "Mine"
    assert found["this_machine"]["name"] == "mine"  # a user's own are looked at first
    assert run(["devices", "mine", "--file", file]) == 0
    assert capsys.readouterr().out.startswith("mine: Mine\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["devices", "nokia"], "no device is called 'nokia'"),
        (["devices", "mine", "--file", "none.yaml"], "none.yaml does not exist"),
        (["devices", "--file", "none.yaml"], "none.yaml does not exist"),
        (["plan", "--device", "nokia"], "no device is called 'nokia'"),
    ],
)
def test_errors_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and message in err


def test_without_yaml_the_error_names_the_package(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert run(["devices"]) == 6
    assert capsys.readouterr().err == "error: PyYAML is missing: pip install 'edge-gemma'\n"


def test_the_example_in_the_docs_works(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "devices.md").read_text("utf-8")
    example = textwrap.dedent(page[page.index("    # board.yaml") :].partition("\n\n")[0])
    VALIDATOR.validate(yaml.safe_load(example))
    assert find_device(str(write(tmp_path / "board.yaml", example))).name == "my-board"


BUILD = """
import os, sys
from setuptools import build_meta
os.chdir(sys.argv[1])
print(getattr(build_meta, sys.argv[2])(sys.argv[3]))
"""


def test_the_profiles_reach_source_archive_and_wheel(tmp_path: Path) -> None:
    """Their contents, and not the link that stands for them in the repository."""
    pytest.importorskip("setuptools")
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE", "devices.yaml"):
        shutil.copy(ROOT / name, tree)
    for name in ("edge_gemma", "export", "runtime"):
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))

    def build(what: str, folder: Path) -> Path:
        command = [sys.executable, "-c", BUILD, str(folder), what, str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return tmp_path / done.stdout.split()[-1]

    with tarfile.open(build("build_sdist", tree)) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    with zipfile.ZipFile(build("build_wheel", source)) as wheel:
        for name in ("devices.yaml", "devices.schema.json", "recipes.yaml"):
            assert wheel.read(f"edge_gemma/{name}") == (ROOT / "edge_gemma" / name).read_bytes()
