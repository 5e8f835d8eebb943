"""The accuracy back: zeros that stay while a model trains, pruning in rounds, weights refitted.

Callbacks change the model that is being fitted; everywhere else a model is copied.
"""

from keras_pruning.recovery.finetune import KeepZeros, keep_zeros
from keras_pruning.recovery.gradual import GradualPruning, polynomial_sparsity
from keras_pruning.recovery.in_steps import prune_in_steps
from keras_pruning.recovery.iterative import prune_iteratively, rewind
from keras_pruning.recovery.reconstruction import reconstruct, refit_in_place

__all__ = [
    "GradualPruning",
    "KeepZeros",
    "keep_zeros",
    "polynomial_sparsity",
    "prune_in_steps",
    "prune_iteratively",
    "reconstruct",
    "refit_in_place",
    "rewind",
]
