"""Root causes: how each layer bears quantization, and which ones to keep in float."""

from aid_edge.diagnose.compare import can_diagnose, layers
from aid_edge.diagnose.records import LayerRecord
from aid_edge.diagnose.search import Attempt, Judgement, Sensitivity, converting, sensitivity

__all__ = [
    "Attempt",
    "Judgement",
    "LayerRecord",
    "Sensitivity",
    "can_diagnose",
    "converting",
    "layers",
    "sensitivity",
]
