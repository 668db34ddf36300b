"""What a loaded artifact is, and where its operators run; the same for every runtime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from numpy.typing import NDArray

from aid_edge.errors import first_line as first_line  # noqa: PLC0414 -- where runtimes look for it
from device_agent.contract.tensors import TensorInfo


@dataclass(frozen=True)
class Placement:
    """Where the operators of an artifact run, as the runtime itself planned them.

    Attributes:
        integer: Compute operators (convolutions, matrix products) in int8.
        floating: Compute operators left in float.
        operators: Every operator type of the planned graph with its count.
        slow: Compute operators, type to count, that run on a runtime's reference kernels because
            its fast ones do not take them: hundreds of times slower. Nobody wants such an artifact.
    """

    integer: int
    floating: int
    operators: Mapping[str, int]
    slow: Mapping[str, int] = field(default_factory=dict)

    @property
    def integer_share(self) -> float:
        """Share of compute operators that run in int8, 0 to 1."""
        total = self.integer + self.floating
        return self.integer / total if total else 0.0


@dataclass(frozen=True)
class Inspection:
    """What can be known of an artifact without running it.

    Attributes:
        version: First version of the runtime that reads it.
        inputs: What it takes.
        outputs: What it gives.
        placement: Its operators.
        weights: Its weight matrices and kernels as floats, by name.
    """

    version: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    placement: Placement
    weights: Mapping[str, NDArray[Any]]


class Session(Protocol):
    """An artifact that is loaded.

    Attributes:
        inputs: What it takes; float where it is int8 inside and quantized at the edge.
        outputs: What it gives.
    """

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return the outputs for one batch of inputs."""


def counted(
    operators: Mapping[str, int], integer: frozenset[str], floating: frozenset[str]
) -> Placement:
    """Return the placement of a planned graph: ``operators`` counts its operator types."""
    return Placement(
        sum(n for op, n in operators.items() if op in integer),
        sum(n for op, n in operators.items() if op in floating),
        dict(sorted(operators.items())),
    )
