"""Hardware profiles: what is refused, and that it is said with file, key and what is allowed."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from device_agent.contract.errors import EXIT_USAGE, ProfileError
from device_agent.contract.profile import (
    MAX_PROFILE_BYTES,
    decode_profile,
    find_profile_problems,
    read_profile,
)

FILES = sorted((Path(__file__).parents[2] / "hardware-profiles").glob("*.toml"))
TEXT = (Path(__file__).parents[2] / "hardware-profiles" / "raspberry-pi-4.toml").read_text()


def _changed(old: str, new: str) -> bytes:
    assert TEXT.count(old) == 1, old
    return TEXT.replace(old, new).encode()


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_profiles_of_the_program_are_valid(path: Path) -> None:
    profile, digest = read_profile(path)
    assert profile.id == path.stem
    assert digest.startswith("sha256:")
    assert path.read_text().startswith("#"), "facts have their source in a comment"


def test_units_become_numbers() -> None:
    profile = decode_profile(TEXT.encode(), "p.toml")
    assert profile.memory.ram == 4_000_000_000
    assert profile.memory.models == 2**30
    assert profile.constraints.hard.latency_p95 == pytest.approx(0.3)
    assert profile.runtime("litert").version == ">=2.0,<3"
    assert profile.runtime("openvino") is None


@pytest.mark.parametrize(
    ("old", "new", "key", "says"),
    [
        ('class = "linux"', 'class = "linus"', "class", "linux, android, ios, mcu"),
        ("cores = 4", 'cores = "four"', "cores", "Expected `int`, got `str`"),
        ("cores = 4", "cores = 0", "cores", ">= 1"),
        ("cores = 4", "cors = 4", "cors", "did you mean 'cores'?"),
        ("cores = 4\n", "", "cores", "missing"),
        ('ram = "4 GB"', 'ram = "4 gigs"', "memory.ram", "B, kB, MB, GB, KiB, MiB, GiB"),
        ('ram = "4 GB"', 'ram = "4"', "memory.ram", "no known unit"),
        ('ram = "4 GB"', "ram = 4", "memory.ram", "a string with a unit such as '4 GiB'"),
        ('ram = "4 GB"', 'ram = "-4 GB"', "memory.ram", "no known unit"),
        ('"300 ms"', '"300 MB"', "constraints.hard.latency_p95", "us, ms, s"),
        ("agreement = 0.8", "agreement = 80", "constraints.hard.agreement", "<= 1.0"),
        ("[numerics.weights]", "[numerics.wheights]", "numerics.wheights", "'weights'"),
        ("static = true", 'static = "yes"', "shapes.static", "Expected `bool`"),
        ('rank_by = ["size", "latency"]', 'rank_by = ["speed"]', "rank_by[0]", "latency, size"),
        ('name = "litert"', "name = 7", "runtimes[1].name", "Expected `str`"),
        ('name = "litert"', 'name = "litert"\nmax = 1', "runtimes[1].max", "unknown key"),
        ('version = ">=2.0,<3"', 'version = "2"', "runtimes[1].version", "PEP 440"),
        ('op = "Loop"', 'op = "Loop"\ncondition = "rank 3"', "op_rules[0].condition", "rank >"),
        ("[layout]", "layout = 1\n[lay]", "layout", "expected a table, got int"),
        ("schema = 1", "schema = 2", "schema", "allowed: 1"),
        ("schema = 1", "", "schema", "missing; allowed: 1"),
    ],
)
def test_wrong_keys_are_named_with_what_is_allowed(old: str, new: str, key: str, says: str) -> None:
    """M-3.2-2: file, key and what is allowed."""
    data = _changed(old, new) if old != "[layout]" else None
    if data is None:
        head, tail = TEXT.split("[layout]")
        data = ("layout = 1\n" + head + tail.split("\n\n", 1)[1]).encode()
    problems = find_profile_problems(data, "board.toml")
    assert any(p.key.endswith(key) and says in p.problem for p in problems), [*map(str, problems)]
    with pytest.raises(ProfileError) as caught:
        decode_profile(data, "board.toml")
    assert str(caught.value) == str(problems[0])
    assert str(caught.value).startswith("board.toml: ")
    assert caught.value.exit_code == EXIT_USAGE


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ('models = "1 GiB"', 'models = "5 GB"', "memory.models"),
        ('peak_ram = "512 MiB"', 'peak_ram = "2 GiB"', "constraints.hard.peak_ram"),
        ('artifact = "32 MB"', 'artifact = "5 GB"', "constraints.hard.artifact"),
        ('name = "litert"', 'name = "onnx_runtime"', "runtimes[1].name"),
        ("cores = 4", "cores = 4\n#", ""),
        ('os = "linux"', 'os = "android"', "platform.os"),
        ('libc = "glibc 2.36"\n', "", "platform.libc"),
        ('"manylinux2014_aarch64"', '"manylinux2014_x86_64"', "platform.wheel_tags[9]"),
        ('"manylinux2014_aarch64"', '"win_aarch64"', "platform.wheel_tags[9]"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(old: str, new: str, key: str) -> None:
    keys = [p.key for p in find_profile_problems(_changed(old, new), "board.toml")]
    assert keys == ([key] if key else [])


def test_threads_over_cores_are_refused() -> None:
    data = TEXT.replace("threads = 1", "threads = 5").encode()
    keys = [p.key for p in find_profile_problems(data, "board.toml")]
    assert keys == ["runtimes[0].threads", "runtimes[1].threads"]


def test_all_problems_are_found_at_once() -> None:
    text = TEXT.replace('"4 GiB"', '"x"').replace("cores = 4", "cores = -1")
    text = text.replace('arch = "aarch64"', 'arch = "arm64"').replace("soc =", "sock =")
    found = {p.key for p in find_profile_problems(text.encode(), "board.toml")}
    assert found == {"cores", "arch", "soc", "sock"}


@pytest.mark.parametrize(
    "data", [b"schema = ", b"\xff\xfe", b"a = 1\na = 2", b"a = " + b"[" * 30_000]
)
def test_what_is_not_toml_is_refused(data: bytes) -> None:
    with pytest.raises(ProfileError, match=r"board\.toml: is not TOML"):
        decode_profile(data, "board.toml")


def test_file_over_its_bound_is_refused() -> None:
    """M-3.4-1."""
    with pytest.raises(ProfileError, match="at most 65536"):
        decode_profile(b"#" * (MAX_PROFILE_BYTES + 1), "board.toml")


def test_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"none\.toml: cannot be read"):
        read_profile(tmp_path / "none.toml")


def test_digest_is_that_of_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "raspberry-pi-4.toml"
    path.write_text(TEXT)
    first = read_profile(path)
    path.write_text(TEXT + "\n# a comment\n")
    second = read_profile(path)
    assert first[0] == second[0]
    assert first[1] != second[1]


def test_example_in_the_documentation_names_every_key() -> None:
    """docs/profiles.md lists every key; a new one must be described there."""
    from device_agent.contract.profile import HardwareProfile

    text = (Path(__file__).parents[2] / "docs" / "profiles.md").read_text()
    for key in _keys(tomllib.loads(TEXT)) | set(HardwareProfile.__struct_encode_fields__):
        assert f"`{key}`" in text, key


def _keys(value: object) -> set[str]:
    if isinstance(value, dict):
        return set(value) | {k for v in value.values() for k in _keys(v)}
    if isinstance(value, list):
        return {k for v in value for k in _keys(v)}
    return set()
