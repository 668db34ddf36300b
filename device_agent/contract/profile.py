"""Hardware profiles: what a kind of device is, can run and may spend (docs/profiles.md).

One TOML file each. Sizes and times are strings with a unit ("4 GiB", "50 ms"), so no figure is
ever without one.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from device_agent.contract.errors import ProfileError
from device_agent.contract.manifest import Identifier, Positive
from device_agent.contract.names import digest_of
from device_agent.contract.problems import Problem, problems_of

SCHEMA = 1
MAX_PROFILE_BYTES = 64 * 1024

SIZE_UNITS = {
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
}
TIME_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_QUANTITY = re.compile(r"^\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]+)\s*$")


_SPECIFIER = re.compile(r"(~=|==|!=|<=|>=|<|>) ?[0-9][0-9A-Za-z.*+!-]*")
"""One PEP 440 version specifier."""


class Size(int):
    """A number of bytes, written as a string with a unit of ``SIZE_UNITS``."""


class Duration(float):
    """A number of seconds, written as a string with a unit of ``TIME_UNITS``."""


Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the file; unknown keys are refused."""


class Memory(_Table, frozen=True, kw_only=True):
    """What there is, and how much of it models may take."""

    ram: Size
    models: Size
    storage: Size
    flash: Size | None = None


class Platform(_Table, frozen=True, kw_only=True):
    """What the agent and the runtime are installed on.

    Attributes:
        libc: Such as ``glibc 2.36``.
        python: Such as ``3.11``.
        wheel_tags: Platform tags for wheels, best first; what ``pip download --platform`` takes.
    """

    os: Literal["linux", "android", "ios", "none"]
    libc: str = ""
    python: Annotated[str, msgspec.Meta(pattern=r"^(3\.[0-9]+)?\Z")] = ""
    wheel_tags: tuple[str, ...] = ()


class Runtime(_Table, frozen=True, kw_only=True):
    """A runtime that the device can have, in order of preference.

    Attributes:
        name: Entry-point name of the converter, such as ``onnx_runtime``.
        version: PEP 440 range of versions that are known to work there.
        opset_max: Highest ONNX opset that the runtime takes (ONNX only).
    """

    name: str
    version: str
    providers: tuple[str, ...] = ()
    opset_max: Positive | None = None
    threads: Positive = 1


class Weights(_Table, frozen=True, kw_only=True):
    """How weights are quantized."""

    bits: Literal[4, 8, 16] = 8
    symmetric: bool = True
    per_channel: bool = True


class Activations(_Table, frozen=True, kw_only=True):
    """How activations are quantized. x86 fuses ``uint8``, Arm ``int8``."""

    dtype: Literal["uint8", "int8", "int16"] = "uint8"
    symmetric: bool = False


class OpRule(_Table, frozen=True, kw_only=True):
    """Where an operator may run.

    Attributes:
        op: Operator type as the runtime's format names it, or ``*``.
        condition: Empty, or ``rank > N``.
        placement: ``float`` keeps it unquantized; ``refuse`` refuses the model before any work.
    """

    op: str
    condition: Annotated[str, msgspec.Meta(pattern=r"^(rank > [0-9]+)?\Z")] = ""
    placement: Literal["float", "refuse"]
    reason: str


class Numerics(_Table, frozen=True, kw_only=True):
    """Number formats that the device computes in."""

    dtypes: tuple[Literal["float32", "float16", "int8"], ...]
    weights: Weights = Weights()
    activations: Activations = Activations()
    int8_io: bool = False
    reduce_range: bool = False
    op_rules: tuple[OpRule, ...] = ()


class Accelerator(_Table, frozen=True, kw_only=True):
    """A neural processor beside the CPU, for which a compiler estimates what it will do.

    Attributes:
        kind: ``ethos-u`` is estimated by Arm's Vela.
        config: As the compiler names it, such as ``ethos-u55-128``.
        system: The compiler's system configuration; empty is its default.
        memory_mode: The compiler's memory mode; empty is its default.
        clock_hz: Clock of the accelerator.
    """

    kind: Literal["ethos-u"]
    config: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    system: str = ""
    memory_mode: str = ""
    clock_hz: Positive


class Layout(_Table, frozen=True, kw_only=True):
    """Memory layout that the device prefers; ``channel_multiple`` is what pruning rounds to."""

    preferred: Literal["NCHW", "NHWC"] = "NCHW"
    channel_multiple: Positive = 8


class Shapes(_Table, frozen=True, kw_only=True):
    """Limits on shapes."""

    static: bool = True
    max_batch: Positive = 1
    max_rank: Positive = 6


class Hard(_Table, frozen=True, kw_only=True):
    """Constraints that decide: a candidate that misses one is not chosen.

    Attributes:
        accuracy_share: Smallest share of the float accuracy, judged by a paired interval.
        agreement: Smallest share of inputs on which the top-1 answer is the source model's.
        cosine: Smallest mean cosine similarity of the outputs to the source model's.
    """

    artifact: Size
    peak_ram: Size
    latency_p95: Duration
    accuracy_share: Share = 0.99
    agreement: Share = 0.9
    cosine: Share = 0.98


class Constraints(_Table, frozen=True, kw_only=True):
    """What a release for this profile must keep, and what to rank by among those that do."""

    hard: Hard
    rank_by: tuple[Literal["latency", "size", "memory", "accuracy"], ...] = ("latency", "size")


class Cost(_Table, frozen=True, kw_only=True):
    """Calibration of host latency against real devices of this kind.

    Attributes:
        latency_factor: Device latency divided by host latency, median over ``points``.
        error: Median relative error of the factor.
    """

    latency_factor: Annotated[float, msgspec.Meta(gt=0)]
    error: Share
    points: Positive
    date: str
    tools: dict[str, str] = {}


class HardwareProfile(_Table, frozen=True, kw_only=True):
    """One hardware profile. ``cost`` absent means "uncalibrated", and reports say so."""

    schema: int
    id: Identifier
    title: str
    class_: Literal["linux", "android", "ios", "mcu"] = msgspec.field(name="class")
    soc: str
    arch: Literal["x86_64", "aarch64", "armv7l", "armv6l", "cortex-m", "xtensa"]
    isa: tuple[str, ...] = ()
    cores: Positive
    memory: Memory
    platform: Platform
    runtimes: Annotated[tuple[Runtime, ...], msgspec.Meta(min_length=1)]
    numerics: Numerics
    layout: Layout = Layout()
    shapes: Shapes = Shapes()
    constraints: Constraints
    cost: Cost | None = None
    accelerator: Accelerator | None = None

    def runtime(self, name: str) -> Runtime | None:
        """Return the runtime called ``name``, or None when the device cannot have it."""
        return next((r for r in self.runtimes if r.name == name), None)


def _quantity(text: object, units: dict[str, float] | dict[str, int], example: str) -> float:
    if not isinstance(text, str):
        raise TypeError(f"expected a string with a unit such as {example!r}, got {text!r}")
    match = _QUANTITY.match(text)
    if match is None or match[2] not in units:
        raise ValueError(f"{text!r} has no known unit; allowed: {', '.join(units)} ({example!r})")
    return float(match[1]) * units[match[2]]


def _dec_hook(kind: type, value: Any) -> Any:
    if kind is Size:
        return Size(_quantity(value, SIZE_UNITS, "4 GiB"))
    if kind is Duration:
        return Duration(_quantity(value, TIME_UNITS, "50 ms"))
    raise NotImplementedError(kind)


def _contradictions(p: HardwareProfile) -> list[Problem]:
    """Return what the keys of a profile say against each other."""
    found = []

    def need(claim: bool, key: str, problem: str) -> None:
        if not claim:
            found.append(Problem(key, problem))

    hard = p.constraints.hard
    need(p.memory.models <= p.memory.ram, "memory.models", "is more than memory.ram")
    need(hard.peak_ram <= p.memory.models, "constraints.hard.peak_ram", "is over memory.models")
    need(hard.artifact <= p.memory.storage, "constraints.hard.artifact", "is over memory.storage")
    names = [r.name for r in p.runtimes]
    for i, runtime in enumerate(p.runtimes):
        need(runtime.name not in names[:i], f"runtimes[{i}].name", f"{runtime.name!r} comes twice")
        need(
            all(_SPECIFIER.fullmatch(part.strip()) for part in runtime.version.split(",")),
            f"runtimes[{i}].version",
            f"{runtime.version!r} is not a range of versions such as '>=1.20,<2' (PEP 440)",
        )
        need(runtime.threads <= p.cores, f"runtimes[{i}].threads", f"is over cores, {p.cores}")
    os_of = {"linux": "linux", "android": "android", "ios": "ios", "mcu": "none"}[p.class_]
    need(p.platform.os == os_of, "platform.os", f"is {p.platform.os!r}; class allows: {os_of}")
    if p.platform.os == "linux":
        for key in ("libc", "python", "wheel_tags"):
            need(bool(getattr(p.platform, key)), f"platform.{key}", "missing; linux needs it")
        for i, tag in enumerate(p.platform.wheel_tags):
            need(
                tag.startswith(("manylinux", "linux_", "musllinux")) and tag.endswith(p.arch),
                f"platform.wheel_tags[{i}]",
                f"{tag!r} is not a Linux platform tag for {p.arch}, such as "
                f"manylinux_2_28_{p.arch}",
            )
    return found


def find_profile_problems(data: bytes, source: str) -> list[ProfileError]:
    """Return everything that is wrong with the profile in ``data``; see :func:`decode_profile`."""
    return _decode(data, source)[1]


def _decode(data: bytes, source: str) -> tuple[HardwareProfile | None, list[ProfileError]]:
    def error(key: str, problem: str) -> ProfileError:
        return ProfileError(source, key, problem, hint="docs/profiles.md lists every key.")

    if len(data) > MAX_PROFILE_BYTES:
        return None, [error("", f"has {len(data)} bytes; at most {MAX_PROFILE_BYTES} are allowed")]
    try:
        table = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as e:
        return None, [error("", f"is not TOML: {e}")]
    if table.get("schema") != SCHEMA:
        found = repr(table["schema"]) if "schema" in table else "missing"
        return None, [error("schema", f"is {found}; allowed: {SCHEMA}")]
    try:
        profile = msgspec.convert(table, HardwareProfile, dec_hook=_dec_hook)
    except msgspec.ValidationError as e:
        problems = problems_of(table, HardwareProfile, _dec_hook)
        return None, [error(p.key, p.problem) for p in problems] or [error("", str(e))]
    contradictions = _contradictions(profile)
    return profile, [error(p.key, p.problem) for p in contradictions]


def decode_profile(data: bytes, source: str) -> HardwareProfile:
    """Return the profile in ``data``; ``source`` names it in errors.

    Raises:
        ProfileError: Not TOML, another schema, or a key is missing, unknown, of a wrong type,
            value or unit, or against another key. Names file, key and what is allowed.
    """
    profile, problems = _decode(data, source)
    if problems or profile is None:
        raise problems[0]
    return profile


def read_profile(path: Path) -> tuple[HardwareProfile, str]:
    """Return the profile in the file at ``path``, and the digest of its bytes.

    Raises:
        ProfileError: The file cannot be read or is not a valid profile.
    """
    try:
        data = path.read_bytes()
    except OSError as e:
        raise ProfileError(str(path), "", f"cannot be read: {e.strerror}") from e
    return decode_profile(data, str(path)), digest_of(data)
