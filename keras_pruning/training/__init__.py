"""Pruned models in training: zeros that stay, pruning while a model trains, and in rounds.

Here callbacks change the model that is being fitted; everywhere else a model is copied.
"""

from keras_pruning.training.finetune import KeepZeros, keep_zeros
from keras_pruning.training.gradual import GradualPruning, polynomial_sparsity
from keras_pruning.training.iterative import prune_iteratively, rewind

__all__ = [
    "GradualPruning",
    "KeepZeros",
    "keep_zeros",
    "polynomial_sparsity",
    "prune_iteratively",
    "rewind",
]
