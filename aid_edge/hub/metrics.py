"""The hub's figures in Prometheus' text format (exposition format 0.0.4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True)
class Metric:
    """One figure, by the values of at most one label."""

    name: str
    kind: str
    text: str
    values: Mapping[str, float]
    label: str = field(default="")


def render(metrics: list[Metric]) -> str:
    """Return ``metrics`` as Prometheus reads them."""
    lines: list[str] = []
    for metric in metrics:
        lines.append(f"# HELP {metric.name} {metric.text}")
        lines.append(f"# TYPE {metric.name} {metric.kind}")
        for value_of_label, value in metric.values.items():
            labels = f'{{{metric.label}="{_escaped(value_of_label)}"}}' if metric.label else ""
            lines.append(f"{metric.name}{labels} {value:g}")
    return "\n".join([*lines, ""])


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
