"""What the figures show, read from the objects that matplotlib draws."""

import itertools
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import same_color, to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

import keras_pruning
from keras_pruning import plots
from keras_pruning.plots import curves, network

SPARSITIES = [0.0, 0.5, 0.9, 0.99]
BUILT_IN = ("weights", "units", "random_weights", "random_units")


@pytest.fixture(autouse=True)
def agg_backend_and_closed_figures():
    plt.switch_backend("agg")
    yield
    plt.close("all")


@pytest.fixture
def ax():
    return Figure(layout="constrained").subplots()


def sweep(methods=("weights", "units"), repeats=1):
    """A table in which accuracy falls from 90 % by 4 points a step, by 8 in the second method."""
    rows = itertools.product(enumerate(methods), enumerate(SPARSITIES), range(repeats))
    return pd.DataFrame(
        {
            "method": name,
            "sparsity": sparsity,
            "accuracy": 0.9 - 0.04 * (number + 1) * step - 0.02 * repeat * (step > 0),
        }
        for (number, name), (step, sparsity), repeat in rows
    )


def lines_of(ax):
    return {line.get_label(): line for line in ax.get_lines()}


def texts_of(ax):
    return [text.get_text() for text in ax.texts]


def overlapping_texts(ax):
    ax.figure.canvas.draw()
    boxes = [(text.get_text(), text.get_window_extent()) for text in ax.texts]
    pairs = itertools.combinations(boxes, 2)
    return [(one, other) for (one, a), (other, b) in pairs if a.overlaps(b)]


def rows_of_text(ax, shape):
    return np.array(texts_of(ax)).reshape(shape).tolist()


# All figures.

KERNELS = {"a": np.array([[0.1, -0.2], [0.3, 0.4]]), "b": np.array([[1.0, -2.0]])}
MASKS = {"a": np.array([[True, False], [True, True]])}
PIXELS = np.arange(3 * 4, dtype=np.uint8).reshape(3, 2, 2)

COSTS = pd.DataFrame({"ms": [9.0, 8.0, 2.5], "kB": [90, np.nan, 12]}, ["dense", "zeros", "small"])
SPEEDS = pd.DataFrame(
    {
        "method": ["weights"] * 3 + ["units"] * 2,
        "sparsity": [0.0, 0.5, 0.9, 0.5, 0.9],
        "speedup": [0.25, 0.5, 8.0, 2.0, 16.0],
    }
)

ALONE = pd.DataFrame(
    {
        "layer": ["early", "middle", "late"] * 2,
        "sparsity": [0.0, 0.0, 0.0, 0.5, 0.5, 0.5],
        "accuracy": [0.9, 0.9, 0.9, 0.8, 0.7, 0.6],
    }
)

OF_AXES = {
    "accuracy": lambda **at: plots.plot_accuracy(sweep(repeats=2), chance=0.1, **at),
    "sensitivity": lambda **at: plots.plot_sensitivity(ALONE, chance=0.1, **at),
    "speed": lambda **at: plots.plot_speed(SPEEDS, **at),
    "class_accuracy": lambda **at: plots.plot_class_accuracy(pd.DataFrame({"dense": [0.9]}), **at),
    "matrix": lambda **at: plots.plot_matrix([[1.0, 2.0]], mask=[[True, False]], **at),
}
OF_FIGURES = {
    "accuracy_panels": lambda **at: plots.plot_accuracy_panels({"MNIST": sweep()}, **at),
    "images": lambda **at: plots.plot_images(PIXELS, [0, 1, 0], ["cat", "dog"], **at),
    "masks": lambda **at: plots.plot_masks(MASKS, **at),
    "network": lambda **at: plots.draw_network_pruning(**at),
    "savings": lambda **at: plots.plot_savings(COSTS, {"ms": "time (ms)"}, **at),
    "units_as_images": lambda **at: plots.plot_units_as_images(KERNELS["a"], (2, 1), **at),
    "weight_histograms": lambda **at: plots.plot_weight_histograms(KERNELS, **at),
}


@pytest.mark.parametrize("draw", (OF_AXES | OF_FIGURES).values(), ids=OF_AXES | OF_FIGURES)
def test_every_figure_renders_and_leaves_the_global_style_as_it_was(draw, tmp_path):
    before = dict(matplotlib.rcParams)
    drawn = draw()
    figure = drawn if isinstance(drawn, Figure) else drawn.figure
    figure.savefig(tmp_path / "figure.png")
    assert dict(matplotlib.rcParams) == before
    assert (tmp_path / "figure.png").stat().st_size > 1000


@pytest.mark.parametrize("draw", OF_AXES.values(), ids=OF_AXES)
def test_the_given_axes_are_drawn_into_and_returned(draw, ax):
    assert draw(ax=ax) is ax
    assert ax.has_data()
    assert plt.get_fignums() == []


@pytest.mark.parametrize("draw", OF_AXES.values(), ids=OF_AXES)
def test_without_axes_pyplot_shows_one_new_figure(draw):
    drawn = draw()
    assert [plt.figure(number) for number in plt.get_fignums()] == [drawn.figure]


@pytest.mark.parametrize("draw", OF_FIGURES.values(), ids=OF_FIGURES)
def test_the_given_figure_or_subfigure_is_filled_and_returned(draw):
    subfigure = Figure(layout="constrained").subfigures(1, 2)[0]
    assert draw(figure=subfigure) is subfigure
    assert subfigure.axes


@pytest.mark.parametrize("draw", OF_FIGURES.values(), ids=OF_FIGURES)
def test_a_new_figure_is_not_kept_by_pyplot(draw):
    mine = plt.figure()
    assert isinstance(draw(), Figure)
    assert plt.get_fignums() == [mine.number]
    assert plt.gcf() is mine


def test_importing_the_module_does_not_import_matplotlib():
    code = f"""
import sys, types
library = types.ModuleType("keras_pruning")  # its other modules import Keras, and that Matplotlib
library.__path__ = [{str(Path(keras_pruning.__file__).parent)!r}]
sys.modules["keras_pruning"] = library
import keras_pruning.plots
print("matplotlib" in sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


# Accuracy against sparsity.


def test_a_line_holds_the_median_of_the_repeats_in_percent(ax):
    table = pd.DataFrame(
        {
            "method": "weights",
            "sparsity": [0.9, 0.0, 0.9, 0.9],
            "accuracy": [0.5, 0.98, 0.4, 0.75],
        }
    )
    line = lines_of(plots.plot_accuracy(table, ax=ax))["smallest weights\nremoved"]
    np.testing.assert_allclose(line.get_xydata(), [[0, 98], [90, 50]])


def test_the_band_reaches_from_the_smallest_to_the_largest_repeat(ax):
    table = pd.DataFrame({"method": "units", "sparsity": [0, 0, 0.5, 0.5, 0.5]})
    table["accuracy"] = [0.9, 0.9, 0.4, 0.7, 0.6]
    (band,) = plots.plot_accuracy(table, ax=ax).collections
    edge = band.get_paths()[0].vertices
    assert edge[edge[:, 0] == 50, 1].min() == pytest.approx(40)
    assert edge[edge[:, 0] == 50, 1].max() == pytest.approx(70)
    assert ax.get_ylabel() == "accuracy (%), median and range"


def test_single_measurements_have_no_band(ax):
    assert not plots.plot_accuracy(sweep(), ax=ax).collections
    assert ax.get_ylabel() == "accuracy (%)"


def test_every_method_is_named_beside_its_line_in_its_colour(ax):
    plots.plot_accuracy(sweep((*BUILT_IN, "my own")), ax=ax)
    names = {
        "smallest weights\nremoved",
        "smallest units\nremoved",
        "random weights\n(control)",
        "random units\n(control)",
        "my own",
    }
    annotations = {text.get_text(): text for text in ax.texts}
    assert names <= set(annotations)
    for name in names:
        line = lines_of(ax)[name]
        np.testing.assert_allclose(annotations[name].xy, line.get_xydata()[-1])
        assert same_color(annotations[name].arrow_patch.get_edgecolor(), line.get_color())
    assert ax.get_legend() is None


def test_names_of_lines_that_end_together_do_not_overlap(ax):
    table = sweep(BUILT_IN)
    table.loc[table["sparsity"] == 0.99, "accuracy"] = 0.1
    plots.plot_accuracy(table, ax=ax)
    ax.figure.draw_without_rendering()
    names = [text for text in ax.texts if "\n" in text.get_text()]
    boxes = [Text.get_window_extent(name) for name in names]  # an annotation adds its line
    boxes = sorted((box.y0, box.y1) for box in boxes)
    assert len(boxes) == 4
    assert all(above[0] >= below[1] for below, above in itertools.pairwise(boxes))


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ([50, 20], [50, 20]),
        ([10, 10, 10], [10, 20, 30]),
        ([12, 30, 10], [20, 30, 10]),
        ([99, 98], [100, 90]),
        ([-5], [0]),
        ([], []),
    ],
)
def test_labels_move_only_as_far_as_they_must(wanted, expected):
    placed = curves._spread(np.array(wanted, float), gap=10, low=0, high=100)
    np.testing.assert_allclose(placed, expected)


def test_a_name_is_dark_enough_to_be_read_on_white():
    for style in (*curves._METHOD_STYLES.values(), *curves._SPARE_STYLES):
        assert _contrast_on_white(curves._darker(style["color"])) > 4.5


def _contrast_on_white(rgb):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
    return 1.05 / (np.dot([0.2126, 0.7152, 0.0722], linear) + 0.05)


def test_no_two_methods_look_alike(ax):
    names = (*BUILT_IN, "own 1", "own 2", "own 3")
    plots.plot_accuracy(sweep(names), ax=ax)
    colours = {to_rgb(lines_of(ax)[text.get_text()].get_color()) for text in ax.texts[1:]}
    assert len(colours) == len(names)


def test_the_dense_network_is_a_grey_line_at_the_accuracy_of_sparsity_0(ax):
    plots.plot_accuracy(sweep(), ax=ax)
    line = lines_of(ax)["dense network"]
    np.testing.assert_allclose(line.get_ydata(), 90)
    assert len(set(to_rgb(line.get_color()))) == 1  # red, green and blue alike
    assert "dense network 90.0 %" in texts_of(ax)


def test_a_sweep_without_sparsity_0_has_no_dense_line(ax):
    table = sweep()
    plots.plot_accuracy(table[table["sparsity"] > 0], ax=ax)
    assert "dense network" not in lines_of(ax)


def test_chance_is_a_dotted_line_with_its_name(ax):
    plots.plot_accuracy(sweep(), ax=ax, chance=0.1)
    line = lines_of(ax)["chance"]
    np.testing.assert_allclose(line.get_ydata(), 10)
    assert line.get_linestyle() == ":"
    assert "chance 10 %" in texts_of(ax)


def test_without_chance_no_chance_line(ax):
    assert "chance" not in lines_of(plots.plot_accuracy(sweep(), ax=ax))


def test_the_sparsity_axis_gives_90_to_99_percent_two_fifths_of_the_width_and_says_so(ax):
    plots.plot_accuracy(sweep(), ax=ax)
    place = {s: ax.transData.transform((s, 0))[0] for s in (0, 50, 90, 99)}
    assert 0.4 < (place[99] - place[90]) / (place[99] - place[0]) < 0.6
    assert place[0] < place[50] < place[90] < place[99]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["0", "50", "80", "90", "95", "99"]
    assert ax.get_xlabel() == "sparsity (%), stretched towards 100 %"


def test_the_sparsity_axis_can_be_undone():
    percent = np.array([0, 25, 50, 90, 99, 99.9, 100])
    np.testing.assert_allclose(curves._unstretch(curves._stretch(percent)), percent, atol=1e-9)


def test_a_sparsity_of_100_percent_is_drawn(ax):
    table = pd.DataFrame({"method": "units", "sparsity": [0, 1.0], "accuracy": [0.9, 0.1]})
    plots.plot_accuracy(table, ax=ax)
    assert ax.get_xlim()[1] > 100
    assert ax.get_xticklabels()[-1].get_text() == "100"


def test_the_title_is_written(ax):
    assert plots.plot_accuracy(sweep(), ax=ax, title="MNIST").get_title("left") == "MNIST"


@pytest.mark.parametrize("count", [1, 2, 3])
def test_panels_have_one_axes_a_table_with_its_name(count):
    names = ["MNIST", "Fashion-MNIST", "digits"][:count]
    figure = plots.plot_accuracy_panels({name: sweep() for name in names}, chance=0.1)
    assert [ax.get_title("left") for ax in figure.axes] == names
    assert all("chance" in lines_of(ax) for ax in figure.axes)


def test_panels_share_the_accuracy_axis():
    first, second = plots.plot_accuracy_panels({"a": sweep(), "b": sweep()}).axes
    first.set_ylim(20, 30)
    assert second.get_ylim() == (20, 30)


def test_panels_draw_each_its_own_table():
    other = sweep(repeats=1).assign(accuracy=0.25)
    figure = plots.plot_accuracy_panels({"a": sweep(), "b": other})
    drawn = [lines_of(ax)["smallest units\nremoved"].get_ydata()[-1] for ax in figure.axes]
    assert drawn == pytest.approx([66, 25])


def test_a_method_is_named_once_in_the_last_panel_that_draws_it():
    tables = {"a": sweep(("units", "weights")), "b": sweep(("weights",))}
    first, second = plots.plot_accuracy_panels(tables).axes
    assert "smallest units\nremoved" in texts_of(first)
    assert "smallest weights\nremoved" not in texts_of(first)
    assert "smallest weights\nremoved" in texts_of(second)


def test_a_method_of_the_users_looks_the_same_in_all_panels():
    tables = {"a": sweep(("own 1", "own 2")), "b": sweep(("own 2",))}
    first, second = plots.plot_accuracy_panels(tables).axes
    assert lines_of(first)["own 2"].get_color() == lines_of(second)["own 2"].get_color()
    assert lines_of(first)["own 1"].get_color() != lines_of(first)["own 2"].get_color()


@pytest.mark.parametrize(
    ("table", "error", "message"),
    [
        ([1, 2], TypeError, "table must be a pandas DataFrame, received list"),
        (sweep().drop(columns=["sparsity", "method"]), ValueError, r"\['method', 'sparsity'\]"),
        (sweep().iloc[:0], ValueError, "table is empty"),
        (sweep().assign(accuracy=97.7), ValueError, "'accuracy' of table .* received 97.7"),
        (sweep().assign(accuracy=np.nan), ValueError, "'accuracy' of table .* received nan"),
        (sweep().assign(sparsity=-0.1), ValueError, "'sparsity' of table .* received -0.1"),
    ],
)
def test_a_table_that_cannot_be_drawn_is_refused(table, error, message):
    with pytest.raises(error, match=message):
        plots.plot_accuracy(table)
    with pytest.raises(error, match=message.replace("table", "table 'MNIST'")):
        plots.plot_accuracy_panels({"MNIST": table})
    assert plt.get_fignums() == []


def test_chance_as_a_percent_is_refused():
    with pytest.raises(ValueError, match=r"chance must lie in \[0, 1\], received 10"):
        plots.plot_accuracy(sweep(), chance=10)
    with pytest.raises(ValueError, match=r"chance must lie in \[0, 1\], received 10"):
        plots.plot_accuracy_panels({"a": sweep()}, chance=10)


@pytest.mark.parametrize(
    "draw",
    [plots.plot_accuracy_panels, plots.plot_masks, plots.plot_weight_histograms],
)
def test_what_is_drawn_by_panels_must_be_a_mapping_with_entries(draw):
    with pytest.raises(ValueError, match="is empty: there is nothing to draw"):
        draw({})
    with pytest.raises(TypeError, match="must be a mapping .* received list"):
        draw([1])


# Weights.


def test_histogram_cuts_lie_at_the_quantiles_of_each_layers_own_magnitudes():
    figure = plots.plot_weight_histograms(
        {"first": np.linspace(-1, 1, 101), "second": np.arange(101.0)}
    )
    cuts = [[line.get_xdata()[0] for line in ax.get_lines()] for ax in figure.axes]
    np.testing.assert_allclose(cuts, [[0.5, 0.9], [50, 90]])
    assert texts_of(figure.axes[1]) == ["50 %", "90 %"]


def test_histogram_heights_are_percents_of_the_layer_in_bins_that_all_layers_share():
    figure = plots.plot_weight_histograms({"a": np.full((2, 3), -0.5), "b": np.arange(4.0)})
    for ax in figure.axes:
        assert sum(bar.get_height() for bar in ax.patches) == pytest.approx(100, abs=1e-9)
    edges = [[bar.get_x() for bar in ax.patches] for ax in figure.axes]
    np.testing.assert_allclose(edges[0], edges[1])
    assert max(bar.get_height() for bar in figure.axes[0].patches) == pytest.approx(100)


def test_histograms_share_both_axes():
    first, second = plots.plot_weight_histograms(KERNELS).axes
    first.set(xlim=(0, 7), ylim=(0, 9))
    assert (second.get_xlim(), second.get_ylim()) == ((0, 7), (0, 9))


def test_histogram_titles_tell_the_layer_its_cuts_and_the_largest_weight():
    figure = plots.plot_weight_histograms({"dense": np.arange(-1000, 1)})
    expected = "dense: 1,001 weights, 50 % below 5.0e+02, 90 % below 9.0e+02, the largest 1.0e+03"
    assert figure.axes[0].get_title("left") == expected


def test_a_few_huge_weights_do_not_squeeze_the_histogram():
    kernel = np.append(np.linspace(0, 1, 100_000), 1000)
    (ax,) = plots.plot_weight_histograms({"dense": kernel}).axes
    assert ax.get_xlim()[1] < 1.1


def test_a_cut_among_the_largest_weights_is_inside_the_histogram():
    kernel = np.arange(1.0, 100_001.0)
    (ax,) = plots.plot_weight_histograms({"a": kernel}, cuts=[0.9999]).axes
    assert ax.get_xlim()[1] >= np.quantile(kernel, 0.9999)


def test_the_histogram_of_a_layer_of_zeros_is_one_full_bar():
    (ax,) = plots.plot_weight_histograms({"dense": np.zeros((3, 2))}).axes
    assert ax.patches[0].get_height() == pytest.approx(100)


def test_histograms_refuse_wrong_cuts_and_kernels():
    with pytest.raises(ValueError, match=r"cuts must lie in \[0, 1\], received 50"):
        plots.plot_weight_histograms(KERNELS, cuts=(50,))
    with pytest.raises(ValueError, match="'a' holds NaN"):
        plots.plot_weight_histograms({"a": np.array([np.nan])})
    with pytest.raises(ValueError, match=r"'a' is empty: its shape is \(0, 3\)"):
        plots.plot_weight_histograms({"a": np.zeros((0, 3))})


def picture_of(ax):
    return np.asarray(ax.images[0].get_array())


def test_a_small_mask_is_drawn_whole_with_its_shape_and_sparsity():
    mask = np.array([[True, False, True], [True, False, False]])
    (ax,) = plots.plot_masks({"dense": mask}).axes
    np.testing.assert_array_equal(picture_of(ax), mask)
    assert ax.get_title("left") == "dense\n2 × 3, 50.0 % zeros"


def test_kept_weights_are_darker_than_pruned_ones():
    (ax,) = plots.plot_masks({"dense": np.array([[True, False]])}).axes
    kept, pruned = ax.images[0].to_rgba(ax.images[0].get_array())[0, :, :3].mean(axis=1)
    assert kept < 0.3 < 0.8 < pruned


def test_a_large_mask_is_cropped_and_the_title_says_so():
    mask = np.zeros((784, 1000), bool)
    mask[:, 5] = True
    (ax,) = plots.plot_masks({"dense": mask}, max_size=20).axes
    np.testing.assert_array_equal(picture_of(ax), mask[:20, :20])
    expected = "dense\n784 × 1000, 99.9 % zeros\nshown: first 20 × 20"
    assert ax.get_title("left") == expected


def test_a_convolutions_pruned_filter_is_an_empty_column():
    mask = np.ones((3, 3, 2, 4), bool)
    mask[..., 1] = False
    (ax,) = plots.plot_masks({"conv": mask}).axes
    assert picture_of(ax).shape == (18, 4)
    assert picture_of(ax).any(axis=0).tolist() == [True, False, True, True]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_every_mask_has_one_axes(count):
    assert len(plots.plot_masks({str(i): MASKS["a"] for i in range(count)}).axes) == count


def test_the_legend_of_masks_has_their_colours():
    figure = plots.plot_masks(MASKS)
    (legend,) = figure.legends
    colours = figure.axes[0].images[0].to_rgba(np.array([[1.0, 0.0]]))[0]
    shown = [patch.get_facecolor() for patch in legend.get_patches()]
    np.testing.assert_allclose(shown, colours)
    assert [text.get_text() for text in legend.get_texts()] == ["kept", "pruned (zero)"]


def test_wrong_masks_are_refused():
    with pytest.raises(TypeError, match="mask 'dense' must be boolean .* received dtype float64"):
        plots.plot_masks({"dense": np.ones((2, 2))})
    with pytest.raises(ValueError, match=r"mask 'dense' must have the shape .* received \(3,\)"):
        plots.plot_masks({"dense": np.ones(3, bool)})
    with pytest.raises(ValueError, match="max_size must be at least 1, received 0"):
        plots.plot_masks(MASKS, max_size=0)


def test_a_matrix_shows_its_numbers_with_the_digits_they_need(ax):
    plots.plot_matrix([[0.5, -1.25], [2, 0]], ax=ax)
    assert rows_of_text(ax, (2, 2)) == [["0.50", "−1.25"], ["2.00", "0.00"]]


def test_whole_numbers_are_written_without_a_point(ax):
    assert texts_of(plots.plot_matrix([[3.0, -4.0]], ax=ax)) == ["3", "−4"]


def test_pruned_cells_are_struck_out_and_others_are_not(ax):
    mask = np.array([[True, False], [False, True], [True, True]])
    plots.plot_matrix(np.ones((3, 2)), mask=mask, ax=ax, title="by hand")
    struck = {(np.mean(line.get_ydata()), np.mean(line.get_xdata())) for line in ax.get_lines()}
    assert struck == {(0, 1), (1, 0)}
    np.testing.assert_array_equal(picture_of(ax), mask)
    assert ax.get_title() == "by hand"


def test_without_a_mask_no_cell_is_struck_out(ax):
    assert not plots.plot_matrix([[1, 2]], ax=ax).get_lines()


def test_a_matrix_and_its_mask_must_fit():
    with pytest.raises(ValueError, match=r"mask has shape \(1, 2\), expected \(2, 1\)"):
        plots.plot_matrix([[1], [2]], mask=[[True, False]])
    with pytest.raises(ValueError, match=r"matrix must have the shape \(inputs, units\)"):
        plots.plot_matrix([1, 2])
    with pytest.raises(TypeError, match="must be boolean"):
        plots.plot_matrix([[1]], mask=[[1]])


@pytest.mark.parametrize("side", [8, 28])
def test_units_are_columns_of_the_kernel_in_the_shape_of_the_image(side):
    kernel = np.random.default_rng(0).normal(size=(side * side, 5))
    figure = plots.plot_units_as_images(kernel, (side, side), units=[4, 1])
    first, second, _ = figure.axes
    np.testing.assert_array_equal(picture_of(first), kernel[:, 4].reshape(side, side))
    np.testing.assert_array_equal(picture_of(second), kernel[:, 1].reshape(side, side))
    assert [first.get_title(), second.get_title()] == ["unit 4", "unit 1"]


def test_all_units_have_one_colour_scale_centred_at_zero():
    figure = plots.plot_units_as_images(np.array([[1.0, -5.0], [2.0, 3.0]]), (1, 2))
    limits = [ax.images[0].get_clim() for ax in figure.axes[:2]]
    assert limits == [(-5, 5), (-5, 5)]


def test_units_that_are_not_drawn_do_not_stretch_the_colour_scale():
    kernel = np.array([[1.0, -5.0], [2.0, 3.0]])
    figure = plots.plot_units_as_images(kernel, (1, 2), units=[0])
    assert figure.axes[0].images[0].get_clim() == (-2, 2)


def test_a_pruned_unit_is_empty_and_says_so():
    figure = plots.plot_units_as_images(np.array([[1.0, 0.0], [2.0, 0.0]]), (1, 2))
    kept, pruned, _ = figure.axes
    assert not picture_of(pruned).any()
    assert (texts_of(kept), texts_of(pruned)) == ([], ["pruned"])


def test_two_rows_of_units_are_drawn_unless_others_are_asked_for():
    kernel = np.ones((4, 100))
    assert len(plots.plot_units_as_images(kernel, (2, 2), columns=3).axes) == 6 + 1


def test_units_may_have_titles_of_their_own():
    figure = plots.plot_units_as_images(np.eye(2), (1, 2), titles=["loud", "quiet"])
    assert [ax.get_title() for ax in figure.axes[:2]] == ["loud", "quiet"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_shape": (28, 28)}, r"kernel has 4 inputs, which image_shape \(28, 28\)"),
        ({"units": [1, 9]}, r"units must be numbers from 0 to 1, received \[9\]"),
        ({"units": []}, "units must be numbers from 0 to 1, received"),
        ({"titles": ["one"]}, "titles has 1 entries, but units has 2"),
        ({"columns": 0}, "columns must be at least 1, received 0"),
        ({"kernel": np.ones(4)}, r"kernel must have the shape \(height \* width, units\)"),
    ],
)
def test_units_that_cannot_be_drawn_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        plots.plot_units_as_images(**{"kernel": np.ones((4, 2)), "image_shape": (2, 2)} | options)


# Images and classes.


def test_every_image_stands_below_the_name_of_its_class():
    figure = plots.plot_images(PIXELS, [1, 0, 1], ["cat", "dog"], columns=2)
    assert [ax.get_title() for ax in figure.axes] == ["dog", "cat", "dog"]
    for ax, image in zip(figure.axes, PIXELS, strict=True):
        np.testing.assert_array_equal(picture_of(ax), image)


def test_grey_images_are_ink_on_paper_however_faint_they_are():
    figure = plots.plot_images(PIXELS, [0, 0, 0], ["cat"])
    for ax in figure.axes:
        paper, ink = ax.images[0].to_rgba(np.array([[0.0, 255.0]]))[0, :, :3]
        assert (paper.tolist(), ink.tolist()) == ([1, 1, 1], [0, 0, 0])
        assert ax.images[0].get_clim() == (0, 255)


@pytest.mark.parametrize(("columns", "grid"), [(2, (2, 2)), (10, (1, 3))])
def test_a_row_holds_as_many_images_as_asked_for(columns, grid):
    figure = plots.plot_images(PIXELS, [0, 0, 0], ["cat"], columns=columns)
    assert figure.axes[0].get_gridspec().get_geometry() == grid


@pytest.mark.parametrize("shape", [(2, 4, 4, 1), (2, 4, 4, 3)])
def test_images_may_have_a_channel_axis(shape):
    figure = plots.plot_images(np.zeros(shape, np.uint8), [0, 0], ["cat"])
    figure.draw_without_rendering()
    assert len(figure.axes) == 2


@pytest.mark.parametrize(
    ("images", "labels", "error", "message"),
    [
        (PIXELS / 255, [0, 0, 0], TypeError, "images must be uint8 .* received dtype float64"),
        (PIXELS[0], [0, 0], ValueError, r"\(n, height, width\).* received \(2, 2\)"),
        (PIXELS, [0, 1], ValueError, "labels has 2 entries, but images has 3"),
        (PIXELS, [0, 1, 2], ValueError, "from 0 to 1, .* from 0 to 2"),
    ],
)
def test_images_that_cannot_be_drawn_are_refused(images, labels, error, message):
    with pytest.raises(error, match=message):
        plots.plot_images(images, labels, ["cat", "dog"])


CLASSES = pd.DataFrame(
    {"dense": [0.9, 0.8, 1.0], "weights 90 %": [0.85, 0.1, 0.9]}, index=["cat", "dog", "emu"]
)


def test_the_class_that_fails_first_is_at_the_top(ax):
    plots.plot_class_accuracy(CLASSES, ax=ax)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["dog", "cat", "emu"]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["dense", "weights 90 %"]
    assert rows_of_text(ax, (3, 2)) == [["80", "10"], ["90", "85"], ["100", "90"]]
    np.testing.assert_allclose(picture_of(ax), [[80, 10], [90, 85], [100, 90]])


def test_the_worst_class_of_each_condition_is_in_bold_type(ax):
    table = CLASSES.assign(units=[0.2, 0.5, 0.6])
    plots.plot_class_accuracy(table, ax=ax)
    bold = [text.get_text() for text in ax.texts if text.get_fontweight() == "bold"]
    assert sorted(bold) == ["10", "20", "80"]


def test_class_accuracies_that_cannot_be_drawn_are_refused():
    with pytest.raises(ValueError, match=r"table must lie in \[0, 1\], received 90"):
        plots.plot_class_accuracy(100 * CLASSES)
    with pytest.raises(ValueError, match="table is empty"):
        plots.plot_class_accuracy(CLASSES.iloc[:0])
    with pytest.raises(TypeError, match="table must be a pandas DataFrame, received dict"):
        plots.plot_class_accuracy({"dense": [1.0]})


# Layers pruned alone.


def test_a_line_is_what_is_left_when_its_layer_alone_is_pruned(ax):
    plots.plot_sensitivity(ALONE, ax=ax, title="MNIST", chance=0.1)
    lines = lines_of(ax)
    ends = {name: lines[name].get_xydata()[-1].tolist() for name in ("early", "middle", "late")}
    assert ends == {"early": [50, 80], "middle": [50, 70], "late": [50, 60]}
    assert {"early", "middle", "late", "dense network 90.0 %", "chance 10 %"} == set(texts_of(ax))
    assert ax.get_title("left") == "MNIST"
    assert ax.get_xlabel() == "sparsity of this layer alone (%), stretched towards 100 %"


def test_layers_go_from_dark_to_light_in_the_order_of_the_table(ax):
    lines = lines_of(plots.plot_sensitivity(ALONE, ax=ax))
    shades = [sum(to_rgb(lines[name].get_color())) for name in ("early", "middle", "late")]
    assert shades == sorted(shades)
    assert len(set(shades)) == 3


def test_no_two_of_many_layers_look_alike(ax):
    table = pd.concat([ALONE.assign(layer=f"layer_{number}") for number in range(16)])
    lines = lines_of(plots.plot_sensitivity(table, ax=ax))
    looks = {(lines[name].get_color(), lines[name].get_marker()) for name in set(table["layer"])}
    assert len(looks) == 16


def test_a_table_without_layers_is_not_drawn():
    with pytest.raises(ValueError, match="lacks the column 'layer'; it has .*sensitivity_sweep"):
        plots.plot_sensitivity(ALONE.drop(columns="layer"))
    with pytest.raises(TypeError, match="must be a pandas DataFrame, received list"):
        plots.plot_sensitivity([])


# The drawn network.


def connections(ax):
    """Number of removed and of remaining connections."""
    return tuple(len(lines.get_segments()) for lines in ax.collections[:2])


def rings(ax):
    """Number of units in each layer that are left, and that are removed."""
    counts = [len(points.get_offsets()) for points in ax.collections[2:]]
    return counts[::2], counts[1::2]


def test_the_network_is_drawn_whole_without_weights_and_without_units():
    figure = plots.draw_network_pruning(layer_sizes=(6, 8, 6, 3), sparsity=0.5)
    dense, weights, units = figure.axes
    titles = [ax.get_title() for ax in figure.axes]
    assert titles == ["dense network", "weight pruning", "unit pruning"]
    assert connections(dense) == (0, 48 + 48 + 18)
    assert connections(weights) == (24 + 24, 24 + 24 + 18)
    assert connections(units) == (48 + 48 + 18 - 45, 6 * 4 + 4 * 3 + 3 * 3)
    assert rings(weights) == ([6, 8, 6, 3], [0, 0, 0, 0])
    assert rings(units) == ([6, 4, 3, 3], [0, 4, 3, 0])


@pytest.mark.parametrize(("sparsity", "left"), [(0, 48), (0.29, 34), (0.9, 5), (1, 0)])
def test_the_share_of_weights_asked_for_is_removed_by_rank(sparsity, left):
    weights = plots.draw_network_pruning(layer_sizes=(6, 8, 3), sparsity=sparsity).axes[1]
    assert connections(weights) == (48 - left, left + 24)


@pytest.mark.parametrize(("sparsity", "left"), [(0, 8), (0.9, 1), (0.99, 1), (1, 0)])
def test_a_layer_keeps_a_unit_below_a_sparsity_of_1(sparsity, left):
    units = plots.draw_network_pruning(layer_sizes=(6, 8, 3), sparsity=sparsity).axes[2]
    assert rings(units)[0] == [6, left, 3]


def test_the_smallest_magnitudes_are_removed_and_the_output_layer_spared():
    kernels = [np.array([[1.0, -5.0, 3.0], [-2.0, 0.5, 3.0]]), np.ones((3, 2))]
    hidden, output = network._surviving_weights(kernels, 0.5)
    assert hidden.tolist() == [[False, True, True], [False, False, True]]
    assert output.all()


@pytest.mark.parametrize(
    ("sparsity", "left"), [(0.33, [True, False, True]), (0.67, [False, False, True])]
)
def test_the_units_of_smallest_l2_norm_are_removed(sparsity, left):
    kernel = np.array([[3.0, 0.0, 0.0], [3.0, 4.0, -5.0]])  # L2 norms 4.2, 4, 5
    alive = network._surviving_units([kernel, np.ones((3, 2))], sparsity)
    assert [units.tolist() for units in alive] == [[True, True], left, [True, True]]


def test_the_drawn_weights_show_sign_and_magnitude():
    look = network._weight_look(np.array([0.5, -2.0]))
    assert look["colors"][0] != look["colors"][1]
    assert look["linewidths"][0] < look["linewidths"][1]


def test_the_same_seed_draws_the_same_network():
    def widths(seed):
        return plots.draw_network_pruning(seed=seed).axes[0].collections[1].get_linewidths()

    np.testing.assert_array_equal(widths(1), widths(1))
    assert not np.array_equal(widths(1), widths(2))


def test_a_network_that_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match=r"layer_sizes must be .* received \(3,\)"):
        plots.draw_network_pruning(layer_sizes=(3,))
    with pytest.raises(ValueError, match=r"sparsity must lie in \[0, 1\], received 50"):
        plots.draw_network_pruning(sparsity=50)


# What pruning saves.


def test_a_panel_a_cost_holds_a_bar_a_model_with_its_number(ax):
    figure = plots.plot_savings(COSTS, {"ms": "time (ms)", "kB": "file (kB)"})
    assert [panel.get_title("left") for panel in figure.axes] == ["time (ms)", "file (kB)"]
    bars = [[bar.get_width() for bar in panel.patches] for panel in figure.axes]
    np.testing.assert_array_equal(bars, [[9, 8, 2.5], [90, np.nan, 12]])
    assert [texts_of(panel) for panel in figure.axes] == [["9", "8", "2.5"], ["90", "", "12"]]
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["dense", "zeros", "small"]
    assert figure.axes[0].get_xlim()[0] == figure.axes[1].get_xlim()[0] == 0


def test_the_first_model_is_at_the_top_and_alone_in_grey():
    (panel,) = plots.plot_savings(COSTS, {"ms": "time (ms)"}).axes
    heights = [panel.transData.transform((0, bar.get_y()))[1] for bar in panel.patches]
    assert heights == sorted(heights, reverse=True)
    is_grey = [len(set(bar.get_facecolor()[:3])) == 1 for bar in panel.patches]
    assert is_grey == [True, False, False]


def test_the_speed_is_drawn_in_percent_and_times_the_dense_network(ax):
    plots.plot_speed(SPEEDS, ax=ax)
    points = [line.get_xydata().tolist() for line in ax.get_lines() if len(line.get_xdata()) == 3]
    assert points == [[[0, 0.25], [50, 0.5], [90, 8]]]
    assert {"zeros skipped, 8×", "units removed, 16×"} <= set(texts_of(ax))


def test_the_order_of_the_rows_does_not_matter_to_the_line_of_a_speed(ax):
    other = plots.plot_speed(SPEEDS[::-1], ax=Figure().subplots())
    plots.plot_speed(SPEEDS, ax=ax)
    assert set(texts_of(other)) == set(texts_of(ax))


def test_names_of_speeds_stand_a_line_apart(ax):
    plots.plot_speed(SPEEDS.assign(speedup=[0.25, 0.5, 8.0, 2.0, 8.1]), ax=ax)
    places = [text.xyann[1] for text in ax.texts if text.get_text().endswith("×")]
    assert places[1] - places[0] >= 13  # points


def test_the_crossing_is_where_a_line_passes_the_dense_network_for_good(ax):
    plots.plot_speed(SPEEDS, ax=ax)
    # Between 50 and 90 %, a quarter of the way from log 0.5 to log 8; units are always faster.
    assert [text.strip() for text in texts_of(ax) if text.endswith("%")] == ["60%"]


@pytest.mark.parametrize("speedup", [0.2, 0.5, 0.8, 0.9, 0.99])
def test_the_name_of_the_dense_network_lies_on_no_crossing(speedup):
    speeds = [speedup, speedup, 2.0, speedup, 16.0]
    ax = plots.plot_speed(SPEEDS.assign(speedup=speeds))
    assert len(texts_of(ax)) == 5  # two crossings, two methods, the dense network
    assert not any("dense network" in pair for pair in overlapping_texts(ax))
    plt.close(ax.figure)


def test_speed_and_accuracy_have_the_same_axis_of_sparsity(ax):
    plots.plot_speed(SPEEDS, ax=ax)
    other = plots.plot_accuracy(SPEEDS.assign(accuracy=0.5), ax=Figure().subplots())
    assert ax.get_xlim() == other.get_xlim()
    assert ax.get_xlabel() == other.get_xlabel()
    shares = np.array([[0, 1], [50, 1], [90, 1]])
    places = [a.transAxes.inverted().transform(a.transData.transform(shares)) for a in (ax, other)]
    np.testing.assert_allclose(places[0][:, 0], places[1][:, 0])


def test_quartiles_of_a_speed_are_drawn_at_its_point(ax):
    table = SPEEDS.assign(lower=SPEEDS["speedup"] / 2, upper=SPEEDS["speedup"] * 3)
    plots.plot_speed(table, ax=ax)
    bars = [bar.tolist() for lines in ax.collections for bar in lines.get_segments()]
    assert bars[:3] == [
        [[0, 0.125], [0, 0.75]],
        [[50, 0.25], [50, 1.5]],
        [[90, 4], [90, 24]],
    ]
    low, high = ax.get_ylim()
    assert low < 0.125
    assert high > 48


@pytest.mark.parametrize(
    ("speeds", "crossing"),
    [([0.5, 2, 0.5, 2], 2.5), ([1, 1, 2, 4], None), ([2, 1, 0.5, 0.9], None)],
)
def test_a_line_that_falls_back_crosses_later_or_nowhere(speeds, crossing):
    assert curves._crossing(np.arange(4), np.log(speeds)) == crossing


@pytest.mark.parametrize(
    ("draw", "error", "message"),
    [
        (lambda: plots.plot_savings([], {"ms": "ms"}), TypeError, "must be a pandas DataFrame"),
        (lambda: plots.plot_savings(COSTS, {}), ValueError, "labels is empty"),
        (lambda: plots.plot_savings(COSTS, {"s": "s"}), ValueError, r"lacks the columns \['s'\]"),
        (
            lambda: plots.plot_savings(-COSTS, {"ms": "ms"}),
            ValueError,
            "'ms' of table has negative",
        ),
        (
            lambda: plots.plot_savings(COSTS.assign(ms=np.inf), {"ms": "ms"}),
            ValueError,
            "'ms' of table has .*infinite",
        ),
        (lambda: plots.plot_speed(COSTS), ValueError, "lacks the columns .*'method'"),
        (lambda: plots.plot_speed(SPEEDS[:0]), ValueError, "is empty"),
        (lambda: plots.plot_speed(SPEEDS.assign(speedup=0)), ValueError, "finite numbers above 0"),
        (lambda: plots.plot_speed(SPEEDS.assign(lower=-1)), ValueError, "'speedup', 'lower'"),
        (lambda: plots.plot_speed(SPEEDS.assign(sparsity=2)), ValueError, "'sparsity'"),
    ],
)
def test_costs_that_cannot_be_drawn_are_refused(draw, error, message):
    with pytest.raises(error, match=message):
        draw()
