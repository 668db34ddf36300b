"""An agent's home, flashed for a publisher's home with two real releases; and who deploys them."""

from __future__ import annotations

import datetime as dt
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from aid_edge.catalogue.director import public_key_document, sign_desired
from aid_edge.catalogue.draft import ReleaseDraft, draft_file, write_draft
from aid_edge.catalogue.keys import KeyRole, load_signer
from aid_edge.catalogue.repository import Published
from aid_edge.catalogue.store import Catalogue
from aid_edge.home import Home
from device_agent.agent.core import Agent
from device_agent.agent.home import AgentHome, open_home
from device_agent.contract.desired import Desired, DesiredSlot
from device_agent.contract.manifest import Golden, Limits, ProfileRef, RuntimeRef, Softmax
from device_agent.contract.messages import Ack, ReleaseRef, Reported, decode, encode
from device_agent.contract.topics import Channel, parse, topic
from device_agent.transport import Publication
from tests.support import tiny_releases as tiny
from tests.support.agent_doubles import PROFILE, PROFILES, HubDouble, MemoryTransport, wait_for
from tests.support.releases import ZERO, make_home, publish

FLEET, DEVICE = "fleet-a", "camera-01"
RECORDS = {Channel.EVENT, Channel.TELEMETRY, Channel.FEEDBACK}
WRONG_WEIGHTS = np.roll(tiny.WEIGHTS, 1, axis=1)


def _draft(out: Path, version: str, golden: bytes) -> Path:
    folder = out / version / "release"
    folder.mkdir(parents=True)
    tiny.classifier_model(folder / "model.onnx")
    (folder / "labels.txt").write_text("\n".join(tiny.LABELS) + "\n")
    (folder / "golden.bin").write_bytes(golden)
    write_draft(
        folder,
        ReleaseDraft(
            name="tiny",
            version=version,
            profile=ProfileRef(PROFILE, ZERO),
            runtime=RuntimeRef("onnx_runtime", ">=1.20"),
            task="classification",
            inputs=tiny.CLASSIFIER_INPUTS,
            outputs=tiny.CLASSIFIER_OUTPUTS,
            postprocess=(Softmax(),),
            limits=Limits(tiny.MEMORY_BYTES, 1, 5.0),
            golden=Golden(2, 0.99, 1.0),
            files=(
                draft_file(folder, "model", "model.onnx"),
                draft_file(folder, "labels", "labels.txt"),
                draft_file(folder, "golden", "golden.bin"),
            ),
            source_digest=ZERO,
        ),
    )
    return folder


@dataclass
class AgentWorld:
    """The publisher's home with ``good`` releases and one that is ``bad`` by its golden vectors."""

    home: Home
    agent_path: Path
    good: Published
    better: Published
    bad: Published
    hub: HubDouble = field(default_factory=HubDouble)

    @property
    def agent_home(self) -> AgentHome:
        return open_home(self.agent_path)

    def desired(
        self, published: Published | None, revision: int, *, days: float = 30, **changed: Any
    ) -> bytes:
        """Return a signed desired state."""
        now = dt.datetime.now(dt.UTC)
        slots = ()
        if published:
            reference = ReleaseRef(published.name, published.version, published.digest)
            slots = (DesiredSlot(slot="active", release=reference, counter=published.counter),)
        values = {
            "fleet": FLEET,
            "device": DEVICE,
            "revision": revision,
            "not_after_unix_s": (now + dt.timedelta(days=days)).timestamp(),
            "slots": slots,
        }
        signer = load_signer(self.home.keys, KeyRole.DIRECTOR)
        return sign_desired(Desired(**(values | changed)), signer)

    def load_hub(self) -> None:
        """Give the hub double everything that the catalogue holds."""
        catalogue = Catalogue(self.home)

        def metadata(name: str, max_bytes: int) -> bytes | None:
            data = catalogue.metadata(name)
            return data if data is None or len(data) <= max_bytes else None

        self.hub.metadata = metadata
        blobs = self.home.catalogue / "blobs" / "sha256"
        self.hub.blobs = {f"sha256:{p.name}": p.read_bytes() for p in blobs.iterdir()}


def make_agent_world(folder: Path, *, broker: str = "mqtt://127.0.0.1:1") -> AgentWorld:
    home = make_home(folder / "home", FLEET)
    now = dt.datetime.now(dt.UTC)
    out = folder / "out"
    golden = tiny.golden_frame()
    published = [
        publish(home, [_draft(out, version, frame)], now=now)[0]
        for version, frame in (
            ("1.0.0", golden),
            ("1.1.0", golden),
            ("2.0.0", tiny.golden_frame(WRONG_WEIGHTS)),
        )
    ]
    agent = folder / "agent"
    (agent / "trust").mkdir(parents=True)
    (agent / "trust/root.json").write_bytes((home.metadata / "1.root.json").read_bytes())
    director = load_signer(home.keys, KeyRole.DIRECTOR)
    (agent / "trust/director.json").write_bytes(public_key_document(director.public_key))
    (agent / "profile.toml").write_bytes((PROFILES / f"{PROFILE}.toml").read_bytes())
    (agent / "config.toml").write_text(
        f'schema = 1\ndevice = "{DEVICE}"\nfleet = "{FLEET}"\nseed = "bundle-7"\n'
        f'[broker]\nurl = "{broker}"\nreconnect_max_s = 0.5\n'
        "[serving]\nport = 0\n"
        "[limits]\ntelemetry_interval_s = 0.3\nfetch_stall_s = 5\n"
    )
    world = AgentWorld(home, agent, *published)
    world.load_hub()
    return world


class RunningAgent:
    """A real agent on a thread, over the broker in memory; what it says is decoded.

    Args:
        acks: The hub acknowledges records as they come.
    """

    def __init__(self, world: AgentWorld, *, acks: bool = True) -> None:
        self.world = world
        self.transport = MemoryTransport()
        world.hub.attach(self.transport, FLEET, DEVICE)
        answer = self.transport.on_publish

        def on_publish(publication: Publication) -> None:
            answer(publication)
            if acks and parse(publication.topic)[2] in RECORDS:
                record: Any = decode(publication.payload)
                ack = Ack(boot_id=record.boot_id, seq=record.seq, credit=64)
                self.deliver(Channel.ACK, encode(ack))

        self.transport.on_publish = on_publish
        self.home = world.agent_home
        self.agent = Agent(self.home, self.transport)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        wait_for("the API", lambda: self.home.api_address() is not None)

    def _run(self) -> None:
        with self.home.held():
            self.agent.run()

    def stop(self) -> None:
        self.agent.stop()
        self._thread.join(30)
        assert not self._thread.is_alive()

    def said(self, channel: Channel) -> list[Any]:
        """Return every message on ``channel`` so far."""
        published = list(self.transport.published)
        return [decode(p.payload) for p in published if parse(p.topic)[2] is channel]

    def connect(self) -> None:
        before = self.transport.connection
        self.transport.connect()
        wait_for("a connection", lambda: self.transport.connection == before + 1)
        wait_for(
            "the report", lambda: bool(self.said(Channel.REPORTED)) and self.transport.is_connected
        )

    def deliver(self, channel: Channel, payload: bytes) -> None:
        self.transport.deliver(topic(FLEET, DEVICE, channel), payload)

    @property
    def reported(self) -> Reported:
        last: Reported = self.said(Channel.REPORTED)[-1]
        return last

    def deploy(self, published: Published, revision: int) -> None:
        self.deliver(Channel.DESIRED, self.world.desired(published, revision))
        self.wait_state("active", revision)

    def wait_state(self, state: str, revision: int) -> None:
        wait_for(
            f"{state} at revision {revision}",
            lambda: self.reported.slots[0].state == state and self.reported.revision == revision,
            60,
        )

    def ask(self, path: str, body: dict[str, object] | None = None) -> tuple[int, Any]:
        """Ask the local API over TCP."""
        import http.client

        address = self.home.api_address()
        assert address is not None
        connection = http.client.HTTPConnection("127.0.0.1", address.port, timeout=30)
        try:
            if body is None:
                connection.request("GET", path)
            else:
                connection.request("POST", path, msgspec.json.encode(body))
            answer = connection.getresponse()
            return answer.status, msgspec.json.decode(answer.read())
        finally:
            connection.close()

    def infer(self, *values: float) -> tuple[int, Any]:
        return self.ask(
            "/v2/models/tiny/infer",
            {
                "inputs": [
                    {"name": "image", "datatype": "FP32", "shape": [1, 4], "data": list(values)}
                ]
            },
        )
