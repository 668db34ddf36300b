"""A home with one release, a device flashed for it, and what an attacker could do to them."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from securesystemslib.signer import Signer
from tuf.api.metadata import Metadata, T, Targets

from aid_edge.catalogue import metadata as tuf
from aid_edge.catalogue.director import public_key_document, sign_desired
from aid_edge.catalogue.keys import KeyRole, load_signer
from aid_edge.catalogue.repository import Published, Repository
from aid_edge.catalogue.store import Catalogue
from aid_edge.home import Home
from device_agent.contract.desired import Desired, DesiredSlot
from device_agent.contract.messages import ReleaseRef
from device_agent.trust.client import TrustPaths, verify
from device_agent.trust.frames import Expected, VerifiedDesired
from tests.support.releases import NOW, PROFILE, make_draft, make_home, publish

DEVICE, FLEET = "camera-01", "fleet-a"


@dataclass
class World:
    """The publisher's home, and what one device has of it."""

    home: Home
    paths: TrustPaths
    published: Published
    asked: list[str] = field(default_factory=list)

    def signer(self, role: KeyRole) -> Signer:
        return load_signer(self.home.keys, role)

    def fetch(self, name: str, max_bytes: int) -> bytes | None:
        """Answer as the hub does."""
        self.asked.append(name)
        data = Catalogue(self.home).metadata(name)
        return data if data is None or len(data) <= max_bytes else None

    def refresh(self, now: dt.datetime) -> None:
        Repository(self.home).refresh_timestamp(now=now)

    def slot(self, published: Published | None = None, **changed: object) -> DesiredSlot:
        of = published or self.published
        values = {"name": of.name, "version": of.version, "digest": of.digest} | changed
        counter = int(str(values.pop("counter", of.counter)))
        ref = ReleaseRef(*(str(values[k]) for k in ("name", "version", "digest")))
        return DesiredSlot(slot="active", release=ref, counter=counter)

    def desired(self, *slots: DesiredSlot, **changed: object) -> Desired:
        values: dict[str, object] = {
            "fleet": FLEET,
            "device": DEVICE,
            "revision": 7,
            "not_after_unix_s": (NOW + dt.timedelta(days=365)).timestamp(),
            "slots": slots or (self.slot(),),
        }
        return Desired(**(values | changed))  # type: ignore[arg-type]

    def envelope(self, desired: Desired | None = None, signer: Signer | None = None) -> bytes:
        return sign_desired(desired or self.desired(), signer or self.signer(KeyRole.DIRECTOR))

    def verify(
        self,
        envelope: bytes | None = None,
        fetch: Callable[[str, int], bytes | None] | None = None,
        *,
        now: dt.datetime | float = NOW,
        **expected: object,
    ) -> VerifiedDesired:
        """Verify as the agent does: in a real child process."""
        values: dict[str, object] = {
            "fleet": FLEET, "device": DEVICE, "profile": PROFILE, "last_revision": 0
        }  # fmt: skip
        return verify(
            envelope or self.envelope(),
            Expected(**(values | expected)),  # type: ignore[arg-type]
            self.paths,
            fetch or self.fetch,
            now_unix_s=now.timestamp() if isinstance(now, dt.datetime) else now,
            timeout_s=60,
        )

    # --- what an attacker with some of the keys could do ------------------------------------

    def chain(self) -> tuf.Chain:
        return tuf.read_chain(self.home.metadata)

    def put(self, metadata: Metadata[T]) -> None:
        """Write signed metadata into the home, as it is."""
        (self.home.metadata / tuf.file_name(metadata)).write_bytes(tuf.to_bytes(metadata))

    def sign_up(self, targets: Metadata[Targets], *, now: dt.datetime = NOW) -> None:
        """Put ``targets`` under a new snapshot and timestamp: what stolen online keys can do."""
        chain = self.chain()
        snapshot = tuf.sign_snapshot(
            chain.snapshot.signed, targets, self.signer(KeyRole.SNAPSHOT), now
        )
        timestamp = tuf.sign_timestamp(
            chain.timestamp.signed, snapshot, self.signer(KeyRole.TIMESTAMP), now
        )
        for metadata in (targets, snapshot, timestamp):
            self.put(metadata)


def make_world(folder: Path) -> World:
    """Return a home in ``folder`` with one release published, and a device flashed for it."""
    home = make_home(folder / "home", FLEET)
    (published,) = publish(home, [make_draft(folder / "out")])
    trust = folder / "agent" / "trust"
    trust.mkdir(parents=True)
    paths = TrustPaths(trust / "root.json", trust / "director.json", folder / "agent/state/tuf")
    paths.root.write_bytes((home.metadata / "1.root.json").read_bytes())
    director = load_signer(home.keys, KeyRole.DIRECTOR)
    paths.director_key.write_bytes(public_key_document(director.public_key))
    return World(home, paths, published)
