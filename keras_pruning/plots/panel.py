"""A panel to play with: sliders that prune a network, and what each move does to it.

A move costs one pruning of one scratch copy and one forward pass over a part of the test
images; the image's own answer is a row of that pass. What is shown is one piece of HTML with
small PNG pictures in it, so that every front end with ipywidgets can draw it.
"""

from __future__ import annotations

import base64
import html
import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import numpy.typing as npt

from keras_pruning.inference import read_dense_chain, sparse_forward
from keras_pruning.models import copy_for_inference, kernel_layers
from keras_pruning.pruning import (
    Scope,
    apply_unit_masks,
    apply_weight_masks,
    check_sparsity,
    count_nonzero,
    prunable_layers,
    unit_masks,
    weight_masks,
)

if TYPE_CHECKING:
    import ipywidgets

__all__ = ["explore"]

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float32]

_SIZES = (100, 200, 500, 1000)  # examples; 1000 know an accuracy to about a point
_BUDGET_SECONDS = 0.15  # of a forward pass, so that a whole move stays below 0.3 s
_BATCH = 100  # examples; every size is a multiple, so that Keras traces once
_MAX_PICTURES = 8  # layers whose masks are drawn
_MASK_PIXELS = 100  # a side
_HIGHEST_SPARSITY = 0.99
_METHOD_COLORS = {"weights": "#0072B2", "units": "#D55E00"}  # as in the figures
_GREY = "#8C8C8C"
_WITHOUT_KERNEL = "The panel answers while the notebook runs: run this cell."


def explore(
    model: keras.Model,
    x: npt.NDArray[Any],
    y: npt.NDArray[Any],
    class_names: Sequence[str] | None = None,
    *,
    sparsity: float = 0.9,
    title: str = "",
    picture: str | Path | None = None,
) -> ipywidgets.VBox:
    """Returns a panel with sliders that prune a classifier and show what that does.

    The reader moves the sparsity, chooses weights or units, each layer alone or all layers
    together, and a test image. The panel shows accuracy, size, the masks, and the network's
    answer on that image before and after. The model itself is never changed.

    Accuracy is measured on the first 1,000 examples, or on fewer where the computer needs
    more than 0.15 s for them, so that the panel follows the hand; the panel says on how many.

    Args:
        model: A built Keras model with one array in, and one logit or probability a class out.
        x: Test inputs, shape `(examples, ...)`. Images `(height, width)`, with or without 1
            or 3 channels, are drawn; others are not.
        y: Labels, integers in [0, classes), shape `(examples,)`.
        class_names: One name a class; by default the numbers.
        sparsity: Where the slider stands first, in [0, 0.99].
        title: Name of the data, to stand above the numbers.
        picture: A PNG file that is shown in the panel's place where no kernel runs; a sentence
            stands there if it is None or not to be found.

    Returns:
        An ipywidgets box; as the last line of a cell it is shown.

    Raises:
        ImportError: If ipywidgets is not installed.
        TypeError: If `model` is not a Keras model, or the labels are not integers.
        ValueError: If the model is not built or has nothing to prune, x and y differ in
            length, or a label or the names do not fit the classes.
    """
    try:
        import ipywidgets as widgets
    except ImportError as error:
        raise ImportError(
            'The panel needs ipywidgets: pip install "keras-pruning[panel]"'
        ) from error
    names = _check(model, x, y, class_names)
    share = check_sparsity(sparsity)
    if share > _HIGHEST_SPARSITY:
        raise ValueError(f"sparsity must be at most {_HIGHEST_SPARSITY}. Received: {sparsity!r}")
    scratch = _Scratch(model, np.asarray(x), np.asarray(y))
    wide = {"style": {"description_width": "5em"}, "layout": {"width": "34em"}}
    sliders = {
        "sparsity": widgets.FloatSlider(
            share, min=0, max=_HIGHEST_SPARSITY, step=0.01, readout_format=".0%", **wide
        ),
        "method": widgets.Dropdown(options=scratch.methods, **wide),
        "scope": widgets.Dropdown(options={"each layer": "layer", "all layers": "global"}, **wide),
        "image": widgets.IntSlider(0, min=0, max=len(scratch.x) - 1, **wide),
    }
    for name, slider in sliders.items():
        slider.description = name
    shown = widgets.HTML()

    def update(change: object = None) -> None:
        setting = {name: slider.value for name, slider in sliders.items()}
        index = setting.pop("image")
        pruned = scratch.prune(**setting)
        shown.value = _page(scratch, pruned, setting["method"], index, names, title)

    update()
    for slider in sliders.values():
        slider.observe(update, names="value")
    return _panel_type(picture)([*sliders.values(), shown])


def _panel_type(picture: str | Path | None) -> type[ipywidgets.VBox]:
    """Returns a box that also says, or shows, what it is where it cannot be drawn."""
    import ipywidgets as widgets

    file = None if picture is None else Path(picture)

    class Panel(widgets.VBox):
        def __repr__(self) -> str:
            return _WITHOUT_KERNEL

        def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
            # A front end takes the first kind that it can draw: the widget while a kernel runs.
            bundle = super()._repr_mimebundle_(**options)
            if file is not None and file.is_file():
                bundle["image/png"] = base64.b64encode(file.read_bytes()).decode("ascii")
            return bundle

    return Panel


@dataclass(frozen=True)
class _Pruned:
    """What a setting leaves: the kept weights of each kernel, and all answers."""

    kept: Mapping[str, BoolArray]  # layer name to (inputs, units)
    answers: FloatArray  # probabilities, (examples, classes)
    accuracy: float
    weights: int
    units: int


class _Scratch:
    """One copy of the model, pruned anew for each setting, and the examples it is tried on."""

    def __init__(self, model: keras.Model, x: npt.NDArray[Any], y: npt.NDArray[Any]) -> None:
        self._original = model.get_weights()
        self._model = copy_for_inference(model)
        self._is_chain = read_dense_chain(self._model) is not None
        self._last: tuple[tuple[Any, ...], _Pruned] | None = None
        size = _affordable_size(self._outputs, x)
        self.x, self.y = x[:size], y[:size]
        self.methods = [m for m in _PRUNERS if prunable_layers(model, m)]
        self.hidden = prunable_layers(model)
        self.dense = self._measure()
        self.total_weights = sum(kernel.size for kernel in self.dense.kept.values())

    def prune(self, sparsity: float, method: str, scope: Scope) -> _Pruned:
        """Returns what the setting leaves; a repeated setting, as of another image, is free."""
        setting = (sparsity, method, scope)
        if self._last is None or self._last[0] != setting:
            self._model.set_weights(self._original)
            _PRUNERS[method](self._model, sparsity, scope)
            self._last = (setting, self._measure())
        return self._last[1]

    def _measure(self) -> _Pruned:
        layers = kernel_layers(self._model)
        kept = {
            f"{layer.name}/{number}" if number else layer.name: _as_matrix(kernel) != 0
            for layer in layers
            for number, kernel in enumerate(layer.kernels)
        }
        hidden = [kept[layer.name] for layer in layers if layer.has_units and not layer.is_output]
        answers = _probabilities(self._outputs(self.x))
        return _Pruned(
            kept=kept,
            answers=answers,
            accuracy=float((answers.argmax(axis=1) == self.y).mean()),
            weights=sum(map(count_nonzero, kept.values())),
            units=sum(int(kernel.any(axis=0).sum()) for kernel in hidden),
        )

    def _outputs(self, x: npt.NDArray[Any]) -> FloatArray:
        steps = read_dense_chain(self._model) if self._is_chain else None
        if steps is not None:
            return sparse_forward(steps, x)
        batches = [x[start : start + _BATCH] for start in range(0, len(x), _BATCH)]
        return np.concatenate([self._model.predict_on_batch(batch) for batch in batches])


def _prune_weights(scratch: keras.Model, sparsity: float, scope: Scope) -> None:
    apply_weight_masks(scratch, weight_masks(scratch, sparsity, scope=scope))


def _prune_units(scratch: keras.Model, sparsity: float, scope: Scope) -> None:
    apply_unit_masks(scratch, unit_masks(scratch, sparsity, scope=scope))


_PRUNERS: dict[Any, Callable[[keras.Model, float, Scope], None]] = {
    "weights": _prune_weights,
    "units": _prune_units,
}


def _affordable_size(outputs: Callable[[npt.NDArray[Any]], FloatArray], x: npt.NDArray[Any]) -> int:
    """Returns how many examples are answered within the budget of seconds."""
    few, many = x[:2], x[:_BATCH]  # one alone would be prepared for another way of computing
    constant, seconds = (_least_seconds(outputs, part) for part in (few, many))
    per_example = max(seconds - constant, 0.0) / _BATCH
    affordable = [n for n in _SIZES if constant + n * per_example <= _BUDGET_SECONDS]
    return min(len(x), max(affordable, default=_SIZES[0]))


def _least_seconds(
    outputs: Callable[[npt.NDArray[Any]], FloatArray], x: npt.NDArray[Any], repeats: int = 3
) -> float:
    outputs(x)  # the first call traces and warms up
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        outputs(x)
        seconds.append(time.perf_counter() - start)
    return min(seconds)  # what else the computer does only adds to it


def _as_matrix(kernel: keras.Variable) -> npt.NDArray[Any]:
    values = keras.ops.convert_to_numpy(kernel)
    return values.reshape(-1, values.shape[-1])  # (*window, inputs, units) -> (inputs, units)


def _probabilities(outputs: FloatArray) -> FloatArray:
    outputs = np.asarray(outputs, np.float32)
    if (outputs >= 0).all() and np.allclose(outputs.sum(axis=1), 1, atol=1e-3):
        return outputs  # the model ends in a softmax
    powers = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


# ---- what is shown


def _page(
    scratch: _Scratch, pruned: _Pruned, method: str, index: int, names: Sequence[str], title: str
) -> str:
    color = _METHOD_COLORS[method]
    rows = [
        (_numbers(scratch, pruned), _mask_pictures(scratch.hidden, pruned.kept)),
        (
            _image(scratch.x[index], index, names[scratch.y[index]]),
            _answers(scratch.dense.answers[index], pruned.answers[index], names, color),
        ),
    ]
    where = f"{title}: the" if title else "The"
    note = html.escape(f"{where} first {len(scratch.x):,} test examples")
    boxes = (f'<div style="{_ROW}">{left}{right}</div>' for left, right in rows)
    return f'<div style="line-height:1.5">{note}{"".join(boxes)}</div>'


_ROW = "display:flex;flex-wrap:wrap;gap:24px;align-items:flex-start;margin:8px 0"
_CELL = "padding:0 12px 0 0;text-align:left;white-space:nowrap"


def _numbers(scratch: _Scratch, pruned: _Pruned) -> str:
    dense = scratch.dense
    rows = [
        ("accuracy", f"{pruned.accuracy:.1%}", f"{dense.accuracy:.1%}"),
        ("weights left", f"{pruned.weights:,}", f"{scratch.total_weights:,}"),
        ("units left", f"{pruned.units:,}", f"{dense.units:,}"),
    ]
    head = "".join(f'<th style="{_CELL}">{name}</th>' for name in ("", "pruned", "dense"))
    body = "".join(
        "<tr>" + "".join(f'<td style="{_CELL}">{value}</td>' for value in row) + "</tr>"
        for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _mask_pictures(names: Sequence[str], kept: Mapping[str, BoolArray]) -> str:
    figures = []
    for name in names[:_MAX_PICTURES]:
        mask = kept[name]
        inputs, units = mask.shape
        share = mask.mean()
        alt = f"Mask of {name}: {share:.1%} of the weights are left"
        caption = f"{html.escape(name)}<br>{inputs:,}×{units:,}<br>{share:.1%} left"
        picture = _picture(_sample(mask), alt, "104px", "104px")
        figures.append(
            f'<figure style="margin:0;font-size:smaller">{picture}'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    hidden = len(names) - len(figures)
    more = f"<div>and {hidden} more</div>" if hidden else ""
    return f'<div style="display:flex;flex-wrap:wrap;gap:8px">{"".join(figures)}{more}</div>'


def _sample(mask: BoolArray) -> npt.NDArray[np.uint8]:
    """Returns a picture of at most 100 x 100 weights, evenly spaced; a kept one is dark."""
    rows, columns = (
        np.linspace(0, size - 1, min(size, _MASK_PIXELS)).round().astype(int) for size in mask.shape
    )
    return np.where(mask[np.ix_(rows, columns)], 40, 245).astype(np.uint8)


def _image(example: npt.NDArray[Any], index: int, label: str) -> str:
    caption = f"image {index}: {html.escape(label)}"
    if example.ndim == 3 and example.shape[-1] == 1:
        example = example[..., 0]
    if example.ndim != 2 and (example.ndim != 3 or example.shape[-1] != 3):
        return f"<div>{caption}</div>"
    values = example.astype(np.float32)
    low, high = values.min(), values.max()
    grey = ((values - low) * (255 / (high - low or 1))).astype(np.uint8)
    picture = _picture(grey, f"Test image {index}, {label}", "140px", "auto")
    return f'<figure style="margin:0">{picture}<figcaption>{caption}</figcaption></figure>'


def _answers(before: FloatArray, after: FloatArray, names: Sequence[str], color: str) -> str:
    head = f'<tr><th></th><th style="{_CELL}">before: {_said(before, names)}</th>'
    head += f'<th style="{_CELL}">after: {_said(after, names)}</th></tr>'
    shown = sorted(set(np.argsort(before + after)[-10:]))  # the ten likeliest, in their order
    rows = [
        f'<tr style="line-height:1.15"><td style="{_CELL}">{html.escape(names[label])}</td>'
        f"{_bar(before[label], _GREY)}{_bar(after[label], color)}</tr>"
        for label in shown
    ]
    return f"<table>{head}{''.join(rows)}</table>"


def _said(probabilities: FloatArray, names: Sequence[str]) -> str:
    label = int(probabilities.argmax())
    return f"{html.escape(names[label])}, {probabilities[label]:.1%} sure"


def _bar(probability: float, color: str) -> str:
    style = f"width:{200 * probability:.0f}px;height:0.8em;background:{color}"
    return f'<td style="{_CELL};min-width:210px"><div style="{style}"></div></td>'


def _picture(pixels: npt.NDArray[np.uint8], alt: str, width: str, height: str) -> str:
    from PIL import Image  # matplotlib brings it

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    style = f"width:{width};height:{height};image-rendering:pixelated;border:1px solid {_GREY}"
    return (
        f'<img src="data:image/png;base64,{data}" alt="{html.escape(alt, quote=True)}" '
        f'style="{style}">'
    )


def _check(
    model: keras.Model, x: npt.NDArray[Any], y: npt.NDArray[Any], names: Sequence[str] | None
) -> list[str]:
    """Returns the names of the classes; raises where the arguments do not fit together."""
    if not prunable_layers(model):  # it also refuses what is no model, or not built
        raise ValueError(f"Model '{model.name}' has no layer to prune.")
    shape = model.output_shape
    if not isinstance(shape, tuple) or len(shape) != 2 or shape[1] < 2:
        raise ValueError(
            f"explore needs a classifier with one output a class, shape (examples, classes). "
            f"Model '{model.name}' has outputs of shape {shape}."
        )
    labels = np.asarray(y)
    if len(x) != len(labels) or not len(labels):
        raise ValueError(
            "x and y must hold the same number of examples, at least one. "
            f"Received: {len(x)} and {len(labels)}"
        )
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(
            "y must be integer labels of shape (examples,), not one-hot. "
            f"Received: {labels.dtype} of shape {labels.shape}"
        )
    if labels.min() < 0 or labels.max() >= shape[1]:
        raise ValueError(
            f"The labels must be in [0, {shape[1]}), the model's classes. "
            f"Received: {labels.min()} to {labels.max()}"
        )
    if names is not None and len(names) != shape[1]:
        raise ValueError(
            f"Model '{model.name}' has {shape[1]} classes. Received: {len(names)} class names"
        )
    return [str(name) for name in (names if names is not None else range(shape[1]))]
