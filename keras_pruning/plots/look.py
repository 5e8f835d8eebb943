"""What figures share: colours, new figures and axes, cells, legends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

__all__ = [
    "BLUE",
    "GREY",
    "INK",
    "ORANGE",
    "PALE",
    "SKY",
    "VERMILLION",
    "axes_grid",
    "draw_frame",
    "legend_below",
    "legend_patch",
    "new_axes",
    "new_figure",
    "separate_cells",
    "two_digits",
    "write_cell",
]

BLUE, VERMILLION = "#0072B2", "#D55E00"
SKY, ORANGE = "#56B4E9", "#E69F00"
INK, GREY, PALE = "#222222", "#767676", "#E6E6E6"


def two_digits(number: float) -> str:
    """Return a number to two digits, or without decimals from 10 on."""
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def new_axes(size: tuple[float, float]) -> Axes:
    """Return the axes of a new pyplot figure of `size` inches."""
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=size, layout="constrained")[1]


def new_figure(size: tuple[float, float]) -> Figure:
    """Return a new figure of `size` inches that pyplot does not keep."""
    import matplotlib.pyplot as plt

    # Opened by pyplot, since only that teaches a notebook to show figures; closed, so that pyplot
    # neither keeps it nor shows it a second time. A closed figure may still be drawn and saved.
    figure = plt.figure(figsize=size, layout="constrained")
    plt.close(figure)
    return figure


def axes_grid(
    figure: Figure | SubFigure | None, count: int, columns: int, size: tuple[float, float]
) -> tuple[Figure | SubFigure, list[Axes]]:
    """Return the figure with `count` axes in rows of `columns`, in a new one of `size` inches."""
    rows = -(-count // columns)
    if figure is None:
        figure = new_figure((columns * size[0], rows * size[1]))
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes[count:]:
        ax.remove()
    return figure, list(axes[:count])


def draw_frame(ax: Axes, color: str, linestyle: str = "-") -> None:
    """Leave of the axes a thin frame, without ticks."""
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set(color=color, linestyle=linestyle, linewidth=0.8)


def separate_cells(ax: Axes, rows: int, columns: int) -> None:
    """Put white lines between the cells of a picture and the names of the columns on top."""
    ax.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
    ax.grid(which="minor", color="w", linewidth=2)
    ax.tick_params(which="both", length=0)
    ax.tick_params(axis="x", labeltop=True, labelbottom=False)
    ax.spines[:].set_visible(False)


def write_cell(
    ax: Axes,
    row: int,
    column: int,
    text: str,
    *,
    color: str,
    size: str = "medium",
    bold: bool = False,
) -> None:
    """Write a text into the middle of a cell."""
    weight = "bold" if bold else "normal"
    center: dict[str, Any] = {"ha": "center", "va": "center"}
    ax.text(column, row, text, color=color, fontsize=size, fontweight=weight, **center)


def legend_patch(color: str, label: str) -> Any:
    """Return the handle of a colour, for a legend."""
    from matplotlib.patches import Patch

    return Patch(facecolor=color, edgecolor=GREY, linewidth=0.8, label=label)


def legend_below(figure: Figure | SubFigure, handles: Sequence[Any]) -> None:
    """Put one row of handles below the axes of a figure."""
    look: dict[str, Any] = {"frameon": False, "fontsize": "small", "ncols": len(handles)}
    figure.legend(handles=handles, loc="outside lower center", **look)
