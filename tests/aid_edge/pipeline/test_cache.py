from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aid_edge import leftovers
from aid_edge.pipeline import cache as cache_module
from aid_edge.pipeline.cache import Cache, CacheError, default_root, source_version, tool_versions


class Counting:
    def __init__(self, text: str = "done") -> None:
        self.calls = 0
        self.text = text

    def __call__(self, folder: Path) -> None:
        self.calls += 1
        (folder / "deep").mkdir()
        (folder / "deep" / "file").write_text(self.text)


def test_a_step_is_done_once_per_key(tmp_path: Path) -> None:
    cache, make = Cache(tmp_path / "c"), Counting()
    place, hit = cache.get("step", {"a": "1"}, make)
    again, second_hit = cache.get("step", {"a": "1"}, make)
    assert (hit, second_hit, make.calls) == (False, True, 1)
    assert place == again
    assert (place / "deep" / "file").read_text() == "done"
    cache.get("step", {"a": "2"}, make)
    cache.get("other", {"a": "1"}, make)
    assert make.calls == 3


@pytest.mark.parametrize("damage", ["altered", "missing", "added", "entry", "cut entry"])
def test_a_damaged_entry_is_made_again(tmp_path: Path, damage: str) -> None:
    cache, make = Cache(tmp_path), Counting()
    place, _ = cache.get("step", {"a": "1"}, make)
    match damage:
        case "altered":
            (place / "deep" / "file").write_text("evil")
        case "missing":
            (place / "deep" / "file").unlink()
        case "added":
            (place / "more").write_text("x")
        case "entry":
            (place / "entry.json").unlink()
        case _:
            (place / "entry.json").write_bytes((place / "entry.json").read_bytes()[:10])
    again, hit = cache.get("step", {"a": "1"}, make)
    assert not hit
    assert make.calls == 2
    assert (again / "deep" / "file").read_text() == "done"
    assert not (again / "more").exists()


def test_a_step_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise KeyboardInterrupt

    cache = Cache(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        cache.get("step", {}, fail)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_a_run_that_was_second_takes_what_the_first_made(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    rival = Counting("rival")

    def slow(folder: Path) -> None:
        cache.get("step", {}, rival)
        (folder / "mine").write_text("mine")

    place, _ = cache.get("step", {}, slow)
    assert (place / "deep" / "file").read_text() == "rival"


def test_a_full_disk_is_an_error_of_ours(tmp_path: Path) -> None:
    def full(_: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(CacheError, match="No space left"):
        Cache(tmp_path).get("step", {}, full)


def test_a_place_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match=r"file.*cannot be used as cache") as caught:
        Cache(tmp_path / "file" / "c")
    assert "--cache" in caught.value.hint


def test_default_place_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_root() == tmp_path / "aid-edge" / "steps"


def test_source_version_follows_the_source_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "step_under_test.py"
    module.write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    first = source_version("step_under_test")
    module.write_text("raise RuntimeError('imported again')")
    assert source_version("step_under_test") != first
    assert len(source_version("aid_edge.pipeline")) == 64


def test_tool_versions_name_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "TOOLS", ("numpy", "no-such-tool"))
    assert list(tool_versions()) == ["numpy"]


def test_what_a_killed_run_left_is_cleared(tmp_path: Path) -> None:
    place, _ = Cache(tmp_path).get("step", {"a": "1"}, Counting())
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from aid_edge.pipeline.cache import Cache\n"
        "def half(folder):\n"
        "    (folder / 'half').write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "Cache(Path(sys.argv[1])).get('step', {'a': '2'}, half)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    left = list(tmp_path.glob("*/*/.new-*"))
    assert len(left) == 1
    mine = leftovers.make(place.parent, ".new-")
    Cache(tmp_path)
    assert not left[0].exists()
    assert mine.exists(), "a run that is alive keeps what it makes"
    assert (place / "deep" / "file").exists()


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    places = [cache.get("step", {"n": str(n)}, Counting("x" * 1000))[0] for n in range(4)]
    old = time.time() - 10 * cache_module.RECENT_S
    for age, place in enumerate(places):
        os.utime(place / "entry.json", (old + age, old + age))
    cache.get("step", {"n": "0"}, Counting())
    removed = cache.trim(2600)
    assert [p.exists() for p in places] == [True, False, False, True]
    assert removed > 2000
    assert cache.trim(0) > 1000
    assert [p.exists() for p in places] == [True, False, False, False], "just used"


def test_the_bound_of_the_cache_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_module.default_limit() == cache_module.DEFAULT_LIMIT_BYTES
    monkeypatch.setenv("AID_EDGE_CACHE_BYTES", "123")
    assert cache_module.default_limit() == 123
    monkeypatch.setenv("AID_EDGE_CACHE_BYTES", "2 GB")
    with pytest.raises(CacheError, match="'2 GB'"):
        cache_module.default_limit()


def test_a_cache_travels_as_its_folder(tmp_path: Path) -> None:
    assert pickle.loads(pickle.dumps(Cache(tmp_path))).root == tmp_path
