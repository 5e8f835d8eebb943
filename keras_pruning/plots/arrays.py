"""Figures of arrays: weights, masks, kernels, images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_pruning.plots.checks import check_mapping, check_share
from keras_pruning.plots.look import (
    GREY,
    INK,
    PALE,
    VERMILLION,
    axes_grid,
    draw_frame,
    legend_below,
    legend_patch,
    new_axes,
    new_figure,
    separate_cells,
    write_cell,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from numpy.typing import ArrayLike

__all__ = [
    "plot_images",
    "plot_masks",
    "plot_matrix",
    "plot_units_as_images",
    "plot_weight_histograms",
]


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

    Examples:
        >>> kernel = np.random.default_rng(0).normal(size=(16, 3))
        >>> figure = plot_weight_histograms({"hidden": kernel}, cuts=[0.9])
        >>> len(figure.axes)
        1
    """
    check_mapping(kernels, "kernels")
    sizes = {name: np.abs(_finite(name, kernel)).ravel() for name, kernel in kernels.items()}
    for cut in cuts:
        check_share("cuts", cut)
    figure = new_figure((7.2, 0.7 + 1.4 * len(sizes))) if figure is None else figure
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

    Examples:
        >>> figure = plot_masks({"hidden": np.array([[True, False], [True, False]])})
        >>> figure.axes[0].get_title(loc="left").splitlines()
        ['hidden', '2 × 2, 50.0 % zeros']
    """
    check_mapping(masks, "masks")
    for name, mask in masks.items():
        _check_mask(name, mask)
    _check_positive("max_size", max_size)
    rows = -(-len(masks) // 3)
    figure, axes = axes_grid(figure, len(masks), -(-len(masks) // rows), (2.8, 3.1))
    for ax, (name, mask) in zip(axes, masks.items(), strict=True):
        _draw_mask(ax, np.asarray(mask), max_size)
        ax.set_title(_mask_title(name, np.asarray(mask), max_size), loc="left", fontsize="small")
    legend_below(figure, [legend_patch(INK, "kept"), legend_patch(PALE, "pruned (zero)")])
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

    Examples:
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
    ax = new_axes((0.9 + 0.8 * columns, 0.8 + 0.5 * rows)) if ax is None else ax
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

    Examples:
        >>> kernel = np.random.default_rng(0).normal(size=(16, 3))
        >>> figure = plot_units_as_images(kernel, (4, 4), units=[0, 2])
        >>> len(figure.axes)  # two units and the colour bar
        3
    """
    kernel = _finite("kernel", kernel)
    _check_image_kernel(kernel, image_shape)
    _check_positive("columns", columns)
    count = kernel.shape[1]
    units = list(range(min(2 * columns, count))) if units is None else list(units)
    _check_units(units, count)
    titles = [f"unit {unit}" for unit in units] if titles is None else list(titles)
    _check_same_length("titles", len(titles), "units", len(units))
    figure, axes = axes_grid(figure, len(units), min(columns, len(units)), (1.0, 1.2))
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

    Examples:
        >>> images = np.zeros((2, 4, 4), np.uint8)
        >>> figure = plot_images(images, [1, 0], ["cat", "dog"], columns=2)
        >>> [ax.get_title() for ax in figure.axes]
        ['dog', 'cat']
    """
    images, labels = np.asarray(images), np.asarray(labels)
    _check_images(images, labels, class_names)
    _check_positive("columns", columns)
    figure, axes = axes_grid(figure, len(images), min(columns, len(images)), (0.9, 1.15))
    for ax, image, label in zip(axes, images, labels, strict=True):
        ax.imshow(image, cmap="gray_r", vmin=0, vmax=255)
        ax.set_title(class_names[label], fontsize="small")
        draw_frame(ax, PALE)
    return figure


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
        ax.axvline(magnitude, color=INK, linewidth=1.1)
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
    colours = ListedColormap([PALE, INK])
    ax.imshow(shown, cmap=colours, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    ax.set_box_aspect(1)
    ax.set_xlabel("units", fontsize="small")
    ax.set_ylabel("inputs", fontsize="small")
    draw_frame(ax, GREY)


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
        write_cell(ax, row, column, text, color=INK if kept else GREY, size="large")
        if not kept:
            ends = [column - 0.3, column + 0.3], [row + 0.25, row - 0.25]
            ax.plot(*ends, color=VERMILLION, linewidth=1.3)


def _aligned_numbers(matrix: np.ndarray) -> np.ndarray:
    """Return the numbers as text with as few digits after the point, up to 2, as all need."""
    enough = (digits for digits in (0, 1) if np.allclose(matrix, matrix.round(digits)))
    digits = next(enough, 2)
    texts = [f"{value:.{digits}f}".replace("-", "−") for value in matrix.flat]
    return np.array(texts).reshape(matrix.shape)


def _number_ticks(ax: Axes, rows: int, columns: int) -> None:
    ax.set_xticks(range(columns), [f"unit {column}" for column in range(columns)])
    ax.set_yticks(range(rows), [f"input {row}" for row in range(rows)])
    separate_cells(ax, rows, columns)


def _draw_unit(ax: Axes, image: np.ndarray, limit: float) -> Any:
    drawn = ax.imshow(image, cmap="RdBu", vmin=-limit, vmax=limit)
    pruned = not image.any()
    if pruned:
        center: dict[str, Any] = {"ha": "center", "va": "center", "transform": ax.transAxes}
        ax.text(0.5, 0.5, "pruned", color=GREY, fontsize="small", **center)
    draw_frame(ax, "#BBBBBB", linestyle="--" if pruned else "-")
    return drawn


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
