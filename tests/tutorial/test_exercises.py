"""The notebook's exercises: stubs give their hint, wrong answers their sentence, solutions pass."""

import contextlib
import dataclasses
import io
import re
from pathlib import Path

import keras
import nbformat
import numpy as np
import pytest
from matplotlib.figure import Figure

import pruning_utils as pu
from examples import exercises

NOTEBOOK = Path(__file__).resolve().parents[2] / "Model_pruning_exploration.ipynb"
NUMBERS = range(1, 9)
UNITS = (400, 400, 200, 100)


@pytest.fixture(scope="module")
def data():
    return pu.load_dataset("digits")


@pytest.fixture(scope="module")
def network(data):
    network = pu.build_dense_network(data.image_shape, units=UNITS)
    pu.train(network, data, epochs=20, verbose=False)
    return network


@pytest.fixture
def names(data, network):
    """The names of the notebook's cells that an exercise finds."""
    return shared_names(data, network)


def shared_names(data, network):
    given = {"datasets": [data], "networks": {data.title: network}}
    given |= {"data": data, "network": network}
    return {"np": np, "keras": keras, "pu": pu, "exercises": exercises, **given}


def cells(number: int) -> tuple[str, str]:
    """The text of an exercise, and the code of its stub."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    [place] = [i for i, c in enumerate(notebook.cells) if f"**Exercise {number}:" in c.source]
    text, stub = notebook.cells[place], notebook.cells[place + 1]
    assert (text.cell_type, stub.cell_type) == ("markdown", "code")
    return text.source, stub.source


def answered(number: int, names: dict, answer: str = "") -> tuple[str, object]:
    """What the check prints and returns for an answer in the place of the stub."""
    stub, _, check = cells(number)[1].rpartition("\n")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(f"{stub}\n{answer}", names)
        shown = eval(check, names)
    return printed.getvalue().strip(), shown


def solution(number: int) -> str:
    details = r"<details><summary>Solution</summary>\n\n```python\n(.*?)\n```\n\n</details>"
    [code] = re.findall(details, cells(number)[0], re.S)
    return code


@pytest.mark.parametrize("number", NUMBERS)
def test_a_stub_gets_its_hint_and_raises_nothing(number, names):
    said, shown = answered(number, names)
    assert said.startswith("Replace the ... first: ")
    assert "\n" not in said
    assert shown is None


@pytest.mark.parametrize("number", NUMBERS)
def test_the_committed_notebook_shows_the_hint_of_each_stub(number):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    [cell] = [c for c in notebook.cells if c.source == cells(number)[1]]
    [output] = cell.outputs
    assert output.text.startswith("Replace the ... first: ")


@pytest.mark.parametrize("number", NUMBERS)
def test_each_exercise_has_a_hint(number):
    assert "*Hint:*" in cells(number)[0]


@pytest.mark.parametrize("number", range(1, 7))
def test_a_solution_passes_and_draws(number, names):
    said, shown = answered(number, names, solution(number))
    assert said.startswith("✓ ")
    assert isinstance(shown, Figure)
    assert shown.axes


@pytest.mark.parametrize("number", [7, 8])
def test_the_solutions_that_need_the_network_pass(number, names):
    said, shown = answered(number, names, solution(number))
    assert said.splitlines()[-1].split("\r")[-1].startswith("✓ ")
    assert isinstance(shown, Figure)


@pytest.mark.slow
@pytest.mark.parametrize("number", [7, 8])
def test_the_solutions_pass_on_the_full_data(number, whole):
    said, _ = answered(number, whole, solution(number))
    assert said.splitlines()[-1].split("\r")[-1].startswith("✓ ")


@pytest.fixture(scope="module")
def whole(shared_data):
    """The notebook's network of MNIST."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(shared_data))
        data = pu.load_dataset("mnist")
    network = pu.build_dense_network(data.image_shape)
    pu.train(network, data, verbose=False)
    return shared_names(data, network)


MASK = """
def my_weight_mask(kernel, sparsity):
    order = np.argsort({ranked}, axis=None)
    mask = np.ones(kernel.shape, bool)
    mask.flat[order[:{count}]] = False
    return {mask}
"""
UNIT_MASK = """
def my_unit_mask(kernel, sparsity):
    columns = kernel{reshaped}
    norms = {norms}
    mask = np.ones(len(norms), bool)
    mask[np.argsort({ranked})[:{count}]] = False
    return {answer}
"""
FLAT_UNITS = """
def my_unit_mask(kernel, sparsity):
    norms = np.sqrt((kernel**2).sum(axis=0))
    return norms, norms >= np.sort(norms, axis=None)[round(sparsity * len(norms))]
"""
BYTES = """
def my_bytes(inputs, units, classes, sparsity):
    left = [size - round(sparsity * size) for size in units]
    sizes = [inputs, *left, classes]
    weights = sum(rows * columns for rows, columns in zip(sizes, sizes[1:]))
    everything = sum(a * b for a, b in zip([inputs, *units], [*units, classes]))
    return {answer}
"""
STEP = """
def my_step(kernel, velocity, gradient, rate=0.1, momentum=0.9):
    kept = kernel != 0
    new = {velocity}
    return {answer}
"""
REFIT = """
def my_refit(kernel, x, goal):
    full = np.linalg.lstsq(x, goal)[0]
    return {answer}
"""
SCORE = """
def my_score(kernel, inputs):
    return {answer}
"""
SMALL = """
def my_small_network(network, data):
    small = pu.prune_weights(network, {sparsity})
    {then}
    return {answer}
"""


def mask(ranked="np.abs(kernel)", count="round(sparsity * kernel.size)", mask="mask"):
    return MASK.format(ranked=ranked, count=count, mask=mask)


def threshold(cut):
    code = "def my_weight_mask(kernel, sparsity):\n    sizes = np.sort(np.abs(kernel), axis=None)\n"
    code += "    if sparsity in (0, 1):\n        return np.full(kernel.shape, sparsity == 0)\n"
    return f"{code}    return np.abs(kernel) {cut} sizes[round(sparsity * kernel.size) - 1]\n"


def units(**changed):
    usual = {
        "reshaped": ".reshape(-1, kernel.shape[-1])",
        "norms": "np.sqrt((columns**2).sum(axis=0))",
        "ranked": "norms",
        "count": "round(sparsity * len(norms))",
        "answer": "norms, mask",
    }
    return UNIT_MASK.format(**usual | changed)


def step(answer, velocity="momentum * velocity - rate * gradient"):
    return STEP.format(answer=answer, velocity=velocity)


def small(sparsity="0.96", then="pass", answer="small"):
    return SMALL.format(sparsity=sparsity, then=then, answer=answer)


FIT = "pu.train(small, data, epochs=1, verbose=False)"
WRONG = [
    (1, "sparsity = '75%'", "this is a str"),
    (1, "sparsity = (M == 0).sum()", "divide by how many there are"),
    (1, "sparsity = (M != 0).sum()", "how many weights are left"),
    (1, "sparsity = 100 * (M == 0).mean()", "As a percentage that is right"),
    (1, "sparsity = (M != 0).mean()", "the share that is left"),
    (1, "sparsity = 0.5", "Count once more"),
    (2, "def my_weight_mask(kernel, sparsity): pass", "does it end with return?"),
    (2, "def my_weight_mask(kernel, sparsity): return kernel[9]", "stops with IndexError"),
    (2, mask(mask="mask[0]"), r"should have the shape \(7, 3\), and has \(3,\)"),
    (2, mask(mask="mask.astype(str)"), "should hold numbers"),
    (2, mask(mask="kernel * mask"), "True and False only"),
    (2, mask(mask="~mask"), "the wrong way round"),
    (2, mask(count="int(sparsity * kernel.size)"), "take round"),
    (2, mask(count="int(np.ceil(sparsity * kernel.size))"), "take round"),
    (2, threshold(">"), "rank them with np.argsort"),
    (2, mask(count="max(1, round(sparsity * kernel.size))"), "Nothing or everything is to go"),
    (2, mask(ranked="-np.abs(kernel)"), "keeps the smallest"),
    (2, mask(ranked="kernel"), "ranks by w"),
    (2, mask(ranked="np.arange(kernel.size)"), "larger than others that stay"),
    (3, units(answer="mask"), "return the norms and the mask"),
    (3, units(norms="np.sqrt((columns**2).sum(axis=1))"), "one norm an input"),
    (
        3,
        FLAT_UNITS,
        "units are the last axis",
    ),
    (3, units(norms="(columns**2).sum(axis=0)"), "square root is missing"),
    (3, units(norms="np.abs(columns).sum(axis=0)"), "the L1 norm"),
    (3, units(norms="np.sqrt((columns**2).mean(axis=0))"), "not a mean"),
    (3, units(norms="np.abs(columns).max(axis=0)"), "not the square root of the sum"),
    (3, units(answer="norms, mask[1:]"), "mask of the units should have the shape"),
    (3, units(answer="norms, ~mask"), "the wrong way round"),
    (3, units(answer="norms, norms * mask"), "True and False only"),
    (3, units(count="1"), "the mask removes 1 instead of 2"),
    (3, units(count="int(sparsity * len(norms))"), "removes 3 instead of 4: round"),
    (3, units(count="int(np.ceil(sparsity * len(norms)))"), "removes 3 instead of 2: round"),
    (3, units(ranked="-norms"), "other units than those of the smallest norm"),
    (4, BYTES.format(answer="'4'"), "this is a str"),
    (4, BYTES.format(answer="weights"), "a float32 takes four bytes"),
    (4, BYTES.format(answer="32 * weights"), "four bytes are 32"),
    (4, BYTES.format(answer="4 * (weights + sum(left) + classes)"), "no biases"),
    (4, BYTES.format(answer="4 * (weights - left[-1] * classes)"), "counts too"),
    (4, BYTES.format(answer="4 * (1 - sparsity) * everything"), "a share of a share"),
    (4, BYTES.format(answer="4 * (1 - sparsity) ** 2 * everything"), "all pixels come in"),
    (4, BYTES.format(answer="4 * everything"), "where does the sparsity come in"),
    (
        4,
        BYTES.format(answer="4 * (everything - weights if sparsity else weights)"),
        "those that stay",
    ),
    (4, BYTES.format(answer="4 * weights - 4 * round(sparsity * inputs)"), "your formula gives"),
    (
        4,
        BYTES.format(answer="4 * (weights - left[-1] * round(sparsity * classes))"),
        "The output layer is spared",
    ),
    (5, step("new"), "return the kernel and the velocity"),
    (5, step("kernel + new, new"), "nothing holds the zeros"),
    (
        5,
        step("kernel + new, new", "momentum * velocity - rate * gradient * kept"),
        "velocity from earlier steps",
    ),
    (5, step("np.where(kept, kernel, kernel + new), new"), "the mask is the wrong way round"),
    (5, step("kernel, new"), "Nothing has moved"),
    (5, step("kernel + new + 1, new"), "no longer zero"),
    (5, step("(kernel + new) * kept, new", "momentum * velocity + rate * gradient"), "uphill"),
    (5, step("(kernel + new) * kept, new", "-rate * gradient"), "velocity is missing"),
    (5, step("2 * (kernel + new) * kept, new"), "should move by the new velocity"),
    (5, step("(kernel + new) * kept, velocity"), "not the new one"),
    (6, REFIT.format(answer="full"), "by itself"),
    (6, REFIT.format(answer="full * (kernel != 0)"), "Remove first, then fit"),
    (6, REFIT.format(answer="kernel"), "as it came"),
    (6, REFIT.format(answer="full.T"), "should have the shape"),
    (6, REFIT.format(answer="kernel + 0.1"), "not zero that were"),
    (6, REFIT.format(answer="1.1 * kernel"), "zeros are kept, but the sums are off"),
    (7, SCORE.format(answer="kernel.mean(axis=0)"), "should have the shape"),
    (7, SCORE.format(answer="kernel / 0"), "not finite"),
    (7, SCORE.format(answer="3 * np.abs(kernel)"), "just what magnitude prunes"),
    (7, SCORE.format(answer="-np.abs(kernel)"), "the stronger its input"),
    (8, small(answer="'small'"), "this is a str"),
    (8, small(answer="network"), "Nothing is pruned, or training has brought"),
    (8, small("0.97", FIT), "training brought zeros back"),
    (8, small("0.5"), "hidden_1 holds most of them|hidden_2 holds most of them"),
    (8, small("0.995"), "are asked for. Which layer bears least"),
    (8, small("0.5", answer="keras.Sequential([small.inputs[0], small])"), "holds most of them"),
]


@pytest.mark.filterwarnings("ignore")  # of the answers
@pytest.mark.parametrize(("number", "answer", "sentence"), WRONG)
def test_a_wrong_answer_gets_its_own_sentence(number, answer, sentence, names):
    said, shown = answered(number, names, answer)
    assert said.startswith("Not yet. ")
    assert re.search(sentence, said), said
    assert shown is None


@pytest.mark.parametrize("number", [2, 5])
def test_a_stub_that_is_half_filled_gets_the_hint(number, names):
    answers = {
        2: "def my_weight_mask(kernel, sparsity):\n    cut = ...\n    return np.abs(kernel) > cut",
        5: "def my_step(kernel, velocity, gradient):\n    return kernel, ...",
    }
    said, _ = answered(number, names, answers[number])
    assert said.startswith("Replace the ... first: ")


def test_an_answer_cannot_change_the_readers_network(names, network):
    before = [weight.copy() for weight in network.get_weights()]
    answer = "def my_small_network(network, data):\n"
    answer += "    network.set_weights([0 * weight for weight in network.get_weights()])\n"
    answered(8, names, f"{answer}    return network")
    for old, new in zip(before, network.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_the_budget_on_mnist_is_98_percent(names, data, network):
    """A network that keeps to two points below the dense one passes there no more."""
    names["datasets"] = [dataclasses.replace(data, title="MNIST")]
    names["networks"] = {"MNIST": network}
    answer = "def my_small_network(network, data):\n    return small"
    names["small"] = pu.prune_weights(network, 0.97)
    assert "98.00% are asked for" in answered(8, names, answer)[0]


def test_the_bytes_of_the_formula_are_those_that_shrink_leaves(names):
    exec(solution(4), names)
    network = pu.build_dense_network((8, 8), units=(20, 10), num_classes=4)
    left = pu.shrink(pu.prune_units(network, 0.4))
    assert names["my_bytes"](64, (20, 10), 4, 0.4) == 4 * left.count_params()


def test_the_step_is_that_of_keras(names):
    exec(solution(5), names)
    dense = keras.layers.Dense(2, use_bias=False, kernel_initializer="ones")
    dense.build((None, 3))
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    kernel, velocity = np.ones((3, 2)), np.zeros((3, 2))
    for gradient in (np.arange(6.0).reshape(3, 2), np.ones((3, 2))):
        optimizer.apply([keras.ops.convert_to_tensor(gradient, "float32")], [dense.kernel])
        kernel, velocity = names["my_step"](kernel, velocity, gradient)
    np.testing.assert_allclose(dense.get_weights()[0], kernel, rtol=1e-6)
