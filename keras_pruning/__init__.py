"""Prune any Keras 3 model: by weight magnitude or by unit norm, for real."""

from keras_pruning.experiment import experiment
from keras_pruning.export import export_litert, litert_predict
from keras_pruning.finetune import KeepZeros, keep_zeros
from keras_pruning.gradual import GradualPruning, polynomial_sparsity
from keras_pruning.iterative import prune_iteratively, rewind
from keras_pruning.masks import n_of_m_mask, unit_mask, weight_mask
from keras_pruning.measure import Latency, Measurement, compare, measure
from keras_pruning.prune import prunable_layers, prune_units, prune_weights
from keras_pruning.sensitivity import sensitivity_sweep, suggest_sparsities
from keras_pruning.shrink import shrink
from keras_pruning.sparse import SparseModel
from keras_pruning.store import load_results
from keras_pruning.summary import summary
from keras_pruning.sweep import sparsity_sweep
from keras_pruning.taylor import taylor_scores
from keras_pruning.workers import limit_threads, local_processes

__all__ = [
    "GradualPruning",
    "KeepZeros",
    "Latency",
    "Measurement",
    "SparseModel",
    "compare",
    "experiment",
    "export_litert",
    "keep_zeros",
    "limit_threads",
    "litert_predict",
    "load_results",
    "local_processes",
    "measure",
    "n_of_m_mask",
    "polynomial_sparsity",
    "prunable_layers",
    "prune_iteratively",
    "prune_units",
    "prune_weights",
    "rewind",
    "sensitivity_sweep",
    "shrink",
    "sparsity_sweep",
    "suggest_sparsities",
    "summary",
    "taylor_scores",
    "unit_mask",
    "weight_mask",
]
