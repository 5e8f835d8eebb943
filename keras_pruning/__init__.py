"""Prune Keras 3 models: by weight magnitude or by unit norm, for real."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keras_pruning.experiments import experiment
    from keras_pruning.export import export_litert, litert_predict
    from keras_pruning.finetune import KeepZeros, keep_zeros
    from keras_pruning.gradual import GradualPruning, polynomial_sparsity
    from keras_pruning.iterative import prune_iteratively, rewind
    from keras_pruning.masks import n_of_m_mask, unit_mask, weight_mask
    from keras_pruning.measuring import Latency, Measurement, compare, measure
    from keras_pruning.prune import prunable_layers, prune_units, prune_weights
    from keras_pruning.sensitivity import sensitivity_sweep, suggest_sparsities
    from keras_pruning.shrinking import shrink
    from keras_pruning.sparse import SparseModel
    from keras_pruning.store import load_results
    from keras_pruning.summaries import summary
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


_MODULES = {
    "experiments": ("experiment",),
    "export": ("export_litert", "litert_predict"),
    "finetune": ("KeepZeros", "keep_zeros"),
    "gradual": ("GradualPruning", "polynomial_sparsity"),
    "iterative": ("prune_iteratively", "rewind"),
    "masks": ("n_of_m_mask", "unit_mask", "weight_mask"),
    "measuring": ("Latency", "Measurement", "compare", "measure"),
    "prune": ("prunable_layers", "prune_units", "prune_weights"),
    "sensitivity": ("sensitivity_sweep", "suggest_sparsities"),
    "shrinking": ("shrink",),
    "sparse": ("SparseModel",),
    "store": ("load_results",),
    "summaries": ("summary",),
    "sweep": ("sparsity_sweep",),
    "taylor": ("taylor_scores",),
    "workers": ("limit_threads", "local_processes"),
}


def __getattr__(name: str) -> Any:
    """Loads a public name when it is first used, and Keras with it."""
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
