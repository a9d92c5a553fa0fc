"""Device profiles: read from devices.yaml or from a file of the user's, and chosen for this machine."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from edge_gemma.errors import DeviceError
from edge_gemma.machine import CPU, Machine, this_machine
from edge_gemma.memory import parse_bytes
from edge_gemma.models import MODELS
from edge_gemma.recipes import load_recipes
from edge_gemma.schema import SchemaError, from_dict
from edge_gemma.yaml_file import read_entries

BUILT_IN = Path(__file__).with_name("devices.yaml")
UNLIMITED = 1 << 60
AUTO = "auto"  # stands for the device that this is
SUFFIXES = (".yaml", ".yml")
# A generic machine with a smaller share of its profile's budget than this gets the smallest model.
ENOUGH = 0.75
Size = Annotated[int, parse_bytes, "a size such as 4GiB"]  # bytes


@dataclass(frozen=True, kw_only=True)
class Storage:
    """Where the model's files lie."""

    kind: str
    read: Size  # bytes a second, read in sequence


@dataclass(frozen=True, kw_only=True)
class Detect:
    """How a machine of a profile is recognised: by everything that is given."""

    boards: tuple[str, ...] = ()  # one of them is part of the name that the board or the phone has
    system: str | None = None  # linux, android, darwin, windows
    architecture: str | None = None  # x86_64, aarch64
    memory_from: Size = 0  # the system shows less than is built in
    memory_to: Size = UNLIMITED
    ci: bool | None = None  # whether it is continuous integration

    def matches(self, machine: Machine) -> bool:
        return (
            (not self.boards or any(board in machine.board for board in self.boards))
            and self.system in (None, machine.system)
            and self.architecture in (None, machine.architecture)
            and self.memory_from <= machine.memory <= self.memory_to
            and self.ci in (None, machine.ci)
        )


@dataclass(frozen=True, kw_only=True)
class Device:
    """A kind of machine: what it has, and what is recommended for it."""

    name: str
    title: str
    memory: Size  # all of it
    budget: Size  # what the model may take of it
    cores: int  # to compute with
    features: tuple[str, ...]  # of the processor, by /proc/cpuinfo's names
    providers: tuple[str, ...]  # onnxruntime's execution providers, the preferred one first
    storage: Storage
    memory_bandwidth: Size  # bytes a second
    model: str  # recommended: E2B or E4B
    recipe: str  # recommended: the name of a recipe, or a .yaml file
    context: int  # recommended, in tokens
    generic: bool = False  # stands for many machines: memory and cores are those of the one at hand
    detect: Detect | None = None  # None: only by name


def load_devices(path: Path | None = None) -> dict[str, Device]:
    """All profiles of a file, by default the built-in ones, by name; the first that matches a machine is its.

    Raises:
        DeviceError: the file is missing or malformed.
    """
    path = path or BUILT_IN
    devices = {}
    for name, fields in read_entries(path, "device", DeviceError).items():
        try:
            if "name" in fields:
                raise SchemaError("unknown key 'name' at the top level")
            devices[name] = from_dict(Device, {**fields, "name": name})
            _check(devices[name])
        except (SchemaError, ValueError) as error:
            raise DeviceError(f"device {name!r} in {path}: {error}; see docs/devices.md") from None
    if not devices:
        raise DeviceError(f"{path} holds no devices: expected at least one, see docs/devices.md")
    return devices


def find_device(name: str, files: Sequence[str | Path] = ()) -> Device:
    """A profile by its name, built in or from one of `files`; or of a file: FILE.yaml, FILE.yaml:NAME.

    A name without NAME takes the only profile of the file.

    Raises:
        DeviceError: there is none of that name, or its file is malformed.
    """
    file, _, chosen = name.rpartition(":")
    if name.endswith(SUFFIXES):
        file, chosen = name, ""
    if not file.endswith(SUFFIXES):
        devices = load_devices()
        for other in files:
            devices |= load_devices(Path(other))
        chosen, where = name, "no device"
    else:
        devices, where = load_devices(Path(file)), f"no device in {file}"
        if not chosen:
            if len(devices) > 1:
                raise DeviceError(
                    f"{file} holds {len(devices)} devices: choose one as {file}:NAME, of {', '.join(devices)}"
                )
            (chosen,) = devices
    if chosen not in devices:
        raise DeviceError(
            f"{where} is called {chosen!r}: choose {', '.join(devices)}, or give a .yaml file of your own"
        )
    return devices[chosen]


def detect_device(machine: Machine | None = None, devices: dict[str, Device] | None = None) -> Device:
    """The profile of this machine: of its board, or a generic one with this machine's own figures.

    Where none matches, it is the generic profile of the same architecture that is nearest in memory.

    Raises:
        DeviceError: nothing matches, and no profile is generic.
    """
    machine = machine or this_machine()
    devices = load_devices() if devices is None else devices
    for device in devices.values():
        if device.detect and device.detect.matches(machine):
            return _adapt(device, machine)
    generic = [device for device in devices.values() if device.generic]
    if not generic:
        raise DeviceError(
            "this machine is none of the devices, and none of them is generic: choose one by name"
        )
    return _adapt(min(generic, key=lambda device: _distance(device, machine)), machine)


def _distance(device: Device, machine: Machine) -> tuple[bool, bool, float]:
    """How far a generic profile is from a machine: by architecture, then system, then ratio of memory."""
    known = device.detect or Detect()
    return (
        known.architecture not in (None, machine.architecture),
        known.system not in (None, machine.system),
        abs(math.log(device.memory / machine.memory)),
    )


def _adapt(device: Device, machine: Machine) -> Device:
    """A profile for the machine at hand, which may lend this process fewer cores than it has."""
    if not device.generic:
        return replace(device, cores=min(device.cores, machine.cores))
    own = replace(
        device,
        memory=machine.memory,
        budget=device.budget * machine.memory // device.memory,
        cores=machine.cores,
        features=machine.features,
    )
    if own.budget < ENOUGH * device.budget:
        own = replace(own, model=next(iter(MODELS)), recipe="int4", context=min(device.context, 4096))
    return own


@functools.cache
def _recipes() -> tuple[str, ...]:
    return tuple(load_recipes())


def _check(device: Device) -> None:
    if not device.name or set(device.name) & set(":/\\") or device.name.endswith(SUFFIXES):
        raise ValueError("its name cannot be used: expected one without : and / that is not a .yaml file")
    if device.model not in MODELS:
        raise ValueError(f"model is {device.model!r}, expected {' or '.join(MODELS)}")
    if CPU not in device.providers:
        raise ValueError(f"providers are {list(device.providers)}, expected {CPU} among them")
    if bad := [name for name in device.providers if not name.endswith("ExecutionProvider")]:
        raise ValueError(f"providers hold {bad[0]!r}, expected names such as {CPU}")
    for name in ("title", "recipe"):
        if not getattr(device, name):
            raise ValueError(f"{name} is empty, expected text")
    if not device.recipe.endswith(SUFFIXES) and device.recipe not in _recipes():
        raise ValueError(f"recipe is {device.recipe!r}, expected {', '.join(_recipes())} or a .yaml file")
    figures = {
        name: getattr(device, name) for name in ("memory", "budget", "cores", "memory_bandwidth", "context")
    }
    for name, value in (figures | {"storage.read": device.storage.read}).items():
        if value < 1:
            raise ValueError(f"{name} is {value}, expected more than 0")
    if device.budget > device.memory:
        raise ValueError("budget is larger than memory, expected at most all of it")
