"""The short-lived child that verifies one desired state: director envelope, then TUF.

It is the only process of the agent that loads python-tuf and cryptography; when it ends, their
memory goes back. It has no network: metadata comes through its pipes.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from device_agent.contract.desired import Trial
from device_agent.contract.errors import (
    AidError,
    DigestMismatchError,
    TrustError,
    UnverifiableError,
    WrongDeviceError,
)
from device_agent.contract.manifest import MAX_IMAGE_MANIFEST_BYTES
from device_agent.contract.messages import ReleaseRef
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
    VerifiedTrial,
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
    if not desired.slots and not desired.trials:
        return VerifiedDesired(desired=desired, releases=(), clock_floor_unix_s=floor)

    def ask(name: str, max_bytes: int) -> bytes | None:
        pipes.send(NeedMetadata(name=name, max_bytes=max_bytes))
        return pipes.receive(MetadataAnswer).data

    targets = refresh(folder, task.root, ask, now_unix_s=task.now_unix_s)
    # The metadata just verified may say that it is later than was known before.
    floor = clock_floor_unix_s(folder, task.root)
    check_not_after(desired, now_unix_s=max(floor, task.now_unix_s))
    profile = task.expected.profile
    releases = tuple(
        VerifiedRelease(
            slot=slot.slot, release=slot.release, counter=slot.counter,
            size=_size(slot.release, slot.counter, targets, profile),
        )
        for slot in desired.slots
    )  # fmt: skip
    trials = tuple(_trial(trial, targets, profile) for trial in desired.trials)
    return VerifiedDesired(
        desired=desired, releases=releases, clock_floor_unix_s=floor, trials=trials
    )


def _trial(trial: Trial, targets: SignedTargets, profile: str) -> VerifiedTrial:
    """Return a trial with its release's size, or why the release is refused (M-4.10-2)."""
    try:
        size = _size(trial.release, trial.counter, targets, profile)
    except TrustError as e:
        return VerifiedTrial(trial=trial, refusal=str(e))
    return VerifiedTrial(trial=trial, size=size)


def _size(ref: ReleaseRef, counter: int, targets: SignedTargets, profile: str) -> int:
    """Return the size of the image manifest of a release, as signed targets metadata has it."""
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
    if target.custom.get(COUNTER_FIELD) != counter:
        raise TrustError(
            f"{title}: the director says release counter {counter}, "
            f"the publisher {target.custom.get(COUNTER_FIELD)!r}"
        )
    if not 0 < target.size <= MAX_IMAGE_MANIFEST_BYTES:
        raise UnverifiableError(
            f"the image manifest of {title} has {target.size} bytes; "
            f"at most {MAX_IMAGE_MANIFEST_BYTES} are allowed"
        )
    return target.size


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
