"""Prune any Keras 3 model: by weight magnitude or by unit norm, for real."""

from keras_pruning.masks import unit_mask, weight_mask
from keras_pruning.prune import prunable_layers, prune_units, prune_weights, summary
from keras_pruning.sweep import sparsity_sweep

__all__ = [
    "prunable_layers",
    "prune_units",
    "prune_weights",
    "sparsity_sweep",
    "summary",
    "unit_mask",
    "weight_mask",
]
