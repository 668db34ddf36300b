"""Measures artifacts on a real device, through the catalogue, the hub and the device's agent.

Each artifact is published as a release of its own, ``trial@<digest>``, signed like any other; the
device fetches, verifies and proves it, and times it on its golden inputs (contract §4.10).
"""

from __future__ import annotations

import datetime as dt
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aid_edge import runner
from aid_edge.catalogue.draft import ReleaseDraft, draft_file, write_draft
from aid_edge.catalogue.repository import Repository, Signers
from aid_edge.errors import HubError
from aid_edge.evaluate.statistics import quantile_interval
from aid_edge.home import Home
from aid_edge.hub.client import HubClient
from aid_edge.hub.trials import TrialRow
from aid_edge.pipeline.golden import encode, judged_by
from aid_edge.pipeline.on_device import Finalist
from aid_edge.runner import ConversionResult
from device_agent.contract.desired import MAX_TRIALS
from device_agent.contract.manifest import Limits, Measurement, ProfileRef, Role, RuntimeRef
from device_agent.contract.messages import TrialResult
from device_agent.contract.profile import HardwareProfile

NAME = "trial"
"""Name of the releases that are published to be measured; nobody deploys them."""

VECTORS = 4
RUNS, WARMUP = 200, 20
DEADLINE_S = 60.0
"""Of a trial's release: a slow model is measured too, not refused for its latency."""

TIMEOUT_S = 900.0
POLL_S = 0.5

Progress = Callable[[float, str], None]
_QUANTILES = {"latency_p50": 0.5, "latency_p95": 0.95, "latency_p99": 0.99}


class DeviceSilentError(HubError):
    """The device did not say in time what it measured."""

    code = "device-silent"


@dataclass(frozen=True)
class TrialModel:
    """One artifact to be measured.

    Attributes:
        profile_digest: Of the profile's file.
        inputs: Real inputs in the artifact's layout, [n, ...] each.
        compressed: Whether its golden answers may differ a little between processors.
    """

    profile: HardwareProfile
    profile_digest: str
    result: ConversionResult
    inputs: Mapping[str, NDArray[Any]]
    compressed: bool = True


@dataclass(frozen=True)
class Bench:
    """Where models are measured, and who may publish for it."""

    home: Home
    client: HubClient
    signers: Signers
    device: str
    timeout_s: float = TIMEOUT_S
    runs: int = RUNS

    def measure(
        self, models: Sequence[TrialModel], on_progress: Progress = lambda _share, _what: None
    ) -> list[TrialResult]:
        """Return what the device found for each model, in order.

        Raises:
            HubError: The hub refuses, cannot be asked, or the device is silent.
            PublishError: A release cannot be published.
        """
        found: list[TrialResult] = []
        for start in range(0, len(models), MAX_TRIALS):
            part = models[start : start + MAX_TRIALS]
            share = start / len(models)
            on_progress(share, f"publishing {len(part)} trials for {self.device}")
            releases = self._publish(part)
            rows = self.client.try_out(self.device, releases, runs=self.runs, warmup=WARMUP)

            def tell(done: int, start: int = start) -> None:
                on_progress((start + done) / len(models), f"{self.device} measures")

            found += self._wait(rows, tell)
        on_progress(1.0, "done")
        return found

    def _publish(self, models: Sequence[TrialModel]) -> list[tuple[str, str]]:
        with tempfile.TemporaryDirectory() as scratch:
            folders = [_draft(model, Path(scratch) / str(i)) for i, model in enumerate(models)]
            now = dt.datetime.now(dt.UTC)
            made = Repository(self.home).publish(
                list(dict.fromkeys(folders)), self.signers, now=now
            )
        return [(one.name, one.version) for one in made]

    def _wait(self, rows: Sequence[TrialRow], tell: Callable[[int], None]) -> list[TrialResult]:
        ids = [row.id for row in rows]
        until_s = time.monotonic() + self.timeout_s
        while True:
            known = {row.id: row.result for row in self.client.trials(self.device)}
            results = [r for name in ids if (r := known.get(name)) is not None]
            tell(len(results))
            if len(results) == len(ids):
                return results
            if time.monotonic() > until_s:
                waiting = [name for name in ids if known.get(name) is None]
                self.client.withdraw(self.device, waiting)
                raise DeviceSilentError(
                    f"{self.device} did not measure {len(waiting)} of {len(ids)} artifacts "
                    f"within {self.timeout_s:g} s; they are withdrawn",
                    hint=f"`aid-edge devices show {self.device}` says whether it is online and "
                    "which agent it runs; agents before this version know no trials.",
                )
            time.sleep(POLL_S)


def figures(result: TrialResult, device: str) -> tuple[Measurement, ...]:
    """Return what a trial found as figures of the device; none when it failed."""
    if result.outcome != "ok" or not result.latencies_s:
        return ()
    n = len(result.latencies_s)
    served = f", {result.served} requests served meanwhile" if result.served else ""
    threads = f"{result.threads} thread{'s' if result.threads > 1 else ''}"
    how = (
        f"on device {device}, {result.runtime} {result.runtime_version}, batch 1, {threads}, "
        f"{n} runs after {WARMUP}{served}"
    )
    found = []
    for what, q in _QUANTILES.items():
        value = float(np.quantile(result.latencies_s, q))
        interval = quantile_interval(result.latencies_s, q)
        found.append(Measurement(what, value, "s", "device", how, n, interval.low, interval.high))
    return (
        *found,
        Measurement(
            "peak_rss", result.peak_rss_bytes, "B", "device", f"peak of the worker; {how}", 1
        ),
        Measurement("load_time", result.load_s, "s", "device", how, 1),
    )


def measure_finalists(
    bench: Bench,
    digests: Mapping[str, str],
    finalists: Sequence[Finalist],
    *,
    on_progress: Progress,
    failed: Callable[[str, str], None],
) -> dict[tuple[str, str], tuple[Measurement, ...]]:
    """Return figures by profile id and candidate id, for :mod:`aid_edge.pipeline.on_device`.

    Only candidates for the device's own profile are measured.

    Args:
        bench: The device.
        digests: Profile id to the digest of its file.
        finalists: What the pipeline wants measured.
        on_progress: Told how far it is.
        failed: Told of candidates that the device could not measure: id and reason.

    Raises:
        HubError: The device is not known, of a profile that nothing is made for, or silent.
    """
    profile = bench.client.device(bench.device).summary.profile
    mine = [f for f in finalists if f.profile.id == profile]
    if not mine:
        wanted = ", ".join(sorted({f.profile.id for f in finalists})) or "none"
        raise HubError(
            f"device {bench.device} is a {profile}; candidates are for {wanted}",
            hint=f"Convert with --profile {profile}, or name another device.",
        )
    models = []
    for finalist in mine:
        few = finalist.data.take(range(min(VECTORS, len(finalist.data))))
        models.append(
            TrialModel(
                finalist.profile,
                digests[profile],
                finalist.result,
                finalist.result.to_artifact(few),
            )
        )
    found = {}
    for finalist, result in zip(mine, bench.measure(models, on_progress), strict=True):
        if result.outcome == "failed":
            failed(finalist.id, result.reason)
        else:
            found[profile, finalist.id] = figures(result, bench.device)
    return found


def _draft(model: TrialModel, folder: Path) -> Path:
    """Write the release of one artifact that is to be measured."""
    folder.mkdir()
    result, profile = model.result, model.profile
    runtime = profile.runtime(result.runtime)
    if runtime is None:
        raise HubError(f"profile {profile.id} has no runtime {result.runtime}")
    outputs = runner.predict(result.artifact, result.runtime, model.inputs)
    count = len(next(iter(model.inputs.values())))
    names: dict[Role, str] = {"model": f"model{result.artifact.suffix}", "golden": "golden.tensors"}
    copyfile(result.artifact, folder / names["model"])
    frame = encode((result.inputs, result.outputs), model.inputs, outputs, range(count))
    (folder / names["golden"]).write_bytes(frame)
    digest = result.digest.removeprefix("sha256:")[:16]
    write_draft(
        folder,
        ReleaseDraft(
            name=NAME,
            version=f"{digest}-{result.runtime}"[:63],
            profile=ProfileRef(profile.id, model.profile_digest),
            runtime=RuntimeRef(runtime.name, runtime.version, runtime.providers),
            task="other",
            inputs=result.inputs,
            outputs=result.outputs,
            limits=Limits(int(profile.memory.models), runtime.threads, DEADLINE_S),
            golden=judged_by(count, compressed=model.compressed),
            files=tuple(draft_file(folder, role, name) for role, name in names.items()),
            source_digest=result.digest,
            tools=dict(result.tools),
        ),
    )
    return folder
