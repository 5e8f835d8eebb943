"""Figures of pruning: what is removed, what it costs, and which weights and units are hit.

Every function takes arrays, tables or mappings of them, so it also draws numbers measured
elsewhere. Nothing global is changed: no style, no rcParams, no backend, and nothing is shown.

A function that takes `ax` draws into it and returns it; without one it opens a pyplot figure, as
pandas and seaborn do, which a notebook shows at the end of the cell. A function that takes `figure`
fills and returns it; without one it returns a new `matplotlib.figure.Figure` that pyplot does not
keep, which a notebook shows once, as the last line of a cell. Both are saved by `savefig`.

One method has one colour, marker and dash in every figure. The colours are those of Okabe & Ito
(2008), which stay apart for colour-blind readers; a random control has the light tone, the dashes
and the hollow marker of the method that it controls.
"""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.lines import Line2D
    from numpy.typing import ArrayLike

__all__ = [
    "draw_network_pruning",
    "plot_accuracy",
    "plot_accuracy_panels",
    "plot_class_accuracy",
    "plot_images",
    "plot_masks",
    "plot_matrix",
    "plot_recovery",
    "plot_savings",
    "plot_sensitivity",
    "plot_speed",
    "plot_units_as_images",
    "plot_weight_histograms",
]

_BLUE, _VERMILLION = "#0072B2", "#D55E00"
_SKY, _ORANGE = "#56B4E9", "#E69F00"
_INK, _GREY, _PALE = "#222222", "#767676", "#E6E6E6"

_METHOD_STYLES: dict[str, dict[str, Any]] = {
    "weights": {"color": _BLUE, "marker": "o", "linestyle": "-"},
    "units": {"color": _VERMILLION, "marker": "s", "linestyle": "-"},
    "random_weights": {"color": _SKY, "marker": "o", "linestyle": "--", "markerfacecolor": "w"},
    "random_units": {"color": _ORANGE, "marker": "s", "linestyle": "--", "markerfacecolor": "w"},
    "from_scratch": {"color": "#009E73", "marker": "^", "linestyle": ":"},
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
}

_SPEED_TICKS = [number * 10.0**power for power in range(-2, 4) for number in (1, 2, 5)]
_SPEED_LABELS = {"weights": "zeros skipped", "units": "units removed"}

_RECOVERY_STYLES: tuple[dict[str, Any], ...] = (
    {"color": "#9A9A9A", "marker": "|", "markersize": 20, "linestyle": "", "markeredgewidth": 2},
    {"color": _BLUE, "marker": "o", "markersize": 7, "linestyle": "", "markerfacecolor": "w"},
    {"color": _BLUE, "marker": "o", "markersize": 7, "linestyle": ""},
    {"color": _VERMILLION, "marker": "D", "markersize": 6, "linestyle": ""},
    {"color": "#009E73", "marker": "^", "markersize": 7, "linestyle": ""},
)
_NAME_WIDTH = 34  # letters a line of a name beside the axes

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

    Example:
        >>> import pandas as pd
        >>> from matplotlib.figure import Figure
        >>> table = pd.DataFrame({"sparsity": [0, 0.5, 0.9], "accuracy": [0.98, 0.97, 0.6]})
        >>> ax = plot_accuracy(table.assign(method="units"), ax=Figure().subplots())
        >>> ax.get_lines()[-1].get_xdata().tolist()
        [0.0, 50.0, 90.0]
    """
    _check_table(table)
    _check_chance(chance)
    ax = _new_axes((7.2, 4.3)) if ax is None else ax
    styles = _styles_of([table])
    _draw_accuracy(ax, table, styles, chance)
    ax.set_ylabel(_accuracy_label([table]))
    _name_lines(ax, table, styles)
    if title:
        ax.set_title(title, loc="left")
    return ax


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
    """
    _check_mapping(tables, "tables")
    for name, table in tables.items():
        _check_table(table, f"table {name!r}")
    _check_chance(chance)
    figure = _new_figure((1.9 + 3.4 * len(tables), 4.0)) if figure is None else figure
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

    Example:
        >>> import pandas as pd
        >>> from matplotlib.figure import Figure
        >>> table = pd.DataFrame({"sparsity": [0, 0.5, 0.9], "accuracy": [0.98, 0.97, 0.6]})
        >>> ax = plot_sensitivity(table.assign(layer="hidden_1"), ax=Figure().subplots())
        >>> ax.get_lines()[-1].get_label()
        'hidden_1'
    """
    _check_frame(table)
    if "layer" not in table:
        raise ValueError(
            f"table lacks the column 'layer'; it has {list(table.columns)}. Expected one row a "
            "measurement, as `sensitivity_sweep` returns it."
        )
    by_layer = table.assign(method=table["layer"].astype(str))
    _check_table(by_layer)
    _check_chance(chance)
    ax = _new_axes((7.2, 4.3)) if ax is None else ax
    styles = _layer_styles(list(dict.fromkeys(by_layer["method"])))
    _draw_accuracy(ax, by_layer, styles, chance)
    ax.set_xlabel("sparsity of this layer alone (%), stretched towards 100 %")
    ax.set_ylabel(_accuracy_label([by_layer]))
    _name_lines(ax, by_layer, styles)
    if title:
        ax.set_title(title, loc="left")
    return ax


def plot_weight_histograms(
    kernels: Mapping[str, np.ndarray],
    *,
    cuts: Sequence[float] = (0.5, 0.9),
    figure: Figure | SubFigure | None = None,
) -> Figure | SubFigure:
    """Draw how large the weights of each layer are, and where a sparsity would cut.

    The panels lie below one another with one magnitude axis and the same bins, so that heights and
    cuts may be compared between layers. The axis ends where at most 0.1 % of any layer's weights
    lie beyond; the cuts and the largest magnitude are in the title.

    Args:
        kernels: Layer name to kernel, of any shape, finite.
        cuts: Sparsities in [0, 1]; each is a vertical line at the magnitude below which that share
            of the layer's own weights lies (the quantile of |w|).
        figure: Where to draw; a new figure if None.

    Returns:
        The figure, with one axes a layer: magnitude |w| against percent of the layer's weights.

    Raises:
        TypeError: If `kernels` is no mapping.
        ValueError: If it is empty, a kernel is empty or not finite, or a cut lies outside [0, 1].
    """
    _check_mapping(kernels, "kernels")
    sizes = {name: np.abs(_finite(name, kernel)).ravel() for name, kernel in kernels.items()}
    for cut in cuts:
        _check_share("cuts", cut)
    figure = _new_figure((7.2, 0.7 + 1.4 * len(sizes))) if figure is None else figure
    axes = figure.subplots(len(sizes), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    drawn = max(0.999, *cuts)
    end = max(np.quantile(size, drawn, method="higher") for size in sizes.values())
    bins = np.linspace(0, end or 1.0, 81)
    for ax, (name, size) in zip(axes, sizes.items(), strict=True):
        _draw_histogram(ax, size, bins)
        _draw_cuts(ax, size, sorted(cuts))
        ax.set_title(_histogram_title(name, size, sorted(cuts)), loc="left", fontsize="medium")
    axes[-1].set_xlabel("magnitude of the weight |w|")
    figure.supylabel("share of the layer's weights per bin (%)", fontsize="medium")
    return figure


def plot_masks(
    masks: Mapping[str, np.ndarray],
    *,
    figure: Figure | SubFigure | None = None,
    max_size: int = 100,
) -> Figure | SubFigure:
    """Draw masks as pictures: kept weights dark, pruned ones light.

    A row is an input, a column a unit, so a pruned unit is an empty column. A mask with more than
    `max_size` rows or columns is cropped to the first ones, which the title says: averaging would
    turn single zeros and single units into an even grey.

    Args:
        masks: Title (a layer's name, for instance) to boolean mask, True = kept, of shape
            `(..., units)`. The leading axes of a convolution's mask are laid below one another.
        figure: Where to draw; a new figure if None.
        max_size: Largest number of rows, and of columns, that is drawn.

    Returns:
        The figure, with one axes a mask. The sparsity in a title is that of the whole mask.

    Raises:
        TypeError: If `masks` is no mapping or a mask is not boolean.
        ValueError: If `masks` or a mask is empty, a mask has fewer than two axes, or `max_size` is
            below 1.
    """
    _check_mapping(masks, "masks")
    for name, mask in masks.items():
        _check_mask(name, mask)
    _check_positive("max_size", max_size)
    rows = -(-len(masks) // 3)
    figure, axes = _grid(figure, len(masks), -(-len(masks) // rows), (2.8, 3.1))
    for ax, (name, mask) in zip(axes, masks.items(), strict=True):
        _draw_mask(ax, np.asarray(mask), max_size)
        ax.set_title(_mask_title(name, np.asarray(mask), max_size), loc="left", fontsize="small")
    _legend_below(figure, [_patch(_INK, "kept"), _patch(_PALE, "pruned (zero)")])
    return figure


def plot_matrix(
    matrix: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    ax: Axes | None = None,
    title: str | None = None,
) -> Axes:
    """Draw a small kernel with its numbers in the cells, the pruned ones greyed and struck out.

    Args:
        matrix: Numbers of shape `(inputs, units)`.
        mask: Booleans of the same shape, True = kept; all kept if None.
        ax: Where to draw; a new pyplot figure if None.
        title: Title of the axes.

    Returns:
        The axes.

    Raises:
        TypeError: If `mask` is not boolean.
        ValueError: If `matrix` is empty or has not two axes, or `mask` has another shape.

    Example:
        >>> from matplotlib.figure import Figure
        >>> ax = plot_matrix([[1, -2]], mask=[[False, True]], ax=Figure().subplots())
        >>> [cell.get_text() for cell in ax.texts]
        ['1', '−2']
    """
    matrix = _finite("matrix", matrix)
    _check_ndim("matrix", matrix, 2, "(inputs, units)")
    mask = np.ones(matrix.shape, bool) if mask is None else np.asarray(mask)
    _check_mask("mask", mask)
    _check_same_shape("mask", mask.shape, matrix.shape)
    rows, columns = matrix.shape
    ax = _new_axes((0.9 + 0.8 * columns, 0.8 + 0.5 * rows)) if ax is None else ax
    _draw_cells(ax, matrix, mask)
    _number_ticks(ax, rows, columns)
    if title:
        ax.set_title(title)
    return ax


def plot_units_as_images(
    kernel: np.ndarray,
    image_shape: tuple[int, int],
    *,
    units: Sequence[int] | None = None,
    titles: Sequence[str] | None = None,
    figure: Figure | SubFigure | None = None,
    columns: int = 8,
) -> Figure | SubFigure:
    """Draw what the units of a first layer look at: their weights laid out as the input image is.

    All pictures have one colour scale: blue is positive, red negative, white zero. A pruned unit,
    all of whose weights are zero, is an empty frame that says so.

    Args:
        kernel: The first Dense layer's kernel, of shape `(height * width, units)`.
        image_shape: `(height, width)` of the input image.
        units: Numbers of the units to draw; the first two rows of pictures if None.
        titles: One title a drawn unit; "unit 0", "unit 1", ... if None.
        figure: Where to draw; a new figure if None.
        columns: Pictures a row.

    Returns:
        The figure: one axes a unit, then the colour bar's.

    Raises:
        ValueError: If the shapes do not fit, a unit does not exist, or there are not as many
            titles as units.
    """
    kernel = _finite("kernel", kernel)
    _check_image_kernel(kernel, image_shape)
    _check_positive("columns", columns)
    count = kernel.shape[1]
    units = list(range(min(2 * columns, count))) if units is None else list(units)
    _check_units(units, count)
    titles = [f"unit {unit}" for unit in units] if titles is None else list(titles)
    _check_same_length("titles", len(titles), "units", len(units))
    figure, axes = _grid(figure, len(units), min(columns, len(units)), (1.0, 1.2))
    limit = np.abs(kernel[:, units]).max() or 1.0
    for ax, unit, title in zip(axes, units, titles, strict=True):
        image = _draw_unit(ax, kernel[:, unit].reshape(image_shape), limit)
        ax.set_title(title, fontsize="small")
    figure.colorbar(image, ax=axes, label="weight", fraction=0.03, aspect=25, pad=0.02)
    return figure


def plot_images(
    images: np.ndarray,
    labels: Sequence[int] | np.ndarray,
    class_names: Sequence[str],
    *,
    figure: Figure | SubFigure | None = None,
    columns: int = 10,
) -> Figure | SubFigure:
    """Draw rows of thumbnails, each below the name of its class.

    Args:
        images: uint8 of shape `(n, height, width)`, `(n, height, width, 1)` or, in colour,
            `(n, height, width, 3)`. Grey images are drawn as ink on paper: 0 white, 255 black.
        labels: Class numbers of shape `(n,)`.
        class_names: Name of each class, at its number.
        figure: Where to draw; a new figure if None.
        columns: Images a row.

    Returns:
        The figure, with one axes an image.

    Raises:
        TypeError: If `images` is not uint8.
        ValueError: If the shapes do not fit or a label has no name.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    _check_images(images, labels, class_names)
    _check_positive("columns", columns)
    figure, axes = _grid(figure, len(images), min(columns, len(images)), (0.9, 1.15))
    for ax, image, label in zip(axes, images, labels, strict=True):
        ax.imshow(image, cmap="gray_r", vmin=0, vmax=255)
        ax.set_title(class_names[label], fontsize="small")
        _frame(ax, _PALE)
    return figure


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
    _check_frame(table)
    _check_shares("table", table.to_numpy(float))
    table = table.loc[:, :].iloc[np.argsort(table.mean(axis=1).to_numpy(), kind="stable")]
    rows, columns = table.shape
    ax = _new_axes((1.4 + 1.15 * columns, 0.7 + 0.34 * rows)) if ax is None else ax
    percent = 100 * table.to_numpy(float)
    ax.imshow(percent, cmap="Oranges_r", vmin=-25, vmax=100, aspect="auto")
    for (row, column), value in np.ndenumerate(percent):
        worst = value == percent[:, column].min()
        _write(ax, row, column, f"{value:.0f}", color="w" if value < 12 else _INK, bold=worst)
    _label_heat_map(ax, table)
    return ax


def plot_recovery(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw what training after pruning gives back: one line a network, from loss to recovery.

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
    _check_frame(table)
    percent = 100 * table.to_numpy(float)
    _check_shares("table", percent / 100)
    if table.shape[1] < 3:
        raise ValueError(
            f"table has the columns {list(table.columns)}. Expected at least three: the dense "
            "network, the pruned one, the trained one."
        )
    ax = _new_axes((7.2, 1.3 + 0.55 * len(table))) if ax is None else ax
    for row, (dense, pruned, *trained) in enumerate(percent):
        _draw_recovery(ax, row, dense, pruned, trained)
    names = [textwrap.fill(str(name), _NAME_WIDTH) for name in table.index]
    ax.set_yticks(range(len(table)), names)
    ax.set_ylim(len(table) - 0.5, -0.7)
    ax.set_xlim(-8, 110)  # room for the numbers beside the first and the last dots
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
    _check_frame(table)
    _check_mapping(labels, "labels")
    _check_columns(table, labels)
    values = {column: table[column].to_numpy(float) for column in labels}
    for column, numbers in values.items():
        if np.isinf(numbers).any() or (numbers < 0).any():
            raise ValueError(f"column {column!r} of table has negative or infinite values.")
    figure, axes = _grid(figure, len(labels), len(labels), (3.1, 1.1 + 0.36 * len(table)))
    names = [textwrap.fill(str(name), _NAME_WIDTH) for name in table.index]
    colors = [_PALE] + [_BLUE] * (len(table) - 1)
    for ax, (column, label) in zip(axes, labels.items(), strict=True):
        bars = ax.barh(range(len(table)), values[column], color=colors, edgecolor=_GREY, height=0.7)
        texts = ["" if np.isnan(number) else _short(number) for number in values[column]]
        ax.bar_label(bars, texts, padding=3, color=_INK)
        ax.set_title(label, loc="left", fontsize="medium")
        ax.set_yticks(range(len(table)), names if ax is axes[0] else [""] * len(table))
        ax.set_ylim(len(table) - 0.4, -0.6)
        ax.set_xlim(0, 1.25 * max(np.nanmax(values[column], initial=0), 1e-9))  # room for numbers
        ax.set_xticks([])
        ax.tick_params(axis="y", length=0)
        ax.spines[["top", "right", "bottom"]].set_visible(False)
    return figure


def plot_speed(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw how many times faster than the dense network each method is, against sparsity.

    A vertical mark stands where a line crosses that of the dense network for good: from there
    on zeros pay. The crossing is interpolated between the points measured.

    Args:
        table: One row a measurement, with the columns `method` (str), `sparsity` (float in
            [0, 1]) and `speedup` (float above 0: dense time / own time).
        ax: Where to draw; a new pyplot figure if None.

    Returns:
        The axes; the horizontal one in percent, the vertical one logarithmic.

    Raises:
        TypeError: If `table` is no DataFrame.
        ValueError: If a column is missing, the table is empty, or a value is out of range.
    """
    _check_frame(table)
    _check_columns(table, ("method", "sparsity", "speedup"))
    _check_shares("column 'sparsity' of table", table["sparsity"].to_numpy(float))
    speedups = table["speedup"].to_numpy(float)
    if not (np.isfinite(speedups) & (speedups > 0)).all():
        raise ValueError("column 'speedup' of table must hold finite numbers above 0.")
    from matplotlib.ticker import FixedLocator, NullLocator

    ax = _new_axes((7.2, 3.6)) if ax is None else ax
    ax.axhline(1, color=_GREY, linewidth=1.5, zorder=1)
    ax.text(100, 0.93, "dense network", color=_GREY, ha="right", va="top")
    ends = {}
    styles = _styles_of([table])
    for method, style in styles.items():
        line = table[table["method"] == method].sort_values("sparsity")
        percent, speedup = 100 * line["sparsity"].to_numpy(float), line["speedup"].to_numpy(float)
        ax.plot(percent, speedup, **style)
        ends[method] = float(percent[-1]), float(speedup[-1])
        crossing = _crossing(percent, np.log(speedup))
        if crossing is not None:
            ax.plot([crossing] * 2, [0.9, 1.11], color=style["color"], linewidth=2)
            ax.text(crossing, 0.85, f"{crossing:.0f}%", color=style["color"], ha="center", va="top")
    ax.set_yscale("log")
    ax.set_xlim(-2, 101)
    ax.set_ylim(min(0.5, 0.8 * speedups.min()), 1.4 * max(speedups.max(), 2))
    ax.yaxis.set_major_locator(FixedLocator(_SPEED_TICKS))
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}×")
    ax.yaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("sparsity (%)")
    ax.set_ylabel("speed, times the dense network's")
    _name_speeds(ax, ends, styles)
    ax.grid(axis="y", color="#EEEEEE", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


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
    """
    _check_layer_sizes(layer_sizes)
    _check_share("sparsity", sparsity)
    rng = np.random.default_rng(seed)
    kernels = [rng.normal(size=shape) for shape in itertools.pairwise(layer_sizes)]
    everything = [np.ones(size, bool) for size in layer_sizes]
    alive = _surviving_units(kernels, sparsity)
    figure, axes = _grid(figure, 3, 3, (3.0, 3.5))
    _draw_network(axes[0], kernels, [np.ones(k.shape, bool) for k in kernels], everything)
    _draw_network(axes[1], kernels, _surviving_weights(kernels, sparsity), everything)
    _draw_network(axes[2], kernels, [np.outer(*ends) for ends in itertools.pairwise(alive)], alive)
    _title_network(axes[0], "dense network", "every connection")
    _title_network(axes[1], "weight pruning", "single connections removed")
    _title_network(axes[2], "unit pruning", "whole units removed")
    _legend_below(figure, _network_legend())
    return figure


# Accuracy against sparsity.


def _styles_of(tables: Iterable[pd.DataFrame]) -> dict[str, dict[str, Any]]:
    """Return the look of each method; names of the user's get the spare looks in order."""
    methods = dict.fromkeys(method for table in tables for method in table["method"])
    spare = itertools.cycle(_SPARE_STYLES)
    return {name: _METHOD_STYLES.get(name) or next(spare) for name in methods}


def _short(number: float) -> str:
    """Return a number to two digits, or without decimals from 10 on."""
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


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
        color=_GREY,
        fontsize="small",
    )


def _draw_chance(ax: Axes, chance: float) -> None:
    ax.axhline(100 * chance, color=_GREY, linestyle=":", linewidth=1.2, zorder=1, label="chance")
    ax.annotate(
        f"chance {100 * chance:.3g} %",
        (0, 100 * chance),  # at the left, where the curves are far above
        xycoords=ax.get_yaxis_transform(),
        xytext=(4, 3),
        textcoords="offset points",
        va="bottom",
        color=_GREY,
        fontsize="small",
    )


def _draw_recovery(
    ax: Axes, row: int, dense: float, pruned: float, trained: Sequence[float]
) -> None:
    ax.plot([pruned, *trained], [row] * (1 + len(trained)), color=_SKY, linewidth=2, zorder=2)
    ax.plot(dense, row, **_RECOVERY_STYLES[0])
    ax.plot(pruned, row, **_RECOVERY_STYLES[1])
    for value, style in zip(trained, _RECOVERY_STYLES[2:], strict=False):
        ax.plot(value, row, **style)
    rightmost = max(dense, *trained)
    for value, x, offset in ((pruned, pruned, -7), (trained[-1], rightmost, 9)):
        ax.annotate(
            f"{value:.1f}",
            (x, row),
            xytext=(offset, 0),
            textcoords="offset points",
            ha="left" if offset > 0 else "right",
            va="center",
            color=_INK,
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
            f"{_SPEED_LABELS.get(method, method)}, {_short(end[1])}×",
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


# Weights.


def _draw_histogram(ax: Axes, sizes: np.ndarray, bins: np.ndarray) -> None:
    percent = np.full(sizes.shape, 100 / sizes.size)
    ax.hist(sizes, bins=bins.tolist(), weights=percent, color="#A9C9DE", edgecolor="none")
    ax.margins(x=0)
    ax.spines[["top", "right"]].set_visible(False)


def _histogram_title(name: str, sizes: np.ndarray, cuts: Sequence[float]) -> str:
    below = [
        f"{100 * cut:.3g} % below {magnitude:#.2g}"
        for cut, magnitude in zip(cuts, np.quantile(sizes, cuts), strict=True)
    ]
    return ", ".join([f"{name}: {sizes.size:,} weights", *below, f"the largest {sizes.max():#.2g}"])


def _draw_cuts(ax: Axes, sizes: np.ndarray, cuts: Sequence[float]) -> None:
    magnitudes = np.quantile(sizes, cuts)
    for number, (cut, magnitude) in enumerate(zip(cuts, magnitudes, strict=True)):
        ax.axvline(magnitude, color=_INK, linewidth=1.1)
        ax.annotate(
            f"{100 * cut:.3g} %",
            (magnitude, 1),
            xycoords=ax.get_xaxis_transform(),
            xytext=(3, -1 - 12 * number),  # points; a line of type lower than the one before
            textcoords="offset points",
            va="top",
            fontsize="small",
        )


def _draw_mask(ax: Axes, mask: np.ndarray, max_size: int) -> None:
    from matplotlib.colors import ListedColormap

    shown = _as_matrix(mask)[:max_size, :max_size]
    colours = ListedColormap([_PALE, _INK])
    ax.imshow(shown, cmap=colours, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    ax.set_box_aspect(1)
    ax.set_xlabel("units", fontsize="small")
    ax.set_ylabel("inputs", fontsize="small")
    _frame(ax, _GREY)


def _mask_title(name: str, mask: np.ndarray, max_size: int) -> str:
    shape = " × ".join(str(size) for size in mask.shape)
    lines = [name, f"{shape}, {100 * (1 - mask.mean()):.1f} % zeros"]
    rows, columns = _as_matrix(mask).shape
    if max(rows, columns) > max_size:
        lines.append(f"shown: first {min(rows, max_size)} × {min(columns, max_size)}")
    return "\n".join(lines)


def _as_matrix(mask: np.ndarray) -> np.ndarray:
    return mask.reshape(-1, mask.shape[-1])  # (inputs, units)


def _draw_cells(ax: Axes, matrix: np.ndarray, mask: np.ndarray) -> None:
    from matplotlib.colors import ListedColormap

    colours = ListedColormap(["#F1F1F1", "#CFE3F0"])
    ax.imshow(mask, cmap=colours, vmin=0, vmax=1, aspect="auto")
    texts = _aligned_numbers(matrix)
    for (row, column), text in np.ndenumerate(texts):
        kept = mask[row, column]
        _write(ax, row, column, text, color=_INK if kept else _GREY, size="large")
        if not kept:
            ends = [column - 0.3, column + 0.3], [row + 0.25, row - 0.25]
            ax.plot(*ends, color=_VERMILLION, linewidth=1.3)


def _aligned_numbers(matrix: np.ndarray) -> np.ndarray:
    """Return the numbers as text with as few digits after the point, up to 2, as all need."""
    enough = (digits for digits in (0, 1) if np.allclose(matrix, matrix.round(digits)))
    digits = next(enough, 2)
    texts = [f"{value:.{digits}f}".replace("-", "−") for value in matrix.flat]
    return np.array(texts).reshape(matrix.shape)


def _number_ticks(ax: Axes, rows: int, columns: int) -> None:
    ax.set_xticks(range(columns), [f"unit {column}" for column in range(columns)])
    ax.set_yticks(range(rows), [f"input {row}" for row in range(rows)])
    _separate_cells(ax, rows, columns)


def _draw_unit(ax: Axes, image: np.ndarray, limit: float) -> Any:
    drawn = ax.imshow(image, cmap="RdBu", vmin=-limit, vmax=limit)
    pruned = not image.any()
    if pruned:
        center: dict[str, Any] = {"ha": "center", "va": "center", "transform": ax.transAxes}
        ax.text(0.5, 0.5, "pruned", color=_GREY, fontsize="small", **center)
    _frame(ax, "#BBBBBB", linestyle="--" if pruned else "-")
    return drawn


def _label_heat_map(ax: Axes, table: pd.DataFrame) -> None:
    rows, columns = table.shape
    ax.set_xticks(range(columns), [str(name) for name in table.columns])
    ax.set_yticks(range(rows), [str(name) for name in table.index])
    ax.set_title("accuracy (%) of each class", loc="left")
    _separate_cells(ax, rows, columns)


# The drawn network.


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
            edgecolor=_INK,
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
    colours = np.where(weights > 0, _BLUE, _VERMILLION).tolist()
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
        ax.text(x, y - 0.5, name, ha="center", va="top", fontsize="small", color=_GREY)
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
        Line2D([], [], color=_BLUE, linewidth=2, label="positive weight"),
        Line2D([], [], color=_VERMILLION, linewidth=2, label="negative weight"),
        Line2D([], [], color="#D0D0D0", linewidth=1, label="removed connection"),
        Line2D([], [], markeredgecolor="#A0A0A0", label="removed unit", **ring),
    ]


# Figures and axes.


def _new_axes(size: tuple[float, float]) -> Axes:
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=size, layout="constrained")[1]


def _new_figure(size: tuple[float, float]) -> Figure:
    import matplotlib.pyplot as plt

    # Opened by pyplot, since only that teaches a notebook to show figures; closed, so that pyplot
    # neither keeps it nor shows it a second time. A closed figure may still be drawn and saved.
    figure = plt.figure(figsize=size, layout="constrained")
    plt.close(figure)
    return figure


def _grid(
    figure: Figure | SubFigure | None, count: int, columns: int, size: tuple[float, float]
) -> tuple[Figure | SubFigure, list[Axes]]:
    """Return the figure with `count` axes in rows of `columns`, in a new one of `size` inches."""
    rows = -(-count // columns)
    if figure is None:
        figure = _new_figure((columns * size[0], rows * size[1]))
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes[count:]:
        ax.remove()
    return figure, list(axes[:count])


def _frame(ax: Axes, color: str, linestyle: str = "-") -> None:
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set(color=color, linestyle=linestyle, linewidth=0.8)


def _separate_cells(ax: Axes, rows: int, columns: int) -> None:
    """Put white lines between the cells of a picture and the names of the columns on top."""
    ax.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
    ax.grid(which="minor", color="w", linewidth=2)
    ax.tick_params(which="both", length=0)
    ax.tick_params(axis="x", labeltop=True, labelbottom=False)
    ax.spines[:].set_visible(False)


def _write(
    ax: Axes,
    row: int,
    column: int,
    text: str,
    *,
    color: str,
    size: str = "medium",
    bold: bool = False,
) -> None:
    weight = "bold" if bold else "normal"
    center: dict[str, Any] = {"ha": "center", "va": "center"}
    ax.text(column, row, text, color=color, fontsize=size, fontweight=weight, **center)


def _patch(color: str, label: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(facecolor=color, edgecolor=_GREY, linewidth=0.8, label=label)


def _legend_below(figure: Figure | SubFigure, handles: Sequence[Any]) -> None:
    look: dict[str, Any] = {"frameon": False, "fontsize": "small", "ncols": len(handles)}
    figure.legend(handles=handles, loc="outside lower center", **look)


# Checks.


def _check_table(table: Any, name: str = "table") -> None:
    _check_frame(table, name)
    missing = [column for column in ("method", "sparsity", "accuracy") if column not in table]
    if missing:
        raise ValueError(
            f"{name} lacks the columns {missing}; it has {list(table.columns)}. Expected one row a "
            "measurement with `method`, `sparsity` and `accuracy`, as `sparsity_sweep` returns it."
        )
    for column in ("sparsity", "accuracy"):
        _check_shares(f"column {column!r} of {name}", table[column].to_numpy(float))


def _check_columns(table: pd.DataFrame, names: Iterable[str]) -> None:
    missing = [name for name in names if name not in table]
    if missing:
        raise ValueError(f"table lacks the columns {missing}; it has {list(table.columns)}.")


def _check_frame(table: Any, name: str = "table") -> None:
    if not hasattr(table, "columns"):
        raise TypeError(f"{name} must be a pandas DataFrame, received {type(table).__name__}.")
    if 0 in table.shape:
        raise ValueError(f"{name} is empty: its shape is {table.shape}. There is nothing to draw.")


def _check_mapping(value: Any, name: str) -> None:
    if not isinstance(value, Mapping):
        raise TypeError(
            f"{name} must be a mapping such as a dict from name to value, "
            f"received {type(value).__name__}."
        )
    if not value:
        raise ValueError(f"{name} is empty: there is nothing to draw.")


def _check_chance(chance: float | None) -> None:
    if chance is not None:
        _check_share("chance", chance)


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie in [0, 1], received {value}.")


def _check_shares(name: str, values: np.ndarray) -> None:
    wrong = values[~((values >= 0) & (values <= 1))]  # written so that NaN is wrong too
    if wrong.size:
        raise ValueError(
            f"{name} must lie in [0, 1], received {wrong.flat[0]}. Divide percents by 100; drop "
            "rows without a measurement."
        )


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} must be at least 1, received {value}.")


def _check_ndim(name: str, array: np.ndarray, ndim: int, shape: str) -> None:
    if array.ndim != ndim:
        raise ValueError(f"{name} must have the shape {shape}, received shape {array.shape}.")


def _check_same_shape(name: str, received: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if received != expected:
        raise ValueError(f"{name} has shape {received}, expected {expected}, that of the matrix.")


def _check_same_length(name: str, received: int, other: str, expected: int) -> None:
    if received != expected:
        raise ValueError(f"{name} has {received} entries, but {other} has {expected}.")


def _finite(name: str, values: ArrayLike) -> np.ndarray:
    values = np.asarray(values)
    if not values.size:
        raise ValueError(f"{name!r} is empty: its shape is {values.shape}.")
    if not np.isfinite(values).all():
        raise ValueError(f"{name!r} holds NaN or infinite values; they cannot be drawn.")
    return values


def _check_mask(name: str, mask: Any) -> None:
    mask = np.asarray(mask)
    if mask.dtype != bool:
        raise TypeError(
            f"mask {name!r} must be boolean with True = kept, received dtype {mask.dtype}. "
            "A kernel's mask is `kernel != 0`."
        )
    if mask.ndim < 2 or not mask.size:
        raise ValueError(f"mask {name!r} must have the shape (..., units), received {mask.shape}.")


def _check_image_kernel(kernel: np.ndarray, image_shape: tuple[int, int]) -> None:
    _check_ndim("kernel", kernel, 2, "(height * width, units)")
    if len(image_shape) != 2 or kernel.shape[0] != np.prod(image_shape):
        raise ValueError(
            f"kernel has {kernel.shape[0]} inputs, which image_shape {tuple(image_shape)} does not "
            "cover: expected (height, width) with height * width inputs."
        )


def _check_units(units: Sequence[int], count: int) -> None:
    wrong = [unit for unit in units if not 0 <= unit < count]
    if wrong or not units:
        raise ValueError(f"units must be numbers from 0 to {count - 1}, received {wrong or units}.")


def _check_images(images: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> None:
    if images.dtype != np.uint8:
        raise TypeError(f"images must be uint8 from 0 to 255, received dtype {images.dtype}.")
    grey_or_colour = images.ndim == 3 or (images.ndim == 4 and images.shape[-1] in (1, 3))
    if not grey_or_colour or not images.size:
        raise ValueError(
            "images must have the shape (n, height, width), with a last axis of 1 or 3 at most, "
            f"received {images.shape}."
        )
    _check_same_length("labels", labels.size, "images", len(images))
    if labels.ndim != 1 or labels.min() < 0 or labels.max() >= len(class_names):
        raise ValueError(
            f"labels must be numbers of shape (n,) from 0 to {len(class_names) - 1}, the places in "
            f"class_names; received shape {labels.shape}, from {labels.min()} to {labels.max()}."
        )


def _check_layer_sizes(sizes: Sequence[int]) -> None:
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(f"layer_sizes must be two or more positive numbers, received {sizes}.")
