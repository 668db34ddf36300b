"""What the controller works with, and whom it tells: the seams of a deployment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from device_agent.contract.desired import Trial
from device_agent.contract.manifest import Manifest
from device_agent.contract.messages import ReleaseRef
from device_agent.deployment.delivery import Delivery
from device_agent.deployment.journal import JournalFile
from device_agent.deployment.release import Device
from device_agent.deployment.slots import Slots
from device_agent.deployment.table import State
from device_agent.worker.wire import Proof


@dataclass(frozen=True)
class LocalRelease:
    """A whole, verified release on this disk."""

    reference: ReleaseRef
    folder: Path
    manifest: Manifest


@dataclass(frozen=True)
class Tried:
    """What a trial measured.

    Attributes:
        latencies_s: Of the runtime's call alone, one per run, in order.
        served: Requests that were answered meanwhile.
    """

    latencies_s: tuple[float, ...]
    peak_rss_bytes: int
    load_s: float
    runtime_version: str
    served: int


class Stage(Protocol):
    """What holds models in workers: at most one that serves and one candidate."""

    def prepare(self, release: LocalRelease) -> None:
        """Load a release as the candidate. Raises SandboxError."""

    def prove(self, timeout_s: float) -> Proof:
        """Run the candidate's golden vectors. Raises SandboxError."""

    @property
    def candidate(self) -> LocalRelease | None:
        """The candidate, if there is one."""

    def try_out(self, release: LocalRelease, trial: Trial, timeout_s: float) -> Tried:
        """Prove and time a release in a worker of its own. Raises SandboxError, ProvingError."""

    def promote(self) -> None:
        """Let the candidate serve; the one before answers what it has begun, and ends."""

    def discard(self) -> None:
        """End the candidate, if there is one."""

    def clear(self) -> None:
        """End what serves, if anything does."""


class Teller(Protocol):
    """Who is told how the deployment goes."""

    def transition(self, state: State, release: ReleaseRef | None, detail: str) -> None:
        """A state was entered; for the audit trail."""

    def changed(self) -> None:
        """What the device reports is new: publish it."""


@dataclass(frozen=True)
class Equipment:
    """What the controller works with.

    Attributes:
        state_timeout_s: Longest that the work of one state may take.
        releases_kept: Releases that stay on the disk.
    """

    slots: Slots
    journal: JournalFile
    delivery: Delivery
    stage: Stage
    device: Device
    state_timeout_s: float
    releases_kept: int
