"""Prune any Keras 3 model: by weight magnitude or by unit norm, for real."""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_MODULES = (
    "experiment", "export", "finetune", "gradual", "iterative", "masks", "measure", "prune",
    "sensitivity", "shrink", "sparse", "store", "summary", "sweep", "taylor", "workers",
)  # fmt: skip


def __getattr__(name: str) -> Any:
    """Loads the library, and Keras with it, when one of its names is first used."""
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    for module in [importlib.import_module(f"{__name__}.{part}") for part in _MODULES]:
        globals().update({own: getattr(module, own) for own in module.__all__ if own in __all__})
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps the name of a function from the module of the same name: `measure` is one."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
