"""Which weights and units go: masks, scores, the layers chosen, and a model with the zeros in it.

The two rules of the tutorial, by weight magnitude and by unit norm, stand in `masks`.
"""

from keras_pruning.pruning.activation import activation_scores
from keras_pruning.pruning.masks import (
    check_count,
    check_sparsity,
    count_nonzero,
    n_of_m_mask,
    unit_mask,
    weight_mask,
)
from keras_pruning.pruning.prune import (
    apply_unit_masks,
    apply_weight_masks,
    prunable_layers,
    prune_units,
    prune_weights,
    unit_masks,
    warn_of_emptied,
    weight_masks,
    weights_under_unit_masks,
    weights_under_weight_masks,
)
from keras_pruning.pruning.scores import Read, Score, check_method
from keras_pruning.pruning.selection import Scope, by_name, choose, layer_names
from keras_pruning.pruning.summaries import pruned_share, summary
from keras_pruning.pruning.taylor import taylor_scores

__all__ = [
    "activation_scores",
    "Read",
    "Scope",
    "Score",
    "apply_unit_masks",
    "apply_weight_masks",
    "by_name",
    "check_count",
    "check_method",
    "check_sparsity",
    "choose",
    "count_nonzero",
    "layer_names",
    "n_of_m_mask",
    "prunable_layers",
    "prune_units",
    "prune_weights",
    "pruned_share",
    "summary",
    "taylor_scores",
    "unit_mask",
    "unit_masks",
    "warn_of_emptied",
    "weight_mask",
    "weight_masks",
    "weights_under_unit_masks",
    "weights_under_weight_masks",
]
