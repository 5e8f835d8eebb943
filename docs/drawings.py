"""The drawings of "How it works", of numbers computed here, for light pages and for dark ones.

python -m docs.drawings FOLDER  # to look at them; the site draws them as it is built
"""

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.patches import FancyArrowPatch, Rectangle

from keras_pruning.plots.look import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    PALE,
    SKY,
    VERMILLION,
    new_figure,
    two_digits,
)
from keras_pruning.pruning import unit_mask, weight_mask


@dataclass(frozen=True)
class Look:
    """Colours of a drawing: of text and lines, what is quiet, what stays, what is pruned."""

    ink: str
    grey: str
    pale: str
    kept: str
    pruned: str
    paper: str  # of the page, for text on a coloured cell


LOOKS = {
    "light": Look(INK, GREY, PALE, BLUE, VERMILLION, "#FFFFFF"),
    "dark": Look("#E6E6E6", "#A0A0A0", "#3A3F4B", SKY, ORANGE, "#1E2129"),
}
_KERNEL = np.round(np.random.default_rng(3).normal(size=(4, 5)), 1)


def masks(look: Look) -> Any:
    """A kernel, what is left of it by weight and by unit."""
    figure, axes = _row(3, (8.2, 2.3))
    by_weight = weight_mask(_KERNEL, 0.6)
    by_unit = np.broadcast_to(unit_mask(_KERNEL, 0.6), _KERNEL.shape)
    titles = ["a kernel: 4 inputs, 5 units", "60 % of the weights", "60 % of the units"]
    for ax, keep, title in zip(axes, [_KERNEL != 0, by_weight, by_unit], titles, strict=True):
        _grid(ax, np.where(keep, _KERNEL, 0), look, title)
    return figure


def shrink(look: Look) -> Any:
    """Two layers one after the other: a unit of the first is a row of the second."""
    figure, axes = _row(4, (8.2, 2.9), [6, 5, 3, 5])
    mask = unit_mask(_KERNEL, 0.6)
    second = np.round(np.random.default_rng(5).normal(size=(5, 4)), 1)
    first = _KERNEL * mask
    titles = ["first kernel", "second kernel", "first, cut", "second, cut"]
    kernels = [first, second, first[:, mask], second[mask]]
    for ax, kernel, title in zip(axes, kernels, titles, strict=True):
        _grid(ax, kernel, look, title, height=6.2)
    for unit in np.flatnonzero(~mask):
        _say(axes[0], unit + 0.5, 4.3, f"{unit}", look, color=look.pruned)
        _say(axes[1], -0.3, unit + 0.5, f"{unit}", look, color=look.pruned)
        axes[1].add_patch(Rectangle((0, unit), 4, 1, fill=False, ec=look.pruned, lw=1.6))
    _say(axes[0], 2.5, 5.8, "units that send 0 …", look)
    _say(axes[1], 2, 5.8, "… and rows that read them", look)
    _say(axes[3], 0.6, 5.8, "the same outputs", look)
    return figure


def reconstruct(look: Look) -> Any:
    """What a unit sums before and after its weights are refitted, against the original."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 6)) @ rng.normal(size=(6, 30)) + 0.5 * rng.normal(size=(400, 30))
    kernel = rng.normal(size=(30, 1))
    keep = weight_mask(kernel, 0.8)[:, 0]
    goal = x @ kernel[:, 0]
    pruned = x[:, keep] @ kernel[keep, 0]
    refitted = x[:, keep] @ np.linalg.lstsq(x[:, keep], goal)[0]
    figure, axes = _row(2, (7.0, 3.3))
    limits = np.array([-1.05, 1.05]) * np.abs(goal).max()
    for ax, sums, title in zip(axes, [pruned, refitted], ["pruned", "refitted"], strict=True):
        error = np.linalg.norm(sums - goal) / np.linalg.norm(goal)
        ax.plot(limits, limits, color=look.grey, lw=1)
        color = look.pruned if title == "pruned" else look.kept
        ax.scatter(goal, sums, s=7, color=color, linewidths=0)
        ax.set_title(f"{title}: {two_digits(100 * error)} % off", color=look.ink, fontsize=11)
        ax.set(xlim=limits, ylim=limits, aspect="equal")
        ax.set_xlabel("sum in the original", color=look.ink)
        ax.tick_params(colors=look.grey)
        ax.spines[:].set_color(look.grey)
        ax.set_axis_on()
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("sum with 6 of 30 weights", color=look.ink)
    return figure


def kernels(look: Look) -> Any:
    """One weight of a convolution meets the same pixel of 16 examples."""
    figure, [ax] = _row(1, (8.2, 3.6))
    ax.set(xlim=(0, 36), ylim=(0.5, 16), aspect="equal")
    for channel in (2, 1, 0):  # planes of pixels, the first one in front
        left, bottom = 10 + 1.1 * channel, 6.5 + 1.1 * channel
        size = {"width": 6, "height": 6}
        ax.add_patch(Rectangle((left, bottom), **size, fc=look.pale, ec=look.grey, lw=0.8))
    for line in range(1, 6):
        ax.plot([10 + line] * 2, [6.5, 12.5], color=look.grey, lw=0.5)
        ax.plot([10, 16], [6.5 + line] * 2, color=look.grey, lw=0.5)
    ax.add_patch(Rectangle((12, 9.5), 1, 1, fc=look.kept, ec=look.kept))
    _say(ax, 14.1, 15.5, "a block: channel, row, column, example", look)
    entries = ["channel 0, row 1, column 2:  0.7", "channel 1, row 0, column 0:  −0.4",
               "channel 2, row 2, column 1:  1.1"]  # fmt: skip
    _say(ax, 4.3, 13.1, "weights that are left", look)
    for place, entry in enumerate(entries):
        color = look.kept if place == 0 else look.ink
        _say(ax, 4.3, 11.7 - 1.3 * place, entry, look, color=color)
    _strip(ax, 20.5, 10, look, "that pixel of 16 examples, side by side")
    _strip(ax, 20.5, 3.2, look, "a unit's sums for the 16 examples", "sums")
    for start, end in [((9.4, 11.6), (11.8, 10.4)), ((13.2, 10), (20.2, 10))]:
        ax.add_patch(_arrow(start, end, look))
    ax.add_patch(_arrow((26.5, 9.3), (26.5, 5.0), look))
    _say(ax, 27.1, 6.6, "× 0.7, added: one instruction", look, ha="left", color=look.kept)
    return figure


DRAWINGS: dict[str, Callable[[Look], Any]] = {
    "masks": masks,
    "shrink": shrink,
    "reconstruct": reconstruct,
    "kernels": kernels,
}


def draw_all() -> dict[str, bytes]:
    """Returns the content of each file, `masks-light.svg` and so on."""
    files = {}
    for name, draw in DRAWINGS.items():
        for page, look in LOOKS.items():
            # No date and no random ids: the same drawing is the same file.
            with matplotlib.rc_context({"svg.hashsalt": name}), io.BytesIO() as file:
                figure = draw(look)
                figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
                files[f"{name}-{page}.svg"] = file.getvalue()
    return files


def _row(count: int, size: tuple[float, float], widths: list[int] | None = None) -> tuple[Any, Any]:
    figure = new_figure(size)
    options = {"width_ratios": widths} if widths else {}
    axes = figure.subplots(1, count, squeeze=False, **options)[0]
    for ax in axes:
        ax.set_axis_off()
    return figure, axes


def _grid(ax: Any, kernel: Any, look: Look, title: str, height: float = 4.2) -> None:
    """Cells with their numbers, the first row on top; zeros pale."""
    rows, columns = kernel.shape
    for (row, column), weight in np.ndenumerate(kernel):
        is_left = weight != 0
        color = look.kept if is_left else look.pale
        corner = (column + 0.04, row + 0.04)
        ax.add_patch(Rectangle(corner, 0.92, 0.92, color=color, linewidth=0))
        text = f"{weight:.1f}".replace("-", "−") if is_left else "0"
        color = look.paper if is_left else look.grey
        _say(ax, column + 0.5, row + 0.5, text, look, color=color, fontsize=8)
    _say(ax, columns / 2, -0.7, title, look, fontsize=10)
    ax.set(xlim=(-0.6, columns + 0.4), ylim=(height, -1.1), aspect="equal", anchor="N")


def _say(ax: Any, x: float, y: float, text: str, look: Look, **options: Any) -> None:
    style = {"ha": "center", "va": "center", "fontsize": 9, "color": look.ink} | options
    ax.text(x, y, text, **style)


def _strip(ax: Any, left: float, middle: float, look: Look, text: str, kind: str = "") -> None:
    """Sixteen cells in a row."""
    color = look.pale if kind else look.kept
    for cell in range(16):
        corner = (left + 0.75 * cell + 0.05, middle - 0.5)
        ax.add_patch(Rectangle(corner, 0.65, 1, fc=color, ec=look.grey if kind else color, lw=0.6))
    below = -1.5 if kind else 1.3
    _say(ax, left + 6, middle + below, text, look)


def _arrow(start: tuple[float, float], end: tuple[float, float], look: Look) -> Any:
    return FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, color=look.grey)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for name, content in draw_all().items():
        (folder / name).write_bytes(content)
