"""What a Keras model is made of: its layers, their kernels, its outputs, and copies of it.

The floor of the house: Keras is known here, pruning is not.
"""

from keras_pruning.models.arrays import as_arrays, check_data, count_examples, in_batches
from keras_pruning.models.calls import as_floats, calls_in_order, calls_of, outputs_of
from keras_pruning.models.copies import (
    can_be_made_anew,
    compile_for_inference,
    compile_like,
    copy_for_inference,
    copy_model,
    copy_own_state,
    copy_state,
    loss_head,
    model_config,
    model_from_config,
    without_lora,
)
from keras_pruning.models.functional import (
    CannotTrace,
    Inside,
    all_layers,
    batch_norms_after,
    functional_graph,
    inputs_structure,
    inside,
    inside_model,
    is_of_keras,
    linear_chain,
    nodes_in_order,
    own_trainable_weights,
    own_weights,
    sublayers,
    with_tensors,
)
from keras_pruning.models.kernels import KernelLayer, kernel_layers
from keras_pruning.models.listening import random_inputs, random_like, with_sizes
from keras_pruning.models.products import LinearMap, linear_maps, sample

__all__ = [
    "CannotTrace",
    "Inside",
    "KernelLayer",
    "LinearMap",
    "all_layers",
    "as_arrays",
    "as_floats",
    "batch_norms_after",
    "calls_in_order",
    "calls_of",
    "can_be_made_anew",
    "check_data",
    "compile_for_inference",
    "compile_like",
    "copy_for_inference",
    "copy_model",
    "copy_own_state",
    "copy_state",
    "count_examples",
    "functional_graph",
    "in_batches",
    "inputs_structure",
    "inside",
    "inside_model",
    "is_of_keras",
    "kernel_layers",
    "linear_chain",
    "linear_maps",
    "loss_head",
    "model_config",
    "model_from_config",
    "nodes_in_order",
    "outputs_of",
    "own_trainable_weights",
    "own_weights",
    "random_inputs",
    "random_like",
    "sample",
    "sublayers",
    "with_sizes",
    "with_tensors",
    "without_lora",
]
