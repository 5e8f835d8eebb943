"""The panel, moved as a reader moves it: through its sliders, read through its HTML."""

import base64
import html
import io
import re
import statistics
import time

import keras
import numpy as np
import pytest
from PIL import Image

import keras_pruning as kp
import pruning_utils as pu
from keras_pruning.plots import panel as panel_module
from keras_pruning.plots.panel import explore


@pytest.fixture(scope="module")
def digits():
    return pu.load_dataset("digits")


@pytest.fixture(scope="module")
def network(digits):
    network = pu.build_dense_network(digits.image_shape, units=(30, 20))
    pu.train(network, digits, epochs=20, verbose=False)
    return network


@pytest.fixture
def panel(network, digits):
    return pu.explore(network, digits)


@pytest.fixture(scope="module")
def convolutional():
    """A trained-free classifier that is no chain of Dense layers, with a softmax."""
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(6, 3, activation="relu", name="conv"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(10, activation="softmax", name="out"),
        ]
    )


def move(panel, **values):
    for child in panel.children[:-1]:
        if child.description in values:
            child.value = values.pop(child.description)
    assert not values


def shown(panel) -> str:
    return panel.children[-1].value


def numbers(panel) -> dict[str, tuple[str, str]]:
    """Name of each row of the table of numbers to its cells, pruned and dense."""
    table = re.search(r"<table>(.*?)</table>", shown(panel), re.S)[1]
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in table.split("<tr>")]
    return {row[0]: (row[1], row[2]) for row in rows if row}


def answers(panel) -> list[str]:
    return [html.unescape(text) for text in re.findall(r"(?:before|after): ([^<]*)", shown(panel))]


def pictures(panel) -> dict[str, np.ndarray]:
    found = re.findall(r'<img src="data:image/png;base64,([^"]*)" alt="([^"]*)"', shown(panel))
    return {alt: np.asarray(Image.open(io.BytesIO(base64.b64decode(png)))) for png, alt in found}


def predicted(model, x):
    """Probabilities of a model that gives logits."""
    return keras.ops.convert_to_numpy(keras.ops.softmax(model.predict(x, verbose=0)))


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize(
    ("method", "prune"), [("weights", kp.prune_weights), ("units", kp.prune_units)]
)
def test_the_panel_says_what_the_library_measures(panel, network, digits, method, prune, scope):
    move(panel, sparsity=0.6, method=method, scope=scope, image=3)
    pruned = prune(network, 0.6, scope=scope)
    before, after = predicted(network, digits.x_test), predicted(pruned, digits.x_test)
    table = kp.summary(pruned)
    weights_left = (table["weights"] - table["zeros"]).sum()
    units_left = (table["units"] - table["zero_units"])[~table["output"]].sum()
    assert numbers(panel) == {
        "accuracy": tuple(f"{(p.argmax(1) == digits.y_test).mean():.1%}" for p in (after, before)),
        "weights left": (f"{weights_left:,}", f"{network.count_params():,}"),
        "units left": (f"{units_left:,}", "50"),
    }
    assert answers(panel) == [f"{p[3].argmax()}, {p[3].max():.1%} sure" for p in (before, after)]


def test_the_page_names_the_data_and_how_many_examples_were_used(panel):
    assert "Digits (scikit-learn, 8×8): the first 397 test examples" in shown(panel)


def test_the_masks_are_drawn_kept_weights_dark(panel, network):
    move(panel, sparsity=0.5, method="units")
    mask = kp.prune_units(network, 0.5).get_layer("hidden_1").get_weights()[0] != 0
    [name] = [alt for alt in pictures(panel) if alt.startswith("Mask of hidden_1")]
    np.testing.assert_array_equal(pictures(panel)[name] < 128, mask)
    assert name == "Mask of hidden_1: 50.0% of the weights are left"


def test_a_large_mask_is_drawn_by_weights_that_are_evenly_spaced():
    mask = np.arange(1000 * 301).reshape(1000, 301) % 2 == 0
    drawn = panel_module._sample(mask)
    assert drawn.shape == (100, 100)
    np.testing.assert_array_equal(drawn[[0, -1]][:, [0, -1]] < 128, mask[[0, -1]][:, [0, -1]])


def test_the_chosen_image_is_drawn_with_its_label(panel, digits):
    move(panel, image=5)
    label = digits.class_names[digits.y_test[5]]
    image = digits.x_test[5]
    np.testing.assert_array_equal(pictures(panel)[f"Test image 5, {label}"], image)
    assert f"image 5: {label}" in shown(panel)


def test_every_picture_has_words_in_its_place(panel):
    assert shown(panel).count("<img ") == len(pictures(panel)) == 3


def test_the_network_is_left_as_it_is(network, digits):
    before = [weights.copy() for weights in network.get_weights()]
    panel = pu.explore(network, digits)
    move(panel, sparsity=0.99, method="units")
    for one, other in zip(network.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)


def test_going_back_gives_what_was_there(panel):
    move(panel, sparsity=0.2)
    first = shown(panel)
    move(panel, sparsity=0.97)
    assert shown(panel) != first
    move(panel, sparsity=0.2)
    assert shown(panel) == first


def test_another_image_is_not_measured_again(panel, monkeypatch):
    monkeypatch.setattr(panel_module._Scratch, "_measure", None)  # not callable
    before = shown(panel)
    move(panel, image=1)
    assert shown(panel) != before


def test_any_classifier_is_explored_also_one_with_probabilities(convolutional, digits):
    x, y = digits.x_test[:130, ..., None], digits.y_test[:130]
    panel = explore(convolutional, x, y, sparsity=0.5)
    move(panel, method="units")
    pruned = kp.prune_units(convolutional, 0.5)
    p = pruned.predict(x, verbose=0)
    measured = int(re.search(r"first (\d+)", shown(panel))[1])
    accuracy = (p.argmax(1) == y)[:measured].mean()
    assert numbers(panel)["accuracy"][0] == f"{accuracy:.1%}"
    assert numbers(panel)["units left"] == ("3", "6")
    assert answers(panel)[1] == f"{p[0].argmax()}, {p[0].max():.1%} sure"


def test_examples_that_are_no_images_are_explored_without_a_picture():
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(4), keras.layers.Dense(2)])
    panel = explore(model, np.ones((3, 5), np.float32), np.array([0, 1, 0]), ["no", "yes"])
    assert "image 0: no" in shown(panel)
    assert len(pictures(panel)) == 1


def test_only_weights_are_offered_where_no_units_can_go():
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Embedding(9, 3), keras.layers.Flatten()]
    )
    model.add(keras.layers.Dense(2))
    panel = explore(model, np.zeros((2, 4), np.int32), np.array([0, 1]))
    [method] = [child for child in panel.children[:-1] if child.description == "method"]
    assert list(method.options) == ["weights"]


def test_names_of_classes_are_text_and_not_markup(network, digits):
    names = ["<b>&"] * 10
    assert "<b>" not in shown(explore(network, digits.x_test, digits.y_test, names))


@pytest.mark.parametrize(
    ("constant", "per_example", "expected"),
    [
        (0.0, 1e-6, 1000),
        (0.0, 2e-4, 500),
        (0.1, 2e-4, 200),  # what does not depend on the number is paid once
        (0.0, 1.0, 100),
    ],
)
def test_the_number_of_examples_fits_the_time(monkeypatch, constant, per_example, expected):
    now = [0.0]

    def outputs(x):
        now[0] += constant + per_example * len(x)

    monkeypatch.setattr(panel_module.time, "perf_counter", lambda: now[0])
    assert panel_module._affordable_size(outputs, np.zeros((3000, 1))) == expected


def test_without_a_front_end_the_panel_is_a_sentence(panel):
    assert repr(panel) == "The panel answers while the notebook runs: run this cell."


def test_without_a_front_end_a_picture_stands_for_the_panel(convolutional, digits, root):
    png = root / "images" / "panel.png"
    x, y = digits.x_test[:10, ..., None], digits.y_test[:10]
    bundle = explore(convolutional, x, y, picture=png)._repr_mimebundle_()
    assert base64.b64decode(bundle["image/png"]) == png.read_bytes()
    assert "application/vnd.jupyter.widget-view+json" in bundle  # what a running notebook takes
    bundle = explore(convolutional, x, y, picture=png.with_name("no.png"))._repr_mimebundle_()
    assert "image/png" not in bundle


def test_the_tutorials_panel_has_its_picture_and_starts_where_it_is_told(network, digits, root):
    panel = pu.explore(network, digits, sparsity=0.3)
    [slider] = [child for child in panel.children[:-1] if child.description == "sparsity"]
    assert slider.value == 0.3
    picture = base64.b64decode(panel._repr_mimebundle_()["image/png"])
    assert picture == (root / "images" / "panel.png").read_bytes()


def test_moves_are_timed(panel, capsys):
    seconds = []
    for step in range(20):
        start = time.perf_counter()
        move(panel, sparsity=0.04 * step)
        seconds.append(time.perf_counter() - start)
    with capsys.disabled():
        print(f"\npanel: a move takes {1e3 * statistics.median(seconds):.0f} ms (small network)")
    assert len(seconds) == 20


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"y": np.zeros(396, int)}, ValueError, "Received: 397 and 396"),
        ({"y": np.zeros(397)}, TypeError, "integer labels .* Received: float64"),
        ({"y": np.full(397, 10)}, ValueError, r"in \[0, 10\).* Received: 10 to 10"),
        ({"class_names": ["a", "b"]}, ValueError, "10 classes. Received: 2 class names"),
        ({"sparsity": 1.0}, ValueError, "at most 0.99. Received: 1.0"),
        ({"sparsity": -0.1}, ValueError, "-0.1"),
        ({"model": "model.keras"}, TypeError, "Keras model"),
    ],
)
def test_bad_arguments_are_refused(network, digits, change, error, message):
    arguments = {"model": network, "x": digits.x_test, "y": digits.y_test, **change}
    with pytest.raises(error, match=message):
        explore(**arguments)


def test_a_model_without_classes_is_refused(digits):
    model = keras.Sequential(
        [keras.Input((8,)), keras.layers.Dense(3), keras.layers.Dense(1, name="out")]
    )
    with pytest.raises(ValueError, match=r"one output a class.* \(None, 1\)"):
        explore(model, np.zeros((2, 8)), np.array([0, 1]))


def test_images_of_another_data_set_are_refused(digits):
    with pytest.raises(ValueError, match="images of shape"):
        pu.explore(pu.build_dense_network(units=(4,)), digits)
