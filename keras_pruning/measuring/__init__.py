"""What a model costs: bytes, seconds and operations, measured, and files for other runtimes.

Every figure is read from the model at hand or taken by the clock.
"""

from keras_pruning.measuring.export import export_litert, litert_predict
from keras_pruning.measuring.measurements import (
    Latency,
    Measurement,
    compare,
    inference_file,
    measure,
)

__all__ = [
    "Latency",
    "Measurement",
    "compare",
    "export_litert",
    "inference_file",
    "litert_predict",
    "measure",
]
