"""Metrics that the user wrote: ``module:function``.

The function is called as ``function(outputs, targets)``: ``outputs`` is a list with an array
[n, ...] per output of the model, ``targets`` what the data set holds; without any, a function that
needs none gets the source model's first output. It returns one figure per sample, [n], whose mean
is the metric; or one figure over all, and is then called once for each draw of the bootstrap with
the samples that were drawn.

Attributes of the function say what it is, where the defaults are wrong::

    def edges_found(outputs, targets): ...


    edges_found.higher_is_better = True
    edges_found.unit = "share"
    edges_found.needs_no_targets = False
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aid_edge.errors import DataError
from aid_edge.evaluate.data.targets import Targets, pick

DRAWS = 400
"""Of the bootstrap: nobody knows how long a function of the user takes."""

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class UserMetric:
    """A function of the user, imported.

    Attributes:
        higher_is_better: Else it is an error.
        needs_no_targets: Whether it can compare with the source model's own answers.
    """

    spec: str
    function: Callable[[list[npt.NDArray[Any]], Any], Any]
    unit: str
    higher_is_better: bool
    needs_no_targets: bool

    def bind(
        self, outputs: Sequence[npt.NDArray[Any]], targets: Any
    ) -> Callable[[FloatArray], float]:
        """Return the metric as a function of weights [n], which are whole numbers.

        Raises:
            DataError: The function fails, or returns neither one figure nor one per sample.
        """
        n = len(outputs[0])
        whole = self._called(list(outputs), targets)
        if whole.ndim == 1:
            if len(whole) != n:
                raise DataError(
                    f"metric {self.spec}: returned {len(whole)} figures for {n} samples"
                )
            return lambda weights: float(weights @ whole / weights.sum())

        def of(weights: FloatArray) -> float:
            if (weights == 1).all():
                return float(whole)
            drawn = np.repeat(np.arange(n), weights.astype(np.int64))
            return float(self._called([o[drawn] for o in outputs], _drawn(targets, drawn)))

        return of

    def _called(self, outputs: list[npt.NDArray[Any]], targets: Any) -> FloatArray:
        try:
            found = np.asarray(self.function(outputs, targets), np.float64)
        except (Exception, SystemExit) as e:  # the user's code may raise anything
            raise DataError(f"metric {self.spec}: failed: {type(e).__name__}: {e}") from e
        if found.ndim > 1:
            raise DataError(
                f"metric {self.spec}: returned shape {list(found.shape)}; "
                "expected one figure, or one per sample"
            )
        return found


def load(spec: str) -> UserMetric:
    """Return the function that ``module:function`` names.

    Raises:
        DataError: It cannot be imported, or is none.
    """
    module_name, _, name = spec.partition(":")
    # The user's own module lies in the folder where the command is run.
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(module_name), name)
    except (Exception, SystemExit) as e:  # the user's code may raise anything
        raise DataError(
            f"metric {spec}: cannot be imported", cause=f"{type(e).__name__}: {e}"
        ) from e
    if not callable(function):
        raise DataError(f"metric {spec}: is no function")
    return UserMetric(
        spec=spec,
        function=function,
        unit=str(getattr(function, "unit", "")),
        higher_is_better=bool(getattr(function, "higher_is_better", True)),
        needs_no_targets=bool(getattr(function, "needs_no_targets", False)),
    )


def _drawn(targets: Targets | None, drawn: npt.NDArray[np.int64]) -> Any:
    return None if targets is None else pick(targets, drawn.tolist())
