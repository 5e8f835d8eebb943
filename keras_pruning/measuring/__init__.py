"""What a model costs: bytes, seconds and operations, measured, and files for other runtimes.

Every figure is read from the model at hand or taken by the clock.
"""

from keras_pruning.measuring.archives import (
    UNFINISHED,
    inference_file,
    model_to_bytes,
    save_compressed,
    write_whole,
)
from keras_pruning.measuring.litert import export_litert, litert_predict
from keras_pruning.measuring.litert_files import LitertReport, litert_report
from keras_pruning.measuring.measurements import Latency, Measurement, compare, measure

__all__ = [
    "UNFINISHED",
    "Latency",
    "LitertReport",
    "Measurement",
    "compare",
    "export_litert",
    "inference_file",
    "litert_predict",
    "litert_report",
    "measure",
    "model_to_bytes",
    "save_compressed",
    "write_whole",
]
