"""How far a device is with what it was told to run: pure."""

from __future__ import annotations

from typing import Literal

import msgspec

from aid_edge.hub.rows import DeviceSummary

Outcome = Literal["waiting", "done", "failed"]


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """Where one device stands; ``text`` says it to people."""

    device: str
    release: str
    outcome: Outcome
    text: str


def progress_of(summary: DeviceSummary, release: str, revision: int) -> Progress:
    """Return how far the device is with ``release``, told to it as ``revision``.

    A revision is accepted before its release is fetched, so that alone is not success; and a
    device that runs the release already has nothing to do for it. A failure that the device tries
    again by itself is not the end either.
    """

    def progress(outcome: Outcome, text: str) -> Progress:
        return Progress(device=summary.device, release=release, outcome=outcome, text=text)

    reason = f": {summary.reason}" if summary.reason else ""
    if summary.desired_revision > revision:
        return progress("failed", f"overtaken by revision {summary.desired_revision}")
    if summary.revision < revision:
        return progress("waiting", summary.status if summary.status == "offline" else "told")
    if not summary.accepted:
        return progress("failed", f"refused{reason}")
    if summary.deployment_state == "failed" and summary.release != release:
        return (
            progress("waiting", f"failed, and tries again{reason}")
            if summary.retrying
            else progress("failed", f"failed{reason}")
        )
    if summary.release == release and summary.deployment_state in {"active", "failed"}:
        return progress("done", f"runs {release}")
    return progress("waiting", summary.deployment_state or "told")
