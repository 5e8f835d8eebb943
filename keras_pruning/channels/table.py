"""Which rule goes with which kind of layer or operation."""

from functools import partial
from typing import Any

import keras
import numpy as np
from keras import layers as kl

import keras_pruning.channels.attention as attention
import keras_pruning.channels.moving as moving
import keras_pruning.channels.rules as rules
from keras_pruning.channels.graph import NoRule
from keras_pruning.channels.rules import Rule
from keras_pruning.models import has_stated_axes

__all__ = ["is_composite", "is_proved", "rule_of"]

_ATTENTION = (kl.MultiHeadAttention, kl.GroupQueryAttention)


def is_composite(operation: Any) -> bool:
    """Whether it has a rule, but is made anew by trial, or holds the layers that are cut."""
    kinds = (*_ATTENTION, kl.Bidirectional, kl.TimeDistributed)
    return isinstance(operation, kinds) or has_stated_axes(operation)


def is_proved(operation: Any) -> bool:
    """Whether its rule has been proved at length, so that nobody need compare the result."""
    young = (
        *_ATTENTION,
        kl.Bidirectional,
        kl.EinsumDense,
        kl.Embedding,
        kl.RNN,
        kl.TimeDistributed,
    )
    return (
        isinstance(operation, keras.Layer)
        and not isinstance(operation, young)
        and not has_stated_axes(operation)
    )


def rule_of(operation: Any, options: set[str]) -> Rule:
    """Returns the rule of a layer or operation, or raises `NoRule`.

    Args:
        operation: What is called.
        options: The names of its keyword arguments.
    """
    is_layer = isinstance(operation, keras.Layer)
    kind = type(operation)
    rule = _RULES.get(kind) if is_layer else _OPERATION_RULES.get(kind.__name__)
    if isinstance(operation, _ATTENTION):  # those of Keras Hub keep keys for later besides
        rule = attention.attention
    if has_stated_axes(operation):
        rule = rules.stated
    if rule is None or (not is_layer and not kind.__module__.startswith("keras.")):
        raise NoRule("has no rule")
    if getattr(operation, "quantization_mode", None) or getattr(operation, "lora_enabled", False):
        raise NoRule("is quantized or has LoRA weights")
    more = options - _KNOWN_OPTIONS.get(rule, set())
    if more:
        raise NoRule(f"is called with {sorted(more)}")
    return rule


def _rules(rule: Rule, *kinds: str) -> dict[type, Rule]:
    """The rule for layer classes by name; an older Keras may lack some."""
    return {getattr(kl, kind): rule for kind in kinds if hasattr(kl, kind)}


def _dimensions(*names: str) -> list[str]:
    return [f"{name}{d}D" for name in names for d in (1, 2, 3)]


# Merging layers, and operations between layers such as `x + y`, by the name of either's class.
_MERGES: dict[str, Rule] = {
    "Add": partial(moving.merge, combine=lambda rows: np.sum(rows, axis=0)),
    "Subtract": partial(moving.merge, combine=lambda rows: rows[0] - rows[1]),
    "Multiply": partial(moving.merge, combine=rules.product),
    "TrueDivide": partial(moving.merge, combine=lambda rows: rows[0] / rows[1]),
    "Maximum": partial(moving.merge, combine=lambda rows: np.max(rows, axis=0)),
    "Minimum": partial(moving.merge, combine=lambda rows: np.min(rows, axis=0)),
}

_RULES: dict[type, Rule] = {
    **_rules(rules.dense, "Dense"),
    **_rules(rules.conv, *_dimensions("Conv")),
    **_rules(rules.conv_transpose, "Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"),
    **_rules(rules.separable, "SeparableConv1D", "SeparableConv2D"),
    **_rules(rules.depthwise, "DepthwiseConv1D", "DepthwiseConv2D"),
    **_rules(rules.batch_norm, "BatchNormalization"),
    **_rules(rules.prelu, "PReLU"),
    **_rules(rules.activation, "Activation", "ReLU", "LeakyReLU", "ELU", "Rescaling"),
    **_rules(
        rules.same,
        "ActivityRegularization", "AlphaDropout", "Dropout", "GaussianDropout", "GaussianNoise",
        "Identity", *_dimensions("SpatialDropout"),
    ),
    **_rules(rules.pad, *_dimensions("ZeroPadding")),
    **_rules(rules.move, *_dimensions("Cropping")),
    **_rules(rules.upsample, *_dimensions("UpSampling")),
    **_rules(rules.pool, *_dimensions("AveragePooling", "MaxPooling")),
    **_rules(rules.global_pool, *_dimensions("GlobalAveragePooling", "GlobalMaxPooling")),
    **_rules(moving.moved, "Flatten", "Reshape", "Permute", "RepeatVector"),
    **_rules(moving.concatenate, "Concatenate"),
    **_rules(attention.einsum_dense, "EinsumDense"),
    **_rules(rules.recurrent, "LSTM", "GRU", "SimpleRNN"),
    **_rules(rules.bidirectional, "Bidirectional"),
    **_rules(rules.embedding, "Embedding"),
    **_rules(
        rules.normalization,
        "GroupNormalization", "LayerNormalization", "RMSNormalization", "Softmax",
        "UnitNormalization",
    ),
    **_rules(partial(moving.merge, combine=lambda rows: np.mean(rows, axis=0)), "Average"),
    **{getattr(kl, kind): rule for kind, rule in _MERGES.items() if hasattr(kl, kind)},
}  # fmt: skip
_OPERATION_RULES: dict[str, Rule] = {  # by name: the classes of operations are not public
    **_MERGES,
    "Divide": _MERGES["TrueDivide"],
    "Power": partial(moving.merge, combine=lambda rows: rows[0] ** rows[1]),
    "Where": partial(moving.merge, combine=moving.where_rows),
    "Concatenate": moving.concatenate,
    "Split": moving.split,
    "Stack": moving.stack,
    "Take": moving.take,
    "BroadcastTo": moving.broadcast,
    "Einsum": attention.einsum,
    "Matmul": attention.matmul,
    "DotProductAttention": attention.dot_product_attention,
    "Sum": partial(moving.reduced, keeps_constants=False),
    **dict.fromkeys(("Mean", "Max", "Min"), moving.reduced),
    **dict.fromkeys(("LayerNorm", "LogSoftmax", "RMSNorm", "Softmax"), rules.normalization),
    **dict.fromkeys(
        (
            "ExpandDims", "Flip", "GetItem", "Moveaxis", "Repeat", "Reshape", "Slice", "Squeeze",
            "Swapaxes", "Tile", "Transpose",
        ),
        moving.moved,
    ),
    **dict.fromkeys(
        (
            "Absolute", "Cast", "Celu", "Clip", "ConvertToTensor", "Copy", "Cos", "Elu", "Erf",
            "Exp", "Expm1", "Gelu", "HardSigmoid", "HardSilu", "LeakyRelu", "Log1p", "LogSigmoid",
            "Negative", "ReLU", "Reciprocal", "Relu", "Relu6", "Rsqrt", "Selu", "Sigmoid", "Silu",
            "Sin", "Softplus", "Softsign", "Sqrt", "Square", "StopGradient", "Tanh", "ZerosLike",
        ),
        moving.elementwise,
    ),
}  # fmt: skip
_KNOWN_OPTIONS: dict[Any, set[str]] = {
    attention.attention: {
        "query", "value", "key", "query_mask", "value_mask", "key_mask", "attention_mask",
        "use_causal_mask", "return_attention_scores",
    },
    attention.dot_product_attention: {"bias", "scale", "is_causal"},
    rules.recurrent: {"initial_state"},
}  # fmt: skip
