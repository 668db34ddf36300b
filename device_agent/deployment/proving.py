"""Whether a release proved itself on this device. Pure (contract §5.4)."""

from __future__ import annotations

from device_agent.contract.manifest import Manifest
from device_agent.errors import ProvingError
from device_agent.worker.wire import Proof


def judge(proof: Proof, manifest: Manifest) -> str:
    """Return the figures of a proof that is good enough, as a line for people.

    Raises:
        ProvingError: An output was too far from its golden one, or time or memory was over the
            release's limits; says every figure that was, with its bound.
    """
    golden, limits = manifest.golden, manifest.limits
    misses = []
    if proof.vectors < golden.vectors:
        misses.append(f"{proof.vectors} golden vectors ran, of {golden.vectors}")
    if not proof.min_cosine >= golden.min_cosine:
        misses.append(f"cosine {proof.min_cosine:.6f} < {golden.min_cosine:.6f}")
    if manifest.task == "classification" and not proof.agreement >= golden.min_agreement:
        misses.append(f"agreement {proof.agreement:.3f} < {golden.min_agreement:.3f}")
    if proof.p95_s > limits.deadline_s:
        misses.append(
            f"p95 latency {proof.p95_s * 1000:.1f} ms > {limits.deadline_s * 1000:.1f} ms"
        )
    if proof.peak_rss_bytes > limits.memory_bytes:
        misses.append(f"memory {proof.peak_rss_bytes} bytes > {limits.memory_bytes} bytes")
    if misses:
        raise ProvingError(
            f"{manifest.name}@{manifest.version} did not prove itself: {'; '.join(misses)}"
        )
    return (
        f"cosine {proof.min_cosine:.6f}, agreement {proof.agreement:.3f}, "
        f"p50 {proof.p50_s * 1000:.2f} ms, p95 {proof.p95_s * 1000:.2f} ms, "
        f"memory {proof.peak_rss_bytes} bytes"
    )
