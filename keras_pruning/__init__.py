"""Prune Keras 3 models: by weight magnitude or by unit norm, for real."""

import importlib
import importlib.util
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keras_pruning.channels import shrink
    from keras_pruning.inference import SparseModel
    from keras_pruning.measuring import (
        Latency,
        LitertReport,
        Measurement,
        compare,
        export_litert,
        litert_predict,
        litert_report,
        measure,
        save_compressed,
    )
    from keras_pruning.pruning import (
        activation_scores,
        n_of_m_mask,
        prunable_layers,
        prune_units,
        prune_weights,
        summary,
        taylor_scores,
        unit_mask,
        weight_mask,
    )
    from keras_pruning.recovery import (
        GradualPruning,
        KeepZeros,
        keep_zeros,
        polynomial_sparsity,
        prune_in_steps,
        prune_iteratively,
        reconstruct,
        rewind,
    )
    from keras_pruning.studies import (
        experiment,
        limit_threads,
        load_results,
        local_processes,
        sensitivity_sweep,
        sparsity_sweep,
        suggest_sparsities,
    )

__version__ = "0.1.0"
__all__ = [
    "GradualPruning",
    "KeepZeros",
    "Latency",
    "LitertReport",
    "Measurement",
    "SparseModel",
    "activation_scores",
    "compare",
    "experiment",
    "export_litert",
    "keep_zeros",
    "limit_threads",
    "litert_predict",
    "litert_report",
    "load_results",
    "local_processes",
    "measure",
    "n_of_m_mask",
    "polynomial_sparsity",
    "prunable_layers",
    "prune_in_steps",
    "prune_iteratively",
    "prune_units",
    "prune_weights",
    "reconstruct",
    "rewind",
    "save_compressed",
    "sensitivity_sweep",
    "shrink",
    "sparsity_sweep",
    "suggest_sparsities",
    "summary",
    "taylor_scores",
    "unit_mask",
    "weight_mask",
]

# The rooms of the house from the floor up: each imports only from those before it.
_ROOMS = ("models", "channels", "pruning", "inference", "recovery", "measuring", "studies")
_BACKENDS = ("tensorflow", "jax", "torch")

_installed = [name for name in _BACKENDS if importlib.util.find_spec(name)]
if not _installed:
    raise ImportError(
        "Keras has no backend here: install one of tensorflow, jax and torch, "
        "and name it in the environment variable KERAS_BACKEND."
    )


def import_with_keras(module: str) -> ModuleType:
    """Returns a module of the package, which imports Keras.

    Raises:
        ImportError: If Keras is set to a backend that is not installed.
    """
    try:
        return importlib.import_module(f"{__name__}.{module}")
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing not in _BACKENDS:
            raise
        raise ImportError(
            f"Keras is set to compute with {missing}, which is not installed here. Install it, "
            f"or set the environment variable KERAS_BACKEND to {' or '.join(_installed)} before "
            "Keras is imported.",
            name=missing,
        ) from error


def __getattr__(name: str) -> Any:
    """Loads a public name when it is first used, and Keras with it."""
    if name in __all__:
        for room in _ROOMS:
            module = import_with_keras(room)
            if name in module.__all__:
                return getattr(module, name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
