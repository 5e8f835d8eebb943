"""A small network drawn whole, without weights, and without units."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_pruning.plots.checks import check_share
from keras_pruning.plots.look import BLUE, GREY, INK, VERMILLION, axes_grid, legend_below

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

__all__ = ["draw_network_pruning"]


def draw_network_pruning(
    *,
    layer_sizes: Sequence[int] = (6, 8, 6, 3),
    sparsity: float = 0.5,
    seed: int = 0,
    figure: Figure | SubFigure | None = None,
) -> Figure | SubFigure:
    """Draw a small dense network three times: whole, without weights, and without units.

    The kernels are drawn from a normal distribution and really pruned: in each layer but the last,
    `round(sparsity * n)` of its n weights with the smallest magnitudes, or of its n units with the
    smallest L2 norms. Below a sparsity of 1 a layer keeps at least one unit.

    Args:
        layer_sizes: Number of inputs, then of units in each layer; at least two, all positive.
        sparsity: Share removed, in [0, 1].
        seed: Seed of the random kernels.
        figure: Where to draw; a new figure if None.

    Returns:
        The figure, with three axes. In each, the first line collection holds the removed
        connections, the second those that remain.

    Raises:
        ValueError: If there are fewer than two sizes, one is below 1, or `sparsity` lies outside
            [0, 1].

    Examples:
        >>> figure = draw_network_pruning(layer_sizes=(3, 4, 2))
        >>> [ax.get_title() for ax in figure.axes]
        ['dense network', 'weight pruning', 'unit pruning']
    """
    _check_layer_sizes(layer_sizes)
    check_share("sparsity", sparsity)
    rng = np.random.default_rng(seed)
    kernels = [rng.normal(size=shape) for shape in itertools.pairwise(layer_sizes)]
    everything = [np.ones(size, bool) for size in layer_sizes]
    alive = _surviving_units(kernels, sparsity)
    figure, axes = axes_grid(figure, 3, 3, (3.0, 3.5))
    _draw_network(axes[0], kernels, [np.ones(k.shape, bool) for k in kernels], everything)
    _draw_network(axes[1], kernels, _surviving_weights(kernels, sparsity), everything)
    _draw_network(axes[2], kernels, [np.outer(*ends) for ends in itertools.pairwise(alive)], alive)
    _title_network(axes[0], "dense network", "every connection")
    _title_network(axes[1], "weight pruning", "single connections removed")
    _title_network(axes[2], "unit pruning", "whole units removed")
    legend_below(figure, _network_legend())
    return figure


def _surviving_weights(kernels: Sequence[np.ndarray], sparsity: float) -> list[np.ndarray]:
    hidden = [_largest(np.abs(kernel), round(sparsity * kernel.size)) for kernel in kernels[:-1]]
    return [*hidden, np.ones(kernels[-1].shape, bool)]


def _surviving_units(kernels: Sequence[np.ndarray], sparsity: float) -> list[np.ndarray]:
    """Return, for the inputs and each layer, which units are left."""
    hidden = []
    for kernel in kernels[:-1]:
        count = kernel.shape[1]
        removed = min(round(sparsity * count), count if sparsity == 1 else count - 1)
        hidden.append(_largest(np.linalg.norm(kernel, axis=0), removed))
    ends = (np.ones(kernels[0].shape[0], bool), np.ones(kernels[-1].shape[1], bool))
    return [ends[0], *hidden, ends[1]]


def _largest(scores: np.ndarray, removed: int) -> np.ndarray:
    """Return a mask of the shape of `scores` that is False at the `removed` smallest."""
    mask = np.ones(scores.size, bool)
    mask[np.argsort(scores, axis=None, kind="stable")[:removed]] = False
    return mask.reshape(scores.shape)


def _draw_network(
    ax: Axes,
    kernels: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
    alive: Sequence[np.ndarray],
) -> None:
    places = [_layer_places(number, len(units)) for number, units in enumerate(alive)]
    _draw_connections(ax, places, kernels, [~mask for mask in masks], removed=True)
    _draw_connections(ax, places, kernels, masks, removed=False)
    for place, units in zip(places, alive, strict=True):
        ax.scatter(
            place[units, 0],
            place[units, 1],
            s=95,
            color="w",
            edgecolor=INK,
            linewidth=1.3,
            zorder=3,
        )
        gone: dict[str, Any] = {"edgecolor": "#A0A0A0", "linewidth": 1, "linestyle": (0, (2, 2))}
        ax.scatter(place[~units, 0], place[~units, 1], s=95, color="w", zorder=3, **gone)
    _label_network(ax, places)


def _layer_places(number: int, count: int) -> np.ndarray:
    heights = (count - 1) / 2 - np.arange(count)
    return np.column_stack([np.full(count, number), heights])  # (units, 2)


def _draw_connections(
    ax: Axes,
    places: Sequence[np.ndarray],
    kernels: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
    *,
    removed: bool,
) -> None:
    from matplotlib.collections import LineCollection

    lines, weights = [], []
    for number, (kernel, mask) in enumerate(zip(kernels, masks, strict=True)):
        for unit_in, unit_out in np.argwhere(mask):
            lines.append([places[number][unit_in], places[number + 1][unit_out]])
            weights.append(kernel[unit_in, unit_out])
    look = _removed_look() if removed else _weight_look(np.array(weights))
    label = "removed connections" if removed else "connections"
    ax.add_collection(LineCollection(lines, label=label, **look))


def _removed_look() -> dict[str, Any]:
    return {"colors": "#E4E4E4", "linewidths": 0.6, "zorder": 1}


def _weight_look(weights: np.ndarray) -> dict[str, Any]:
    colours = np.where(weights > 0, BLUE, VERMILLION).tolist()
    return {
        "colors": colours,
        "linewidths": 0.3 + 1.0 * np.abs(weights),
        "alpha": 0.75,
        "zorder": 2,
    }


def _label_network(ax: Axes, places: Sequence[np.ndarray]) -> None:
    tallest = max(len(place) for place in places)
    ax.set_xlim(-0.3, len(places) - 0.7)
    ax.set_ylim(-tallest / 2 - 0.7, tallest / 2)
    for place, name in ((places[0], "inputs"), (places[-1], "outputs")):
        x, y = place[-1]
        ax.text(x, y - 0.5, name, ha="center", va="top", fontsize="small", color=GREY)
    ax.set_axis_off()


def _title_network(ax: Axes, title: str, subtitle: str) -> None:
    removed, kept = (len(lines.get_paths()) for lines in ax.collections[:2])
    left = f"{kept} of {kept + removed} connections left" if removed else f"{kept} connections"
    center: dict[str, Any] = {"ha": "center", "transform": ax.transAxes}
    ax.set_title(title, fontweight="bold", pad=20)
    ax.text(0.5, 1.02, subtitle, va="bottom", **center)
    ax.text(0.5, 0, left, va="top", fontsize="small", **center)


def _network_legend() -> list[Any]:
    from matplotlib.lines import Line2D

    ring: dict[str, Any] = {
        "marker": "o",
        "linestyle": "none",
        "markersize": 9,
        "markerfacecolor": "w",
    }
    return [
        Line2D([], [], color=BLUE, linewidth=2, label="positive weight"),
        Line2D([], [], color=VERMILLION, linewidth=2, label="negative weight"),
        Line2D([], [], color="#D0D0D0", linewidth=1, label="removed connection"),
        Line2D([], [], markeredgecolor="#A0A0A0", label="removed unit", **ring),
    ]


def _check_layer_sizes(sizes: Sequence[int]) -> None:
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(f"layer_sizes must be two or more positive numbers, received {sizes}.")
