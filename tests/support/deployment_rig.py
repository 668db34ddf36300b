"""A controller with real disk, journal and transfer, a hub double and a stage double."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from device_agent.contract.chunk import decode_chunk
from device_agent.contract.messages import BlobRefused, MetadataReply, ReleaseRef, Reported, decode
from device_agent.contract.topics import Channel
from device_agent.deployment.controller import Controller
from device_agent.deployment.delivery import Delivery
from device_agent.deployment.journal import JournalFile
from device_agent.deployment.parts import Equipment
from device_agent.deployment.slots import Slots
from device_agent.deployment.table import State
from device_agent.deployment.trials import TrialEnd, TrialEquipment, Trials
from device_agent.transfer.fetch import FetchLimits
from device_agent.transfer.link import Request, TransferLink
from tests.support.agent_doubles import HubDouble, MadeRelease, StageDouble, device, wait_for

BOOT_ID = "0" * 32


@dataclass
class Rig:
    """One controller in ``home``; ``history`` is every state that it entered."""

    home: Path
    hub: HubDouble = field(default_factory=HubDouble)
    stage: StageDouble = field(default_factory=StageDouble)
    state_timeout_s: float = 30.0
    stall_s: float = 5.0
    releases_kept: int = 3
    on_state: Callable[[State], None] = lambda _state: None
    history: list[tuple[State, str]] = field(default_factory=list)
    now_unix_s: Callable[[], float] = time.time
    ends: list[TrialEnd] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.slots = Slots(self.home)
        self.link = TransferLink(self._send)
        limits = FetchLimits(window_chunks=16, stall_s=self.stall_s)
        equipment = Equipment(
            slots=self.slots,
            journal=JournalFile(self.home / "state" / "deployment.json"),
            delivery=Delivery(self.link, device(), limits),
            stage=self.stage,
            device=device(),
            state_timeout_s=self.state_timeout_s,
            releases_kept=self.releases_kept,
        )
        self.trials = Trials(
            TrialEquipment(
                slots=self.slots,
                delivery=equipment.delivery,
                stage=self.stage,
                device=device(),
                book=self.home / "state" / "trials.json",
                tell=self.ends.append,
            )
        )
        self.controller = Controller(
            equipment, self, trials=self.trials, now_unix_s=self.now_unix_s
        )
        self._thread = threading.Thread(target=self.controller.run, daemon=True)

    def start(self) -> Rig:
        self._thread.start()
        return self

    def stop(self) -> None:
        self.controller.stop()
        self.link.close()
        self._thread.join(10)
        assert not self._thread.is_alive()

    def _send(self, request: Request) -> None:
        for channel, payload in self.hub.answers(request):
            if channel is Channel.BLOB_CHUNK:
                self.link.on_chunk(decode_chunk(payload))
            else:
                reply = decode(payload)
                assert isinstance(reply, BlobRefused | MetadataReply)
                self.link.on_reply(reply)

    # --- Teller ---

    def transition(self, state: State, release: ReleaseRef | None, detail: str) -> None:
        self.history.append((state, detail))
        self.on_state(state)

    def changed(self) -> None:
        """The report is looked at when it is wanted."""

    # --- what a test asks ---

    @property
    def report(self) -> Reported:
        return self.controller.report(BOOT_ID)

    @property
    def state(self) -> State:
        return State(self.report.slots[0].state)

    @property
    def reason(self) -> str:
        return self.report.slots[0].reason

    @property
    def serving(self) -> str | None:
        """Version that serves, by the stage; the report must say the same."""
        said = self.report.slots[0].release
        serving = self.stage.serving.reference if self.stage.serving else None
        assert said == serving
        return serving.version if serving else None

    def states(self) -> list[State]:
        return [s for s, detail in self.history if not detail.startswith("proved")]

    def wait(self, *states: State, timeout_s: float = 20.0) -> None:
        wait_for(f"{states}", lambda: self.is_told and self.state in states, timeout_s)

    @property
    def is_told(self) -> bool:
        """Whether the state of the report was told as a transition too."""
        return not self.history or self.history[-1][0] == self.state

    def deploy(self, release: MadeRelease, revision: int) -> None:
        """Bring a release to ``active``."""
        self.hub.add(release)
        self.controller.want(release.wish(revision))
        wait_for(
            f"revision {revision}",
            lambda: (
                self.is_told and self.state == State.ACTIVE and self.report.revision == revision
            ),
        )
