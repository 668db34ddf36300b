"""The agent: wires transport, trust, deployment, serving and telemetry; no rules of its own."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec

from device_agent.agent.home import AgentHome, ApiAddress
from device_agent.agent.uplink import Address, Handlers, Uplink
from device_agent.agent.verifier import Office, Verifier
from device_agent.contract.messages import (
    MAX_TELEMETRY_BYTES,
    MAX_TEXT_CHARACTERS,
    Birth,
    Death,
    Event,
    Feedback,
    ModelWindow,
    ReleaseRef,
    Telemetry,
    TrialResult,
    encode,
)
from device_agent.contract.topics import Channel
from device_agent.deployment.controller import Controller
from device_agent.deployment.delivery import Delivery
from device_agent.deployment.disk import write_whole
from device_agent.deployment.journal import JournalFile
from device_agent.deployment.parts import Equipment
from device_agent.deployment.release import Device, installed_runtimes
from device_agent.deployment.slots import Slots
from device_agent.deployment.stage import WorkerStage, WorkerTeller
from device_agent.deployment.table import State
from device_agent.deployment.trials import TrialEnd, TrialEquipment, Trials
from device_agent.errors import SandboxError, SpoolError, StoreError, TransportError
from device_agent.serving.api import Api
from device_agent.serving.http import Bounds, HttpServer
from device_agent.serving.models import ModelTable
from device_agent.serving.predictions import FeedbackGiven, Predictions
from device_agent.spool import Record, Spool
from device_agent.telemetry.readings import machine_id, memory_available_bytes, temperature_c
from device_agent.telemetry.recorder import Recorder
from device_agent.telemetry.sender import Sender
from device_agent.transfer.fetch import FetchLimits
from device_agent.transfer.link import Request, TransferLink
from device_agent.transport import Loss, Transport
from device_agent.trust.client import verify
from device_agent.trust.frames import Expected, VerifiedDesired
from device_agent.worker import limits as worker_limits

STATUS_SCHEMA = "aid-edge/agent-status/v1"
DISTRIBUTION = "aid-edge"
FAREWELL_S = 2.0
BUG_PAUSE_S = 1.0
JOIN_S = 5.0
OBSERVE_S = 1.0
"""How often the serving worker's memory is looked at."""

_log = logging.getLogger(__name__)


def agent_version() -> str:
    """Return the version of the installed distribution."""
    try:
        return importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


class Agent:
    """One agent in its home, which the caller holds; :meth:`run` works until :meth:`stop`.

    Args:
        home: Configuration and folders.
        transport: The connection to the broker; not entered yet.

    Raises:
        StoreError: The home's folders cannot be used.
        ServingError: The local API's port or socket cannot be had.
    """

    def __init__(self, home: AgentHome, transport: Transport) -> None:
        config, limits = home.config, home.config.limits
        self._home = home
        self._boot_id = secrets.token_hex(16)
        self._started_s = time.monotonic()
        self._stopping = threading.Event()
        self._connection = 0
        self._was_lost = False
        self._machine_id = machine_id(home.machine_id)
        self._runtimes = installed_runtimes()
        self._protections: tuple[str, ...] = ()
        self._reported = threading.Lock()
        self._spool = self._open_spool()
        address = Address(config.fleet, config.device, self._boot_id)
        self._transport = transport
        self._uplink = Uplink(transport, address)
        self._sender = Sender(self._spool, self._uplink.publish)
        self._link = TransferLink(self._ask)
        self._recorder = Recorder(time.time())
        self._table = ModelTable(config.serving.queue_max_requests)
        self._stage = WorkerStage(
            self._table,
            self._recorder,
            home.scratch,
            WorkerTeller(event=self._worker_event, gave_up=self._gave_up),
            start_s=limits.worker_start_s,
        )
        device = Device(home.profile, self._runtimes)
        fetch_limits = FetchLimits(limits.fetch_window_chunks, limits.fetch_stall_s)
        equipment = Equipment(
            slots=Slots(home.path),
            journal=JournalFile(home.journal),
            delivery=Delivery(self._link, device, fetch_limits),
            stage=self._stage,
            device=device,
            state_timeout_s=limits.state_timeout_s,
            releases_kept=limits.releases_kept,
        )
        trials = Trials(
            TrialEquipment(
                slots=equipment.slots,
                delivery=equipment.delivery,
                stage=self._stage,
                device=device,
                book=home.trials,
                tell=self._trial_ended,
            )
        )
        self._controller = Controller(equipment, self, trials=trials)
        office = Office(
            controller=self._controller,
            addressee=(config.fleet, config.device),
            verify=self._verify,
            keep=lambda envelope: write_whole(home.desired, envelope),
            event=lambda state, detail: self._event("trust", state, detail=detail),
        )
        self._verifier = Verifier(office)
        self._predictions = Predictions(limits.feedback_ring_predictions)
        self._uplink.attach(
            Handlers(
                connected=self._connected,
                disconnected=self._disconnected,
                desired=self._verifier.offer,
                ack=self._sender.on_ack,
                chunk=self._link.on_chunk,
                reply=self._link.on_reply,
            )
        )

    def _open_spool(self) -> Spool:
        """Open the spool; without room on the disk, one in memory is better than no agent."""
        path, max_bytes = self._home.spool, self._home.config.limits.spool_max_bytes
        try:
            return Spool(path, self._boot_id, max_bytes=max_bytes, encode=encode)
        except SpoolError as e:
            _log.error("records are kept in memory only: %s", e)
            return Spool(None, self._boot_id, max_bytes=max_bytes, encode=encode)

    # --- lifetime ---

    def stop(self) -> None:
        """Let :meth:`run` end; may be called from a signal handler."""
        self._stopping.set()

    def run(self) -> None:
        """Serve, deploy and report until :meth:`stop`.

        Raises:
            ServingError: The local API's port or socket cannot be had.
        """
        with ExitStack() as open_things:
            open_things.callback(self._spool.close)
            open_things.enter_context(self._serving())
            self._sender.start()
            open_things.callback(self._sender.close)
            open_things.callback(self._stage.close)
            threads = [
                self._thread("deployment", self._controller.run),
                self._thread("trust", self._verifier.run),
                self._thread("protections", self._probe_protections),
            ]
            open_things.callback(_join, threads[:2])
            open_things.callback(self._quit)
            self._event("agent", "started", detail=f"version {agent_version()}")
            open_things.enter_context(self._transport)
            open_things.callback(self._say_farewell)
            self._keep_time()

    def _quit(self) -> None:
        self._controller.stop()
        self._verifier.stop()
        self._link.close()
        # A worker that is loading or proving would be waited for.
        self._stage.discard()

    @contextmanager
    def _serving(self) -> Iterator[None]:
        serving = self._home.config.serving
        api = Api(
            models=self._table,
            recorder=self._recorder,
            predictions=self._predictions,
            status=self.status,
            on_feedback=self._feedback,
            agent_version=agent_version(),
        )
        socket_path = self._home.api_socket
        _make_folder(socket_path.parent)
        bounds = Bounds(max_body_bytes=serving.max_request_bytes)
        with HttpServer(
            api.answer, port=serving.port, socket_path=socket_path, bounds=bounds
        ) as server:
            self._announce(ApiAddress(server.port, str(socket_path), os.getpid()))
            _log.info("serving on 127.0.0.1:%d and %s", server.port, socket_path)
            try:
                yield
            finally:
                self._home.api_file.unlink(missing_ok=True)

    def _announce(self, address: ApiAddress) -> None:
        """Say where the API listens; on a full disk, to serve unannounced is better than not to."""
        try:
            self._home.announce(address)
        except StoreError as e:
            _log.error("the API's address is not written: %s", e)

    def _thread(self, name: str, work: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=self._keep, args=(name, work), name=name, daemon=True)
        thread.start()
        return thread

    def _keep(self, name: str, work: Callable[[], None]) -> None:
        """Do ``work``, and again when it ends in a bug: the agent's outermost loop."""
        while not self._stopping.is_set():
            try:
                work()
            except Exception as e:  # noqa: BLE001 - the outermost loop: reports, goes on
                _log.exception("%s ended in a bug and is begun anew", name)
                self._event("agent", "bug", detail=f"{name}: {type(e).__name__}: {e}")
                self._stopping.wait(BUG_PAUSE_S)
            else:
                return

    def _say_farewell(self) -> None:
        """Say that the agent stops because it was told to (M-4.1-3)."""
        death = Death(boot_id=self._boot_id, connection=max(1, self._connection), clean=True)
        try:
            self._uplink.publish(Channel.CONN, encode(death), wait_s=FAREWELL_S)
        except TransportError as e:
            _log.info("nobody hears the farewell: %s", e)

    def _keep_time(self) -> None:
        interval_s = self._home.config.limits.telemetry_interval_s
        due_s = time.monotonic() + interval_s
        while not self._stopping.wait(max(0.0, min(OBSERVE_S, due_s - time.monotonic()))):
            self._stage.observe()
            if time.monotonic() >= due_s:
                due_s = time.monotonic() + interval_s
                self._telemetry()
        self._telemetry()

    # --- the connection; called from the transport's thread ---

    def _connected(self, connection: int) -> None:
        _log.info("connected, connection %d", connection)
        self._connection, self._was_lost = connection, False
        self._birth()
        self.changed()
        self._sender.connected()
        self._event("connection", "connected", detail=f"connection {connection}")

    def _birth(self) -> None:
        home = self._home
        birth = Birth(
            boot_id=self._boot_id,
            connection=self._connection,
            machine_id=self._machine_id,
            agent_version=agent_version(),
            profile=home.profile.id,
            runtimes=self._runtimes,
            protections=self._protections,
            seed_applied=home.config.seed,
            reporting_interval_s=home.config.limits.telemetry_interval_s,
        )
        self._uplink.say(Channel.CONN, birth)

    def _disconnected(self, loss: Loss) -> None:
        self._sender.disconnected()
        reason = loss.reason
        if loss.is_taken_over:
            reason = f"another machine uses this identity ({reason})"
        _log.warning("not connected: %s; next attempt in %.1f s", reason, loss.retry_in_s)
        # The first failed attempt of a row is told, not each: the spool is for what matters.
        if loss.was_connected or not self._was_lost:
            state = "taken-over" if loss.is_taken_over else "lost"
            self._event("connection", state, detail=reason)
        self._was_lost = True

    def _ask(self, request: Request) -> None:
        self._uplink.publish(Channel.BLOB_REQUEST, encode(request))

    def _verify(self, envelope: bytes, last_revision: int) -> VerifiedDesired:
        config = self._home.config
        expected = Expected(
            fleet=config.fleet,
            device=config.device,
            profile=self._home.profile.id,
            last_revision=last_revision,
        )
        return verify(
            envelope, expected, self._home.trust, self._link.metadata, now_unix_s=time.time()
        )

    def _probe_protections(self) -> None:
        """Try which protections hold here, off the way of the first birth, and tell."""
        try:
            self._protections = worker_limits.protections()
        except SandboxError as e:
            _log.warning("%s", e)
            return
        if self._uplink.is_connected:
            self._birth()

    # --- Teller: how the deployment goes ---

    def transition(self, state: State, release: ReleaseRef | None, detail: str) -> None:
        """Put a transition into the audit trail (M-4.4-1)."""
        self._event("deployment", state.value, release=release, detail=detail)

    def changed(self) -> None:
        """Publish the whole of what this device runs (M-4.3-1)."""
        with self._reported:
            # One at a time: the last to be published is the last that was true.
            self._uplink.say(Channel.REPORTED, self._controller.report(self._boot_id))

    def _worker_event(self, release: ReleaseRef, detail: str) -> None:
        self._event("worker", release=release, detail=detail)

    def _gave_up(self, digest: str, reason: str) -> None:
        self._event("worker", "failed", detail=reason)
        self._controller.crashed(digest, reason)

    # --- records ---

    def _spool_record(self, make: Callable[[int, int], Record]) -> None:
        if self._spool.add(make) is not None:
            self._sender.notify()

    def _event(
        self, kind: str, state: str = "", *, release: ReleaseRef | None = None, detail: str = ""
    ) -> None:
        now_unix_s = time.time()

        def make(seq: int, floor: int) -> Event:
            return Event(
                boot_id=self._boot_id,
                seq=seq,
                floor=floor,
                at_unix_s=now_unix_s,
                kind=kind,  # type: ignore[arg-type]
                state=state[:MAX_TEXT_CHARACTERS],
                release=release,
                detail=detail[:MAX_TEXT_CHARACTERS],
            )

        self._spool_record(make)

    def _trial_ended(self, end: TrialEnd) -> None:
        now_unix_s, tried = time.time(), end.tried

        def make(seq: int, floor: int) -> TrialResult:
            result = TrialResult(
                boot_id=self._boot_id,
                seq=seq,
                floor=floor,
                at_unix_s=now_unix_s,
                trial=end.trial.id,
                release=end.trial.release,
                outcome="ok" if tried is not None else "failed",
                reason=end.reason[:MAX_TEXT_CHARACTERS],
                runtime=end.runtime,
                threads=end.threads,
            )
            if tried is None:
                return result
            return msgspec.structs.replace(
                result,
                runtime_version=tried.runtime_version,
                latencies_s=tried.latencies_s,
                load_s=tried.load_s,
                peak_rss_bytes=tried.peak_rss_bytes,
                served=tried.served,
            )

        self._spool_record(make)

    def _telemetry(self) -> None:
        windows = self._recorder.take_windows(time.time())
        temperature, memory = temperature_c(), memory_available_bytes()
        spooled = self._spool.state()

        def maker(part: Sequence[ModelWindow]) -> Callable[[int, int], Telemetry]:
            return lambda seq, floor: Telemetry(
                boot_id=self._boot_id,
                seq=seq,
                floor=floor,
                windows=tuple(part),
                spool=spooled,
                temperature_c=temperature,
                memory_available_bytes=memory,
            )

        whole = maker(windows)
        if len(encode(whole(1, 1))) <= MAX_TELEMETRY_BYTES // 2:
            self._spool_record(whole)
            return
        for window in windows:
            self._spool_record(maker([window]))

    def _feedback(self, given: FeedbackGiven) -> None:
        prediction = given.prediction
        now_unix_s = time.time()

        def make(seq: int, floor: int) -> Feedback:
            return Feedback(
                boot_id=self._boot_id,
                seq=seq,
                floor=floor,
                at_unix_s=now_unix_s,
                inference_id=prediction.id,
                release=prediction.release,
                verdict=given.verdict,
                predicted=prediction.predicted[:MAX_TEXT_CHARACTERS],
                confidence=prediction.confidence,
                latency_s=prediction.latency_s,
                label=given.label,
                comment=given.comment,
            )

        if self._spool.add(make) is None:
            raise SpoolError("there is no room for this feedback", hint="Try again later.")
        self._sender.notify()

    # --- status ---

    def status(self) -> dict[str, object]:
        """Return the document of ``GET /v1/status`` and ``aid-agent status``."""
        config = self._home.config
        return {
            "schema": STATUS_SCHEMA,
            "running": True,
            "device": config.device,
            "fleet": config.fleet,
            "profile": self._home.profile.id,
            "version": agent_version(),
            "boot_id": self._boot_id,
            "pid": os.getpid(),
            "uptime_s": round(time.monotonic() - self._started_s, 3),
            "broker": config.broker.url,
            "connected": self._uplink.is_connected,
            "connection": self._connection,
            "runtimes": self._runtimes,
            "protections": self._protections,
            "reported": self._controller.report(self._boot_id),
            "spool": self._spool.state(),
            "refused_messages": dict(self._uplink.refused),
        }


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise StoreError(f"{path}: {e.strerror}") from e


def _join(threads: Sequence[threading.Thread]) -> None:
    for thread in threads:
        thread.join(JOIN_S)
