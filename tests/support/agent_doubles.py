"""Doubles for the agent's own seams: a broker in memory, a tiny hub, a stage without workers."""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from device_agent.contract.chunk import Chunk, encode_chunk
from device_agent.contract.desired import Trial
from device_agent.contract.manifest import (
    ARTIFACT_TYPE,
    CHUNK_BYTES,
    MEDIA_TYPE_CONFIG,
    MEDIA_TYPE_IMAGE_MANIFEST,
    MEDIA_TYPES,
    Blob,
    Descriptor,
    Golden,
    ImageManifest,
    Limits,
    Manifest,
    ProfileRef,
    RuntimeRef,
    encode_manifest,
)
from device_agent.contract.messages import (
    BlobRefused,
    BlobRequest,
    MetadataReply,
    MetadataRequest,
    ReleaseRef,
    decode,
    encode,
)
from device_agent.contract.names import digest_of
from device_agent.contract.profile import HardwareProfile, read_profile
from device_agent.contract.tensors import TensorInfo
from device_agent.contract.topics import Channel, parse, topic
from device_agent.deployment.parts import LocalRelease, Tried
from device_agent.deployment.release import Device, Wanted
from device_agent.deployment.trials import WantedTrial
from device_agent.deployment.wish import Wish
from device_agent.errors import TransportError
from device_agent.transport import Listener, Loss, Publication, Received, Subscription
from device_agent.worker.wire import Proof

PROFILES = Path(__file__).resolve().parents[2] / "hardware-profiles"
PROFILE = "generic-x86_64"
GOOD_PROOF = Proof(
    vectors=1, min_cosine=1.0, agreement=1.0, p50_s=0.001, p95_s=0.002, peak_rss_bytes=2**20, runs=5
)


def profile(name: str = PROFILE) -> HardwareProfile:
    return read_profile(PROFILES / f"{name}.toml")[0]


def device() -> Device:
    return Device(profile(), {"onnx_runtime": "1.32.0"})


def wait_for(what: str, condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    until_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > until_s:
            raise AssertionError(f"{what}: not within {timeout_s:g} s")
        time.sleep(0.01)


@dataclass(frozen=True)
class MadeRelease:
    """A release with all its bytes, as a catalogue would have them."""

    manifest: Manifest
    wanted: Wanted
    blobs: dict[str, bytes]

    @property
    def digest(self) -> str:
        return self.wanted.release.digest

    def wish(self, revision: int) -> Wish:
        return Wish(revision, f"envelope-{revision}", time.time() + 3600, self.wanted)

    def trial(self, name: str, runs: int = 3, **changes: Any) -> WantedTrial:
        """Return a verified trial of this release."""
        release, counter = self.wanted.release, self.wanted.counter
        trial = Trial(id=name, release=release, counter=counter, runs=runs, warmup=1)
        return WantedTrial(**{"trial": trial, "size": self.wanted.size, **changes})


LIMITS = Limits(2**28, 1, 1.0)
RUNTIME = RuntimeRef("onnx_runtime", ">=1.20")


def make_release(
    version: str = "1.0.0",
    *,
    name: str = "digits",
    model: bytes | None = None,
    golden: bytes = b"golden",
    counter: int = 1,
    profile_id: str = PROFILE,
    limits: Limits = LIMITS,
    runtime: RuntimeRef = RUNTIME,
    inputs: tuple[TensorInfo, ...] = (TensorInfo("x", "FP32", (1, 4)),),
    outputs: tuple[TensorInfo, ...] = (TensorInfo("y", "FP32", (1, 3)),),
) -> MadeRelease:
    contents = {
        "model": model or f"model {version}".encode() * 20_000,
        "labels": b"zero\none\ntwo\n",
        "golden": golden,
    }
    blobs = tuple(
        Blob(
            role=role,  # type: ignore[arg-type]
            digest=digest_of(data),
            size=len(data),
            chunks=tuple(
                digest_of(data[i : i + CHUNK_BYTES]).removeprefix("sha256:")
                for i in range(0, len(data), CHUNK_BYTES)
            ),
        )
        for role, data in contents.items()
    )
    manifest = Manifest(
        name=name,
        version=version,
        counter=counter,
        profile=ProfileRef(profile_id, digest_of(b"profile")),
        runtime=runtime,
        task="classification",
        inputs=inputs,
        outputs=outputs,
        limits=limits,
        golden=Golden(1, 0.99, 1.0),
        blobs=blobs,
        source_digest=digest_of(b"source"),
    )
    config = encode_manifest(manifest)
    image = msgspec.json.encode(
        ImageManifest(
            schema_version=2,
            media_type=MEDIA_TYPE_IMAGE_MANIFEST,
            artifact_type=ARTIFACT_TYPE,
            config=Descriptor(MEDIA_TYPE_CONFIG, digest_of(config), len(config)),
            layers=tuple(Descriptor(MEDIA_TYPES[b.role], b.digest, b.size) for b in blobs),
        )
    )
    all_bytes = {digest_of(data): data for data in (*contents.values(), config, image)}
    reference = ReleaseRef(name, version, digest_of(image))
    return MadeRelease(manifest, Wanted(reference, len(image), counter), all_bytes)


class MemoryTransport:
    """A broker in memory for one client. Everything is delivered on one thread, as by the real."""

    def __init__(self) -> None:
        self.published: list[Publication] = []
        self.subscriptions: tuple[Subscription, ...] = ()
        self.on_publish: Callable[[Publication], None] = lambda _publication: None
        self.is_connected = False
        self.connection = 0
        self.wills: list[Publication] = []
        self._listener: Listener | None = None
        self._calls: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._thread: threading.Thread | None = None

    def listen(self, listener: Listener, subscriptions: Sequence[Subscription]) -> None:
        self._listener, self.subscriptions = listener, tuple(subscriptions)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.is_connected = False
        self._calls.put(None)
        if self._thread:
            self._thread.join(5)

    def publish(self, publication: Publication, *, wait_s: float = 0.0) -> None:
        if not self.is_connected:
            raise TransportError("not connected")
        self.published.append(publication)
        self.on_publish(publication)

    # --- what a test does ---

    def connect(self) -> None:
        """Make a new connection."""

        def call() -> None:
            self.connection += 1
            self.wills.append(self.listener.will(self.connection))
            self.is_connected = True
            self.listener.connected(self.connection)

        self._calls.put(call)

    def drop(self, *, taken_over: bool = False) -> None:
        """Lose the connection."""
        self.is_connected = False
        loss = Loss("dropped by the test", True, taken_over, 1.0)
        self._calls.put(lambda: self.listener.disconnected(loss))

    def deliver(self, name: str, payload: bytes) -> None:
        """Let a message come in."""
        self._calls.put(lambda: self.listener.received(Received(name, payload)))

    @property
    def listener(self) -> Listener:
        assert self._listener is not None
        return self._listener

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            call()


@dataclass
class HubDouble:
    """Answers blob and metadata requests as the contract says (§4.7, §4.8), with faults on demand.

    Attributes:
        lose: Says for ``(digest, index)`` whether that chunk gets lost.
        spoil: Says whether it is altered on the way.
        on_chunk: Told before every chunk that is sent.
        sent: How often each chunk was sent.
    """

    blobs: dict[str, bytes] = field(default_factory=dict)
    metadata: Callable[[str, int], bytes | None] = lambda _name, _max_bytes: None
    lose: Callable[[str, int], bool] = lambda _digest, _index: False
    spoil: Callable[[str, int], bool] = lambda _digest, _index: False
    on_chunk: Callable[[str, int], None] = lambda _digest, _index: None
    is_silent: bool = False
    sent: Counter[tuple[str, int]] = field(default_factory=Counter)
    asked: list[BlobRequest | MetadataRequest] = field(default_factory=list)

    def add(self, *releases: MadeRelease) -> None:
        for release in releases:
            self.blobs.update(release.blobs)

    def attach(self, transport: MemoryTransport, fleet: str, device_id: str) -> None:
        """Answer what is published through ``transport``."""

        def answer(publication: Publication) -> None:
            if parse(publication.topic)[2] is Channel.BLOB_REQUEST:
                message = decode(publication.payload)
                assert isinstance(message, BlobRequest | MetadataRequest)
                for channel, payload in self.answers(message):
                    transport.deliver(topic(fleet, device_id, channel), payload)

        transport.on_publish = answer

    def answers(self, request: BlobRequest | MetadataRequest) -> list[tuple[Channel, bytes]]:
        self.asked.append(request)
        if self.is_silent:
            return []
        if isinstance(request, MetadataRequest):
            data = self.metadata(request.path, request.max_bytes)
            reply = MetadataReply(request_id=request.request_id, path=request.path, data=data)
            return [(Channel.BLOB_REPLY, encode(reply))]
        blob = self.blobs.get(request.digest)
        if blob is None:
            refused = BlobRefused(
                request_id=request.request_id, digest=request.digest, reason="no such blob"
            )
            return [(Channel.BLOB_REPLY, encode(refused))]
        return [(Channel.BLOB_CHUNK, encode_chunk(chunk)) for chunk in self._chunks(request, blob)]

    def _chunks(self, request: BlobRequest, blob: bytes) -> list[Chunk]:
        mask = int.from_bytes(bytes.fromhex(request.missing), "little")
        chunks = []
        for bit in range(mask.bit_length()):
            index = request.first + bit
            if not mask >> bit & 1 or self.lose(request.digest, index):
                continue
            self.on_chunk(request.digest, index)
            self.sent[request.digest, index] += 1
            data = blob[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]
            if self.spoil(request.digest, index):
                data = bytes([data[0] ^ 1]) + data[1:]
            chunks.append(Chunk(request.digest, index, data))
        return chunks


class StageDouble:
    """A stage without workers: what serves is said, not run.

    Attributes:
        proof: What proving shows, by release version.
        on_step: Told of ``prepare``, ``prove``, ``promote`` and ``clear`` before they are done.
    """

    def __init__(self) -> None:
        self.proof: dict[str, Proof] = {}
        self.on_step: Callable[[str, str], None] = lambda _step, _version: None
        self.candidate: LocalRelease | None = None
        self.serving: LocalRelease | None = None

    def prepare(self, release: LocalRelease) -> None:
        self.on_step("prepare", release.reference.version)
        self.candidate = release

    def prove(self, timeout_s: float) -> Proof:
        assert self.candidate is not None
        assert timeout_s > 0
        version = self.candidate.reference.version
        self.on_step("prove", version)
        return self.proof.get(version, GOOD_PROOF)

    def try_out(self, release: LocalRelease, trial: Trial, timeout_s: float) -> Tried:
        assert timeout_s > 0
        self.on_step("try", release.reference.version)
        return Tried((0.002,) * trial.runs, 2**20, 0.1, "1.2.3", 0)

    def promote(self) -> None:
        assert self.candidate is not None
        self.on_step("promote", self.candidate.reference.version)
        self.serving, self.candidate = self.candidate, None

    def discard(self) -> None:
        self.candidate = None

    def clear(self) -> None:
        if self.serving:
            self.on_step("clear", self.serving.reference.version)
        self.serving = None
