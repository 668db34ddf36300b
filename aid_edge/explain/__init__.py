"""Why a model answers as it does: ``aid_edge.explain.explain(model, sample)``."""

from aid_edge.explain.notebook import Explanation, explain

__all__ = ["Explanation", "explain"]
