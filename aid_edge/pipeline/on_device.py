"""Figures of finalists that a real device measured; kept apart from this host's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from aid_edge.errors import ConversionError
from aid_edge.evaluate.data import DataSet
from aid_edge.pipeline.making import Made
from aid_edge.runner import ConversionResult
from device_agent.contract.manifest import Measurement
from device_agent.contract.profile import HardwareProfile


@dataclass(frozen=True)
class Finalist:
    """A candidate that passed everything but the device.

    Attributes:
        id: Of the candidate, unique within the profile.
        data: Real inputs in the source model's layout; ``result.to_artifact`` reorders them.
    """

    id: str
    profile: HardwareProfile
    result: ConversionResult
    data: DataSet


MeasureOnDevice = Callable[[Sequence[Finalist]], Mapping[tuple[str, str], Sequence[Measurement]]]
"""Measures finalists; returns figures by profile id and candidate id, each ``where="device"``."""


def measured_on_device(
    made: Sequence[tuple[HardwareProfile, Made]], data: DataSet, measure: MeasureOnDevice
) -> list[Made]:
    """Return candidates with the figures of a device behind those of this host.

    Raises:
        ConversionError: A figure does not say that it is a device's.
        HostError: The device cannot be reached.
    """
    finalists = [
        Finalist(one.plan.id, profile, one.result, data)
        for profile, one in made
        if one.candidate.outcome is None
    ]
    found = measure(finalists)
    measured = []
    for profile, one in made:
        figures = tuple(found.get((profile.id, one.plan.id), ()))
        if wrong := next((f for f in figures if f.where != "device"), None):
            raise ConversionError(f"{wrong.what} of {one.plan.id} is not a device's figure")
        measured.append(one.changed(measurements=(*one.candidate.measurements, *figures)))
    return measured
