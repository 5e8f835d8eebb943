"""Many measurements in one call: accuracy against sparsity, per layer, and over seeds.

They run on the cores of a machine or on a cluster, and keep what they have measured on disk.
"""

from keras_pruning.studies.experiments import experiment
from keras_pruning.studies.sensitivity import sensitivity_sweep, suggest_sparsities
from keras_pruning.studies.store import load_results
from keras_pruning.studies.sweep import SPARSITIES, sparsity_sweep
from keras_pruning.studies.workers import limit_threads, local_processes

__all__ = [
    "SPARSITIES",
    "experiment",
    "limit_threads",
    "load_results",
    "local_processes",
    "sensitivity_sweep",
    "sparsity_sweep",
    "suggest_sparsities",
]
