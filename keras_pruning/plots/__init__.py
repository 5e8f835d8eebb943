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

import importlib.util

from keras_pruning.plots.arrays import (
    plot_images,
    plot_masks,
    plot_matrix,
    plot_units_as_images,
    plot_weight_histograms,
)
from keras_pruning.plots.curves import (
    plot_accuracy,
    plot_accuracy_panels,
    plot_sensitivity,
    plot_speed,
)
from keras_pruning.plots.network import draw_network_pruning
from keras_pruning.plots.tables import plot_class_accuracy, plot_savings

if importlib.util.find_spec("matplotlib") is None:  # which is imported when a figure is drawn
    raise ImportError('Figures need matplotlib: pip install "keras-pruning[plots]"')

__all__ = [
    "draw_network_pruning",
    "plot_accuracy",
    "plot_accuracy_panels",
    "plot_class_accuracy",
    "plot_images",
    "plot_masks",
    "plot_matrix",
    "plot_savings",
    "plot_sensitivity",
    "plot_speed",
    "plot_units_as_images",
    "plot_weight_histograms",
]
