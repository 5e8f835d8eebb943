"""Figures of tables whose rows are networks or classes: accuracy, recovery, cost."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_pruning.plots.checks import check_columns, check_frame, check_mapping, check_shares
from keras_pruning.plots.look import (
    BLUE,
    GREY,
    INK,
    PALE,
    SKY,
    VERMILLION,
    axes_grid,
    new_axes,
    separate_cells,
    two_digits,
    write_cell,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

__all__ = ["plot_class_accuracy", "plot_recovery", "plot_savings"]

_RECOVERY_STYLES: tuple[dict[str, Any], ...] = (
    {"color": "#9A9A9A", "marker": "|", "markersize": 20, "linestyle": "", "markeredgewidth": 2},
    {"color": BLUE, "marker": "o", "markersize": 7, "linestyle": "", "markerfacecolor": "w"},
    {"color": BLUE, "marker": "o", "markersize": 7, "linestyle": ""},
    {"color": VERMILLION, "marker": "D", "markersize": 6, "linestyle": ""},
    {"color": "#009E73", "marker": "^", "markersize": 7, "linestyle": ""},
)
_NAME_WIDTH = 34  # letters a line of a name beside the axes


def plot_class_accuracy(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw the accuracy of every class under every condition: which class fails first?

    A heat map with the numbers in it, in percent: ten classes under several conditions are too many
    lines to tell apart. The class with the lowest mean is at the top, low accuracy is dark, and the
    worst class of each condition is in bold type.

    Args:
        table: Accuracies in [0, 1]; the index names the classes, the columns the conditions
            ("dense", "weights 90 %", ...).
        ax: Where to draw; a new pyplot figure if None.

    Returns:
        The axes.

    Raises:
        TypeError: If `table` is no DataFrame.
        ValueError: If it is empty or a value lies outside [0, 1].
    """
    check_frame(table)
    check_shares("table", table.to_numpy(float))
    table = table.loc[:, :].iloc[np.argsort(table.mean(axis=1).to_numpy(), kind="stable")]
    rows, columns = table.shape
    ax = new_axes((1.4 + 1.15 * columns, 0.7 + 0.34 * rows)) if ax is None else ax
    percent = 100 * table.to_numpy(float)
    ax.imshow(percent, cmap="Oranges_r", vmin=-25, vmax=100, aspect="auto")
    for (row, column), value in np.ndenumerate(percent):
        worst = value == percent[:, column].min()
        write_cell(ax, row, column, f"{value:.0f}", color="w" if value < 12 else INK, bold=worst)
    _label_heat_map(ax, table)
    return ax


def plot_recovery(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw what training after pruning gives back: one line a network, from loss to recovery.

    Each number stands at its own mark: the pruned accuracy on the left of its ring, the last
    trained one above its dot, the dense one in grey below its stroke.

    Args:
        table: Accuracies in [0, 1]; the index names the networks. The first column is the
            dense network, a grey stroke; the second the pruned one, a ring; the others, dots,
            are what training made of it.
        ax: Where to draw; a new pyplot figure if None.

    Returns:
        The axes, accuracy in percent.

    Raises:
        TypeError: If `table` is no DataFrame.
        ValueError: If it is empty, has fewer than three columns, or a value lies outside [0, 1].
    """
    check_frame(table)
    percent = 100 * table.to_numpy(float)
    check_shares("table", percent / 100)
    if table.shape[1] < 3:
        raise ValueError(
            f"table has the columns {list(table.columns)}. Expected at least three: the dense "
            "network, the pruned one, the trained one."
        )
    ax = new_axes((7.2, 1.3 + 0.65 * len(table))) if ax is None else ax
    for row, (dense, pruned, *trained) in enumerate(percent):
        _draw_recovery(ax, row, dense, pruned, trained)
    names = [textwrap.fill(str(name), _NAME_WIDTH) for name in table.index]
    ax.set_yticks(range(len(table)), names)
    ax.set_ylim(len(table) - 0.4, -0.6)
    ax.set_xlim(-8, 105)  # room for the numbers at the first and the last marks
    ax.set_xticks(range(0, 101, 20))
    ax.set_xlabel("accuracy (%)")
    ax.grid(axis="x", color="#EEEEEE", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    _legend_of_recovery(ax, table.columns)
    return ax


def plot_savings(
    table: pd.DataFrame, labels: Mapping[str, str], *, figure: Figure | SubFigure | None = None
) -> Figure | SubFigure:
    """Draw what models cost: a panel of bars a cost, a bar a model, the first model in grey.

    Args:
        table: A row a model; its index names the models.
        labels: Column of the table to the title of its panel, the unit included. Values are
            at least 0, or missing, which leaves the bar out.
        figure: Where to draw; a new figure if None.

    Returns:
        The figure, its panels with a horizontal axis each that begins at 0.

    Raises:
        TypeError: If `table` is no DataFrame, or `labels` no mapping.
        ValueError: If one is empty, a column is missing, or a value is negative or infinite.
    """
    check_frame(table)
    check_mapping(labels, "labels")
    check_columns(table, labels)
    values = {column: table[column].to_numpy(float) for column in labels}
    for column, numbers in values.items():
        if np.isinf(numbers).any() or (numbers < 0).any():
            raise ValueError(f"column {column!r} of table has negative or infinite values.")
    figure, axes = axes_grid(figure, len(labels), len(labels), (3.1, 1.1 + 0.36 * len(table)))
    names = [textwrap.fill(str(name), _NAME_WIDTH) for name in table.index]
    colors = [PALE] + [BLUE] * (len(table) - 1)
    for ax, (column, label) in zip(axes, labels.items(), strict=True):
        bars = ax.barh(range(len(table)), values[column], color=colors, edgecolor=GREY, height=0.7)
        texts = ["" if np.isnan(number) else two_digits(number) for number in values[column]]
        ax.bar_label(bars, texts, padding=3, color=INK)
        ax.set_title(label, loc="left", fontsize="medium")
        ax.set_yticks(range(len(table)), names if ax is axes[0] else [""] * len(table))
        ax.set_ylim(len(table) - 0.4, -0.6)
        ax.set_xlim(0, 1.25 * max(np.nanmax(values[column], initial=0), 1e-9))  # room for numbers
        ax.set_xticks([])
        ax.tick_params(axis="y", length=0)
        ax.spines[["top", "right", "bottom"]].set_visible(False)
    return figure


def _draw_recovery(
    ax: Axes, row: int, dense: float, pruned: float, trained: Sequence[float]
) -> None:
    ax.plot([pruned, *trained], [row] * (1 + len(trained)), color=SKY, linewidth=2, zorder=2)
    ax.plot(dense, row, **_RECOVERY_STYLES[0])
    ax.plot(pruned, row, **_RECOVERY_STYLES[1])
    for value, style in zip(trained, _RECOVERY_STYLES[2:], strict=False):
        ax.plot(value, row, **style)
    numbers: tuple[tuple[float, tuple[int, int], str, str, str], ...] = (
        (pruned, (-7, 0), "right", "center", INK),
        (trained[-1], (0, 12), "center", "bottom", INK),
        (dense, (0, -12), "center", "top", GREY),
    )
    for value, offset, ha, va, color in numbers:
        ax.annotate(
            f"{value:.1f}",
            (value, row),
            xytext=offset,
            textcoords="offset points",
            ha=ha,
            va=va,
            color=color,
            fontsize="small",
        )


def _legend_of_recovery(ax: Axes, names: Iterable[Any]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], label=str(name), **style)
        for name, style in zip(names, _RECOVERY_STYLES, strict=False)
    ]
    look: dict[str, Any] = {"frameon": False, "fontsize": "small", "ncols": len(handles)}
    ax.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), **look)


def _label_heat_map(ax: Axes, table: pd.DataFrame) -> None:
    rows, columns = table.shape
    ax.set_xticks(range(columns), [str(name) for name in table.columns])
    ax.set_yticks(range(rows), [str(name) for name in table.index])
    ax.set_title("accuracy (%) of each class", loc="left")
    separate_cells(ax, rows, columns)
