"""Figures of tables whose rows are networks or classes: accuracy and cost."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from keras_pruning.plots.checks import check_columns, check_frame, check_mapping, check_shares
from keras_pruning.plots.look import (
    BLUE,
    GREY,
    INK,
    PALE,
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

__all__ = ["plot_class_accuracy", "plot_savings"]

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

    Examples:
        >>> import pandas as pd
        >>> from matplotlib.figure import Figure
        >>> table = pd.DataFrame({"dense": [0.9, 0.8], "pruned": [0.5, 0.7]}, index=["cat", "dog"])
        >>> ax = plot_class_accuracy(table, ax=Figure().subplots())
        >>> [label.get_text() for label in ax.get_yticklabels()]  # the worst on top
        ['cat', 'dog']
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

    Examples:
        >>> import pandas as pd
        >>> table = pd.DataFrame({"MB": [9.6, 1.2]}, index=["dense", "pruned"])
        >>> figure = plot_savings(table, {"MB": "file, MB"})
        >>> [ax.get_title(loc="left") for ax in figure.axes]
        ['file, MB']
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


def _label_heat_map(ax: Axes, table: pd.DataFrame) -> None:
    rows, columns = table.shape
    ax.set_xticks(range(columns), [str(name) for name in table.columns])
    ax.set_yticks(range(rows), [str(name) for name in table.index])
    ax.set_title("accuracy (%) of each class", loc="left")
    separate_cells(ax, rows, columns)
