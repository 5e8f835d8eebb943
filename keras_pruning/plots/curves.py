"""Lines against sparsity: accuracy, sensitivity of layers, speed."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_pruning.plots.checks import (
    check_columns,
    check_frame,
    check_mapping,
    check_share,
    check_shares,
)
from keras_pruning.plots.look import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    SKY,
    VERMILLION,
    new_axes,
    new_figure,
    two_digits,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.lines import Line2D
    from numpy.typing import ArrayLike

__all__ = ["plot_accuracy", "plot_accuracy_panels", "plot_sensitivity", "plot_speed"]

_METHOD_STYLES: dict[str, dict[str, Any]] = {
    "weights": {"color": BLUE, "marker": "o", "linestyle": "-"},
    "units": {"color": VERMILLION, "marker": "s", "linestyle": "-"},
    "random_weights": {"color": SKY, "marker": "o", "linestyle": "--", "markerfacecolor": "w"},
    "random_units": {"color": ORANGE, "marker": "s", "linestyle": "--", "markerfacecolor": "w"},
    "from_scratch": {"color": "#009E73", "marker": "^", "linestyle": ":"},
    "refitted": {"color": "#7B3294", "marker": "D", "linestyle": "-"},
    "trained_on": {"color": INK, "marker": "^", "linestyle": "--", "markerfacecolor": "w"},
}
_SPARE_STYLES: tuple[dict[str, Any], ...] = (
    {"color": "#117733", "marker": "P", "linestyle": "-"},
    {"color": "#CC79A7", "marker": "D", "linestyle": "-."},
    {"color": "#555555", "marker": "v", "linestyle": ":"},
)
_METHOD_LABELS = {
    "weights": "smallest weights\nremoved",
    "units": "smallest units\nremoved",
    "random_weights": "random weights\n(control)",
    "random_units": "random units\n(control)",
    "from_scratch": "as few units,\nfrom scratch (control)",
    "refitted": "refitted\nwithout labels",
    "trained_on": "trained on\nwith labels",
}

_SPEED_TICKS = [number * 10.0**power for power in range(-2, 4) for number in (1, 2, 5)]
_SPEED_LABELS = {"weights": "zeros skipped", "units": "units removed"}

# The sparsity axis: labelled ticks, and the percent added to what remains so that 100 % is finite.
_SPARSITY_TICKS = (0, 50, 80, 90, 95, 99)
_SPARSITY_MINOR_TICKS = (*range(10, 90, 10), *range(91, 100))
_SPARSITY_OFFSET = 0.5
_SPARSITY_MARGIN = 0.05  # in decades of what remains


def plot_accuracy(
    table: pd.DataFrame,
    *,
    ax: Axes | None = None,
    title: str | None = None,
    chance: float | None = None,
) -> Axes:
    """Draw accuracy against sparsity, one named line a method.

    The line is the median of all rows with one method and one sparsity; where there are several
    such rows, a band reaches from the smallest to the largest. The grey line is the dense network:
    the median of all rows of sparsity 0.

    The sparsity axis is stretched towards 100 %: equal steps are (almost) equal ratios of what
    *remains*, so that 90 to 99 % gets as much room as 0 to 90 %. The ticks still tell the sparsity,
    and the small ticks between them, every 10 % up to 90 % and every 1 % from there, show how the
    scale changes. Exactly, the position of a sparsity of s percent is -log(100.5 - s), which is
    finite at 100 %.

    Args:
        table: One row a measurement, with the columns `method` (str), `sparsity` and `accuracy`
            (both floats in [0, 1]). Others are ignored. A method may have any name; the
            names of `sparsity_sweep` get their fixed colours and labels.
        ax: Where to draw; a new pyplot figure if None.
        title: Title of the axes.
        chance: Accuracy of guessing, in [0, 1], drawn as a dotted line.

    Returns:
        The axes, both axes in percent.

    Raises:
        TypeError: If `table` is no DataFrame.
        ValueError: If a column is missing, the table is empty, or a value lies outside [0, 1].

    Examples:
        >>> import pandas as pd
        >>> from matplotlib.figure import Figure
        >>> table = pd.DataFrame({"sparsity": [0, 0.5, 0.9], "accuracy": [0.98, 0.97, 0.6]})
        >>> ax = plot_accuracy(table.assign(method="units"), ax=Figure().subplots())
        >>> ax.get_lines()[-1].get_xdata().tolist()
        [0.0, 50.0, 90.0]
    """
    _check_table(table)
    _check_chance(chance)
    return _draw_panel(ax, table, _styles_of([table]), title, chance)


def plot_accuracy_panels(
    tables: Mapping[str, pd.DataFrame],
    *,
    figure: Figure | SubFigure | None = None,
    chance: float | None = None,
) -> Figure | SubFigure:
    """Draw accuracy against sparsity in one panel a data set, side by side on one accuracy axis.

    The lines are those of `plot_accuracy`. A method has the same look in all panels and is named
    once, at the end of its line in the last panel that draws it.

    Args:
        tables: Title of the panel (the data set) to its table, as `plot_accuracy` takes it. One to
            three panels fit the width of a page.
        figure: Where to draw; a new figure if None.
        chance: Accuracy of guessing, in [0, 1], drawn as a dotted line in every panel.

    Returns:
        The figure, with one axes a table, in the order of the mapping.

    Raises:
        TypeError: If `tables` is no mapping, or one of them no DataFrame.
        ValueError: If there is no table, or one of them is refused by `plot_accuracy`.

    Examples:
        >>> import pandas as pd
        >>> table = pd.DataFrame({"sparsity": [0, 0.5, 0.9], "accuracy": [0.98, 0.97, 0.6]})
        >>> figure = plot_accuracy_panels({"MNIST": table.assign(method="units")})
        >>> [ax.get_title(loc="left") for ax in figure.axes]
        ['MNIST']
    """
    check_mapping(tables, "tables")
    for name, table in tables.items():
        _check_table(table, f"table {name!r}")
    _check_chance(chance)
    figure = new_figure((1.9 + 3.4 * len(tables), 4.0)) if figure is None else figure
    axes = figure.subplots(1, len(tables), sharey=True, squeeze=False)[0]
    styles = _styles_of(tables.values())
    for ax, (name, table) in zip(axes, tables.items(), strict=True):
        _draw_accuracy(ax, table, styles, chance)
        ax.set_title(name, loc="left")
    axes[0].set_ylabel(_accuracy_label(tables.values()))
    unnamed = dict(styles)
    for ax, table in reversed(list(zip(axes, tables.values(), strict=True))):
        _name_lines(ax, table, unnamed)
        unnamed = {name: unnamed[name] for name in unnamed if name not in set(table["method"])}
    return figure


def plot_sensitivity(
    table: pd.DataFrame,
    *,
    ax: Axes | None = None,
    title: str | None = None,
    chance: float | None = None,
) -> Axes:
    """Draw accuracy against the sparsity of one layer alone, one named line a layer.

    A line that falls early is a layer that can hardly be touched. The layers go from dark blue,
    the first of the table, to yellow, the last. The axes are those of `plot_accuracy`.

    Args:
        table: What `sensitivity_sweep` returns: one row a measurement, with the columns `layer`
            (str), `sparsity` and `accuracy` (both floats in [0, 1]).
        ax: Where to draw; a new pyplot figure if None.
        title: Title of the axes.
        chance: Accuracy of guessing, in [0, 1], drawn as a dotted line.

    Returns:
        The axes, both axes in percent.

    Raises:
        TypeError: If `table` is no DataFrame.
        ValueError: If a column is missing, the table is empty, or a value lies outside [0, 1].

    Examples:
        >>> import pandas as pd
        >>> from matplotlib.figure import Figure
        >>> table = pd.DataFrame({"sparsity": [0, 0.5, 0.9], "accuracy": [0.98, 0.97, 0.6]})
        >>> ax = plot_sensitivity(table.assign(layer="hidden_1"), ax=Figure().subplots())
        >>> ax.get_lines()[-1].get_label()
        'hidden_1'
    """
    check_frame(table)
    if "layer" not in table:
        raise ValueError(
            f"table lacks the column 'layer'; it has {list(table.columns)}. Expected one row a "
            "measurement, as `sensitivity_sweep` returns it."
        )
    by_layer = table.assign(method=table["layer"].astype(str))
    _check_table(by_layer)
    _check_chance(chance)
    styles = _layer_styles(list(dict.fromkeys(by_layer["method"])))
    ax = _draw_panel(ax, by_layer, styles, title, chance)
    ax.set_xlabel("sparsity of this layer alone (%), stretched towards 100 %")
    return ax


def plot_speed(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw how many times faster than the dense network each method is, against sparsity.

    A vertical mark stands where a line crosses that of the dense network for good: from there
    on zeros pay. The crossing is interpolated between the points measured. The sparsity axis is
    that of `plot_accuracy`.

    Args:
        table: One row a measurement, with the columns `method` (str), `sparsity` (float in
            [0, 1]) and `speedup` (float above 0: dense time / own time). With the columns
            `lower` and `upper` too, a bar at each point reaches from one to the other.
        ax: Where to draw; a new pyplot figure if None.

    Returns:
        The axes; the horizontal one in percent, the vertical one logarithmic.

    Raises:
        TypeError: If `table` is no DataFrame.
        ValueError: If a column is missing, the table is empty, or a value is out of range.

    Examples:
        >>> import pandas as pd
        >>> from matplotlib.figure import Figure
        >>> table = pd.DataFrame({"sparsity": [0.5, 0.9], "speedup": [0.8, 4.0]})
        >>> ax = plot_speed(table.assign(method="weights"), ax=Figure().subplots())
        >>> ax.get_yscale()
        'log'
    """
    check_frame(table)
    check_columns(table, ("method", "sparsity", "speedup"))
    check_shares("column 'sparsity' of table", table["sparsity"].to_numpy(float))
    columns = [name for name in ("speedup", "lower", "upper") if name in table]
    speedups = table[columns].to_numpy(float)
    if not (np.isfinite(speedups) & (speedups > 0)).all():
        raise ValueError(f"the columns {columns} of table must hold finite numbers above 0.")
    from matplotlib.ticker import FixedLocator, NullLocator

    ax = new_axes((7.2, 3.6)) if ax is None else ax
    _set_sparsity_axis(ax, 100 * table["sparsity"].max())
    ax.axhline(1, color=GREY, linewidth=1.5, zorder=1)
    ends = {}
    styles = _styles_of([table])
    for method, style in styles.items():
        line = table[table["method"] == method].sort_values("sparsity")
        percent, speedup = 100 * line["sparsity"].to_numpy(float), line["speedup"].to_numpy(float)
        ax.plot(percent, speedup, **style)
        if {"lower", "upper"} <= set(line):
            ax.vlines(percent, line["lower"], line["upper"], color=style["color"], alpha=0.5, lw=3)
        ends[method] = float(percent[-1]), float(speedup[-1])
        crossing = _crossing(percent, np.log(speedup))
        if crossing is not None:
            ax.plot([crossing] * 2, [0.9, 1.11], color=style["color"], linewidth=2)
            where = f" {crossing:.0f}%"  # on the right, since its own line comes from below
            ax.text(crossing, 0.95, where, color=style["color"], va="top")
    ax.annotate(
        "dense network",  # above its line: the crossings are told below it
        (1, 1),
        xycoords=ax.get_yaxis_transform(),
        xytext=(-2, 3),
        textcoords="offset points",
        ha="right",
        va="bottom",
        color=GREY,
    )
    ax.set_yscale("log")
    ax.set_ylim(min(0.5, 0.8 * speedups.min()), 1.4 * max(speedups.max(), 2))
    ax.yaxis.set_major_locator(FixedLocator(_SPEED_TICKS))
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}×")
    ax.yaxis.set_minor_locator(NullLocator())
    ax.set_ylabel("speed, times the dense network's")
    _name_speeds(ax, ends, styles)
    ax.grid(axis="y", color="#EEEEEE", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _styles_of(tables: Iterable[pd.DataFrame]) -> dict[str, dict[str, Any]]:
    """Return the look of each method; names of the user's get the spare looks in order."""
    methods = dict.fromkeys(method for table in tables for method in table["method"])
    spare = itertools.cycle(_SPARE_STYLES)
    return {name: _METHOD_STYLES.get(name) or next(spare) for name in methods}


def _crossing(x: np.ndarray, y: np.ndarray) -> float | None:
    """Return where a line through the points rises above 0 for good, or None if nowhere."""
    below = np.flatnonzero(y < 0)
    if not len(below) or below[-1] == len(y) - 1:
        return None
    i = below[-1]
    return float(x[i] - y[i] * (x[i + 1] - x[i]) / (y[i + 1] - y[i]))


def _layer_styles(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the look of each layer: colours in the order of the layers, markers by turns."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    shades = colormaps["viridis"](np.linspace(0, 0.9, len(names)))  # the last yellow is too pale
    markers = itertools.cycle("os^Dv")
    return {
        name: {"color": to_hex(shade), "marker": marker, "linestyle": "-"}
        for name, shade, marker in zip(names, shades, markers, strict=False)
    }


def _draw_panel(
    ax: Axes | None,
    table: pd.DataFrame,
    styles: Mapping[str, dict[str, Any]],
    title: str | None,
    chance: float | None,
) -> Axes:
    """Draw one panel with all that belongs to it, the names of the lines included."""
    ax = new_axes((7.2, 4.3)) if ax is None else ax
    _draw_accuracy(ax, table, styles, chance)
    ax.set_ylabel(_accuracy_label([table]))
    _name_lines(ax, table, styles)
    if title:
        ax.set_title(title, loc="left")
    return ax


def _draw_accuracy(
    ax: Axes, table: pd.DataFrame, styles: Mapping[str, dict[str, Any]], chance: float | None
) -> None:
    _set_sparsity_axis(ax, 100 * table["sparsity"].max())
    _set_accuracy_axis(ax)
    _draw_dense(ax, table)
    if chance is not None:
        _draw_chance(ax, chance)
    for method in styles:
        rows = table[table["method"] == method]
        if len(rows):
            _draw_method(ax, rows, _METHOD_LABELS.get(method, str(method)), styles[method])


def _draw_method(ax: Axes, rows: pd.DataFrame, label: str, style: Mapping[str, Any]) -> None:
    accuracy = 100 * rows.groupby("sparsity")["accuracy"].agg(["median", "min", "max"])
    sparsity = 100 * accuracy.index.to_numpy(float)
    if len(rows) > len(accuracy):
        band = {"color": style["color"], "alpha": 0.2, "linewidth": 0}
        ax.fill_between(sparsity, accuracy["min"], accuracy["max"], **band)
    ax.plot(sparsity, accuracy["median"], label=label, linewidth=1.8, markersize=5, **style)


def _draw_dense(ax: Axes, table: pd.DataFrame) -> None:
    accuracy = 100 * table.loc[table["sparsity"] == 0, "accuracy"].median()
    if np.isnan(accuracy):  # the sweep did not measure the dense network
        return
    ax.axhline(accuracy, color="#9A9A9A", linewidth=1.2, zorder=1, label="dense network")
    ax.annotate(
        f"dense network {accuracy:.1f} %",
        (1, accuracy),
        xycoords=ax.get_yaxis_transform(),
        xytext=(0, 3),
        textcoords="offset points",
        ha="right",
        va="bottom",
        color=GREY,
        fontsize="small",
    )


def _draw_chance(ax: Axes, chance: float) -> None:
    ax.axhline(100 * chance, color=GREY, linestyle=":", linewidth=1.2, zorder=1, label="chance")
    ax.annotate(
        f"chance {100 * chance:.3g} %",
        (0, 100 * chance),  # at the left, where the curves are far above
        xycoords=ax.get_yaxis_transform(),
        xytext=(4, 3),
        textcoords="offset points",
        va="bottom",
        color=GREY,
        fontsize="small",
    )


def _accuracy_label(tables: Iterable[pd.DataFrame]) -> str:
    repeated = any(table.duplicated(["method", "sparsity"]).any() for table in tables)
    return "accuracy (%), median and range" if repeated else "accuracy (%)"


def _set_accuracy_axis(ax: Axes) -> None:
    ax.set_ylim(0, 108)  # above 100 there is room for the name of the dense network's line
    ax.set_yticks(range(0, 101, 20))
    ax.grid(axis="y", color="#EEEEEE", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def _set_sparsity_axis(ax: Axes, largest: float) -> None:
    """Stretch the x axis, in percent, towards 100 % and end it a little behind the last point."""
    ax.set_xscale("function", functions=(_stretch, _unstretch))
    ticks = [*_SPARSITY_TICKS, *([100] if largest > 99.5 else [])]
    ax.set_xticks(ticks, [str(tick) for tick in ticks])
    ax.set_xticks(_SPARSITY_MINOR_TICKS, minor=True)
    ends = _stretch([0, max(largest, 50)]) + [-_SPARSITY_MARGIN, _SPARSITY_MARGIN]
    ax.set_xlim(*_unstretch(ends))
    ax.set_xlabel("sparsity (%), stretched towards 100 %")


def _stretch(percent: ArrayLike) -> np.ndarray:
    remaining = 100 + _SPARSITY_OFFSET - np.asarray(percent, float)
    return -np.log10(np.maximum(remaining, 1e-9))


def _unstretch(position: ArrayLike) -> np.ndarray:
    return 100 + _SPARSITY_OFFSET - 10.0 ** -np.asarray(position, float)


def _name_lines(ax: Axes, table: pd.DataFrame, styles: Mapping[str, dict[str, Any]]) -> None:
    """Write the name of each method in `styles` beside the end of its line."""
    lines = {str(line.get_label()): line for line in ax.get_lines()}
    methods = [name for name in styles if name in set(table["method"])]
    labels = [_METHOD_LABELS.get(name, str(name)) for name in methods]
    ends = [_end(lines[label]) for label in labels]
    heights = _spread_labels(ax, np.array([y for _, y in ends]))
    for label, end, height in zip(labels, ends, heights, strict=True):
        color = str(lines[label].get_color())
        ax.annotate(
            label,
            end,
            xytext=(1.05, height),
            textcoords=ax.get_yaxis_transform(),
            va="center",
            color=_darker(color),
            fontsize="small",
            linespacing=1.0,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": color,
                "linewidth": 0.8,
                "relpos": (0, 0.5),
                "shrinkA": 0,
                "shrinkB": 4,
            },
        )


def _name_speeds(
    ax: Axes, ends: Mapping[str, tuple[float, float]], styles: Mapping[str, dict[str, Any]]
) -> None:
    """Write each method's name and last speed beside the end of its line, a line of type apart."""
    points = ax.get_window_extent().height * 72 / ax.figure.dpi
    low, high = np.log(ax.get_ylim())
    heights = [points * (np.log(speedup) - low) / (high - low) for _, speedup in ends.values()]
    raised = _spread(np.array(heights), 14, 0, points) - heights
    for (method, end), up in zip(ends.items(), raised, strict=True):
        ax.annotate(
            f"{_SPEED_LABELS.get(method, method)}, {two_digits(end[1])}×",
            end,
            xytext=(8, up),
            textcoords="offset points",
            color=_darker(styles[method]["color"]),
            va="center",
            annotation_clip=False,
        )


def _end(line: Line2D) -> tuple[float, float]:
    x, y = (np.asarray(values, float) for values in line.get_data())
    return float(x[-1]), float(y[-1])


def _spread_labels(ax: Axes, heights: np.ndarray) -> np.ndarray:
    low, high = ax.get_ylim()
    points = ax.get_window_extent().height * 72 / ax.figure.dpi
    two_lines = 25 / points * (high - low)  # of small type, in data units
    return _spread(heights, two_lines, low + two_lines / 2, high - two_lines / 2)


def _spread(wanted: np.ndarray, gap: float, low: float, high: float) -> np.ndarray:
    """Return positions near the wanted ones, in their order, `gap` apart, within the limits."""
    order = np.argsort(wanted, kind="stable")
    gap = min(gap, (high - low) / max(len(wanted) - 1, 1))
    steps = gap * np.arange(len(wanted))
    raised = np.maximum.accumulate(np.maximum(wanted[order], low) - steps) + steps
    placed = np.empty(len(wanted))
    placed[order] = np.minimum(raised, high - steps[::-1])
    return placed


def _darker(color: str) -> tuple[float, ...]:
    """Return the colour dark enough to be read as small type on white."""
    from matplotlib.colors import to_rgb

    rgb = np.array(to_rgb(color))
    luminance = rgb @ [0.2126, 0.7152, 0.0722]
    return tuple(rgb * min(1, 0.36 / luminance))


def _check_table(table: Any, name: str = "table") -> None:
    check_frame(table, name)
    missing = [column for column in ("method", "sparsity", "accuracy") if column not in table]
    if missing:
        raise ValueError(
            f"{name} lacks the columns {missing}; it has {list(table.columns)}. Expected one row a "
            "measurement with `method`, `sparsity` and `accuracy`, as `sparsity_sweep` returns it."
        )
    for column in ("sparsity", "accuracy"):
        check_shares(f"column {column!r} of {name}", table[column].to_numpy(float))


def _check_chance(chance: float | None) -> None:
    if chance is not None:
        check_share("chance", chance)
