"""The short-lived child that verifies one desired state: director envelope, then TUF.

It is the only process of the agent that loads python-tuf and cryptography; when it ends, their
memory goes back. It has no network: metadata comes through its pipes.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from device_agent.contract.desired import DesiredSlot
from device_agent.contract.errors import (
    AidError,
    DigestMismatchError,
    TrustError,
    UnverifiableError,
    WrongDeviceError,
)
from device_agent.contract.manifest import MAX_IMAGE_MANIFEST_BYTES
from device_agent.contract.trust import COUNTER_FIELD, parse_target_path, target_path
from device_agent.trust.director import open_envelope
from device_agent.trust.frames import (
    MetadataAnswer,
    NeedMetadata,
    PipeClosedError,
    Pipes,
    Task,
    VerifiedDesired,
    VerifiedRelease,
    refusal,
)
from device_agent.trust.repository import SignedTargets, clock_floor_unix_s, refresh
from device_agent.trust.rules import check_addressee, check_not_after


def verify(task: Task, pipes: Pipes) -> VerifiedDesired:
    """Return the desired state of ``task``, verified.

    Raises:
        TrustError: It must not be carried out.
        ContractError: It is signed, and yet not a desired state of this contract.
        StoreError: The metadata folder cannot be read or written.
    """
    desired = open_envelope(task.envelope, task.director_key)
    check_addressee(desired, task.expected)
    folder = Path(task.metadata_folder)
    floor = clock_floor_unix_s(folder, task.root)
    check_not_after(desired, now_unix_s=max(floor, task.now_unix_s))
    if not desired.slots:
        return VerifiedDesired(desired=desired, releases=(), clock_floor_unix_s=floor)

    def ask(name: str, max_bytes: int) -> bytes | None:
        pipes.send(NeedMetadata(name=name, max_bytes=max_bytes))
        return pipes.receive(MetadataAnswer).data

    targets = refresh(folder, task.root, ask, now_unix_s=task.now_unix_s)
    # The metadata just verified may say that it is later than was known before.
    floor = clock_floor_unix_s(folder, task.root)
    check_not_after(desired, now_unix_s=max(floor, task.now_unix_s))
    releases = tuple(_release(slot, targets, task.expected.profile) for slot in desired.slots)
    return VerifiedDesired(desired=desired, releases=releases, clock_floor_unix_s=floor)


def _release(slot: DesiredSlot, targets: SignedTargets, profile: str) -> VerifiedRelease:
    """Return what signed targets metadata says of the release that the director names."""
    ref = slot.release
    title = f"{ref.name}@{ref.version}"
    path = target_path(ref.name, profile, ref.version)
    target = targets.get(path)
    if target is None or target.digest != ref.digest:
        elsewhere = next((p for p, t in targets.items() if t.digest == ref.digest), None)
        parts = parse_target_path(elsewhere) if elsewhere else None
        if parts is not None and parts[1] != profile:
            raise WrongDeviceError(
                f"{title} {ref.digest} is for profile {parts[1]}; this device is {profile}"
            )
        if target is None:
            raise UnverifiableError(f"the publisher has signed no {title} for profile {profile}")
        raise DigestMismatchError(path, target.digest, ref.digest)
    if target.custom.get(COUNTER_FIELD) != slot.counter:
        raise TrustError(
            f"{title}: the director says release counter {slot.counter}, "
            f"the publisher {target.custom.get(COUNTER_FIELD)!r}"
        )
    if not 0 < target.size <= MAX_IMAGE_MANIFEST_BYTES:
        raise UnverifiableError(
            f"the image manifest of {title} has {target.size} bytes; "
            f"at most {MAX_IMAGE_MANIFEST_BYTES} are allowed"
        )
    return VerifiedRelease(slot=slot.slot, release=ref, counter=slot.counter, size=target.size)


def main() -> int:
    """Verify the one task on standard input, answer on standard output."""
    # Whatever a library prints must not end up between frames.
    out = os.dup(1)
    os.dup2(2, 1)
    pipes = Pipes(0, out, deadline_s=None)
    try:
        task = pipes.receive(Task)
        try:
            answer = verify(task, pipes)
        except AidError as e:
            pipes.send(refusal(e))
        else:
            pipes.send(answer)
    except PipeClosedError:
        return 1  # the supervisor went away; there is nobody to tell
    return 0


if __name__ == "__main__":
    sys.exit(main())
