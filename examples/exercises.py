"""Checks of the notebook's exercises: each says in words what is wrong, or draws what is right.

No check raises an error for an answer. What is expected is computed anew, with NumPy and Keras.
"""

from __future__ import annotations

import functools
import numbers
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_pruning.plots import plot_matrix

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, VERMILLION, GREY, PALE = "#0072B2", "#D55E00", "#767676", "#C8C8C8"  # as in other figures


class Unfilled(Exception):
    """The answer still holds a `...`."""


class Wrong(Exception):
    """What is wrong with an answer, as a sentence for the reader."""


def exercise(start: str) -> Callable:
    """Makes of a function that returns praise and a figure, or raises, one that prints."""

    def decorate(check: Callable) -> Callable:
        @functools.wraps(check)
        def checked(*given: Any) -> Figure | None:
            try:
                praise, figure = check(*given)
            except Unfilled:
                print(f"Replace the ... first: {start}")
            except Wrong as wrong:
                print(f"Not yet. {wrong}")
            else:
                print(f"✓ {praise}")
                return figure
            return None

        return checked

    return decorate


# ---- the exercises


@exercise("count the zeros of M, and divide by how many numbers it holds.")
def check_sparsity(answer: Any, matrix: np.ndarray) -> tuple[str, Figure]:
    """Exercise 1: the sparsity of a matrix."""
    if answer is ...:
        raise Unfilled
    if not isinstance(answer, numbers.Real):
        raise Wrong(f"One number is asked for, and this is a {type(answer).__name__}.")
    zeros, size = int((matrix == 0).sum()), matrix.size
    _refuse_numbers(
        float(answer),
        {
            "That is how many weights are zero: divide by how many there are.": zeros,
            "That is how many weights are left: sparsity counts the zeros.": size - zeros,
            "As a percentage that is right: a share lies between 0 and 1.": 100 * zeros / size,
            "That is the share that is left: sparsity is the share that is gone.": 1 - zeros / size,
        },
    )
    if not np.isclose(answer, zeros / size):
        raise Wrong(f"Count once more: how many of the {size} numbers are zero?")
    figure, [ax] = _panels(1)
    plot_matrix(matrix, mask=matrix != 0, ax=ax, title=f"{zeros} of {size} are zero")
    return f"{zeros} of {size} weights are zero: a sparsity of {zeros / size:.0%}.", figure


@exercise("my_weight_mask must return True for each weight that stays, False for the others.")
def check_weight_mask(my_mask: Callable) -> tuple[str, Figure]:
    """Exercise 2: a weight mask of exactly round(s * n) zeros, also where weights are equal."""
    random = np.random.default_rng(0).normal(size=(7, 3))
    equal = np.array([[0.5, -0.5, 1.0, 0.5], [-0.5, 2.0, 0.5, -1.0]])
    cases = [(random, share) for share in (0.75, 0.9, 0.3)]  # of 21 weights 15.75, 18.9 and 6.3
    for kernel, sparsity in (*cases, (equal, 0.5), (random, 0), (random, 1)):
        mask = _mask(_ask(my_mask, kernel, sparsity), kernel.shape, "The mask")
        pruned = round(sparsity * kernel.size)
        zeros = int((~mask).sum())
        if zeros == kernel.size - pruned != pruned:
            raise Wrong("It is the wrong way round: True is for the weights that stay.")
        if zeros != pruned:
            asked = f"Asked for {sparsity:.0%} of {kernel.size} weights"
            why = "sparsity * size is seldom a whole number: take round() of it."
            if kernel is equal:
                why = "Weights of equal size stand on both sides of the cut, and a threshold takes "
                why += "all or none: rank them with np.argsort, and take the first ones."
            elif sparsity in (0, 1):
                why = "Nothing or everything is to go: does your cut exist then?"
            raise Wrong(f"{asked}, it removes {zeros} instead of {pruned}. {why}")
        if 0 < pruned < kernel.size:
            _refuse_wrong_ranks(kernel, mask)
    figure, axes = _panels(2)
    plot_matrix(equal, ax=axes[0], title="five weights of size 0.5")
    mask = np.asarray(my_mask(equal.copy(), 0.5)).astype(bool)
    plot_matrix(equal, mask=mask, ax=axes[1], title="half of all pruned: just four of them")
    return "Exactly round(s · n) weights go, the smallest first, ties or not.", figure


@exercise("my_unit_mask must return the norm of each unit, and True for each unit that stays.")
def check_unit_mask(my_units: Callable) -> tuple[str, Figure]:
    """Exercise 3: norms and mask of the units of a dense or convolutional kernel."""
    rng = np.random.default_rng(3)
    dense = rng.normal(size=(6, 8)) * np.linspace(0.3, 1.5, 8)
    convolution = rng.normal(size=(3, 3, 2, 5)) * np.array([1.0, 0.2, 0.6, 1.4, 0.4])
    cases = [(dense, share) for share in (0.25, 0.3, 0.45)]  # of eight units 2, 2.4 and 3.6
    for kernel, sparsity in (*cases, (convolution, 0.6)):
        columns = kernel.reshape(-1, kernel.shape[-1])
        expected = np.linalg.norm(columns, axis=0)
        norms, mask = _pair(_ask(my_units, kernel, sparsity), "the norms and the mask")
        _refuse_wrong_norms(norms, kernel)
        norms = _array(norms, expected.shape, "The norms")
        sizes = np.abs(columns)
        _refuse_arrays(
            norms,
            {
                "The square root is missing from the norms.": expected**2,
                "These are sums of |w|, the L1 norm: the L2 norm adds squares.": sizes.sum(axis=0),
                "A norm is a sum over the unit's weights, not a mean.": np.sqrt(
                    (columns**2).mean(axis=0)
                ),
            },
        )
        if not np.allclose(norms, expected):
            raise Wrong("The norms are not the square root of the sum of each unit's squares.")
        mask = _mask(mask, expected.shape, "The mask of the units")
        rank = np.argsort(np.argsort(expected))
        right = rank >= round(sparsity * len(expected))
        if (mask == ~right).all():
            raise Wrong("The mask is the wrong way round: True is for the units that stay.")
        if (~mask).sum() != (~right).sum():
            text = f"Asked for {sparsity:.0%} of {len(expected)} units, the mask removes "
            raise Wrong(f"{text}{(~mask).sum()} instead of {(~right).sum()}: round() tells.")
        if (mask != right).any():
            raise Wrong("The mask removes other units than those of the smallest norm.")
    figure, [ax] = _panels(1)
    colors = [BLUE if kept else PALE for kept in right]
    ax.bar(range(len(expected)), expected, color=colors)
    ax.set(title="filters: blue ones stay", xlabel="unit", ylabel="L2 norm")
    return "So units are ranked, those of a convolution as well.", figure


@exercise("my_bytes must return the bytes of all kernels of the smaller network.")
def check_bytes(my_bytes: Callable) -> tuple[str, Figure]:
    """Exercise 4: bytes of the network that is left without a share of its hidden units."""
    inputs, units, classes = 784, (1000, 1000, 500, 200), 10
    for sparsity in (0, 0.5, 0.8):
        answer = _ask(my_bytes, inputs, units, classes, sparsity)
        if not isinstance(answer, numbers.Real):
            raise Wrong(f"One number is asked for, and this is a {type(answer).__name__}.")
        right, all_bytes = (_bytes(inputs, units, classes, share) for share in (sparsity, 0))
        left = 1 - sparsity
        kept = [round(left * size) for size in units]
        _refuse_numbers(
            float(answer),
            {
                "That is the number of weights: a float32 takes four bytes.": right / 4,
                "A byte has eight bits: four bytes are 32.": right * 8,
                "There are no biases in this network.": right + 4 * (sum(kept) + classes),
                "These are the hidden kernels: the last one, to the classes, counts too.": right
                - 4 * kept[-1] * classes,
            }
            | (
                {
                    "A kernel between two layers loses columns, and rows as well: it keeps a "
                    "share of a share.": left * all_bytes,
                    "Not every kernel loses on both sides: all pixels come in, and all classes "
                    "go out.": left**2 * all_bytes,
                    "These are the bytes that go: those that stay are asked for.": all_bytes
                    - right,
                    "That is the dense network: where does the sparsity come in?": all_bytes,
                    "The output layer is spared: its units are the classes.": right
                    - 4 * kept[-1] * (classes - round(left * classes)),
                }
                if sparsity
                else {}
            ),
        )
        if not np.isclose(answer, right, rtol=1e-6):
            text = f"Without {sparsity:.0%} of the units your formula gives {answer:,.0f} bytes, "
            raise Wrong(f"{text}and the network takes {right:,}: kernels are rows × columns.")
    figure, [ax] = _panels(1)
    shares = np.linspace(0, 0.95, 20)
    sizes = [my_bytes(inputs, units, classes, share) / 1e6 for share in shares]
    ax.plot(100 * shares, sizes, color=BLUE)
    ax.plot(100 * shares, (1 - shares) * sizes[0], color=GREY, linestyle="--", linewidth=1)
    ax.set(title="rows go, and columns", xlabel="units removed (%)", ylabel="weights (MB)")
    ax.set_ylim(0)
    praise = "Half of the units is a third of the bytes (grey: in proportion): a quarter of those "
    return f"{praise}between hidden layers, half of the first and last kernel.", figure


@exercise("my_step must return the new kernel, its zeros kept, and the new velocity.")
def check_step(my_step: Callable) -> tuple[str, Figure]:
    """Exercise 5: one step of gradient descent with momentum that leaves zeros alone."""
    kernel = np.array([[0.8, 0.0, -0.5], [0.0, 1.2, 0.0], [-0.9, 0.0, 0.7]])
    velocity = np.array([[0.1, 0.3, -0.2], [-0.2, 0.1, 0.4], [0.0, 0.2, 0.1]])
    gradient = np.array([[1.0, -2.0, 0.5], [3.0, -1.0, 1.0], [-1.0, 2.0, 2.0]])
    answer = _pair(_ask(my_step, kernel, velocity, gradient), "the kernel and the velocity")
    new, speed = (
        _array(part, kernel.shape, name)
        for part, name in zip(answer, ("The kernel", "The velocity"), strict=True)
    )
    kept = kernel != 0
    right_speed = 0.9 * velocity - 0.1 * gradient
    right = kernel + right_speed
    gradient_alone = kernel + 0.9 * velocity - 0.1 * gradient * kept
    _refuse_arrays(
        new,
        {
            "Every pruned weight has come back: nothing holds the zeros.": right,
            "The gradient is masked, and pruned weights move all the same: the velocity from "
            "earlier steps still pushes them. Mask the weights.": gradient_alone,
            "The zeros move, and the weights do not: the mask is the wrong way round.": np.where(
                kept, kernel, right
            ),
            "Nothing has moved.": kernel,
        },
    )
    if new[~kept].any():
        raise Wrong("Some pruned weights are no longer zero.")
    _refuse_arrays(
        new[kept],
        {
            "It goes uphill: a step is taken against the gradient.": (
                kernel + 0.9 * velocity + 0.1 * gradient
            )[kept],
            "The velocity is missing: new velocity = momentum · old − rate · gradient.": (
                kernel - 0.1 * gradient
            )[kept],
        },
    )
    if not np.allclose(new[kept], right[kept]):
        raise Wrong("The weights that stay should move by the new velocity.")
    if not np.allclose(speed[kept], right_speed[kept]):
        raise Wrong("The kernel is right, but the velocity returned is not the new one.")
    figure, axes = _panels(2)
    plot_matrix(kernel, mask=kept, ax=axes[0], title="before the step")
    plot_matrix(new + 0.0, mask=kept, ax=axes[1], title="after the step")
    return "The weights move, the zeros stay: this is what KeepZeros does.", figure


@exercise("my_refit must return a kernel with the same zeros that fits the goal best.")
def check_refit(my_refit: Callable) -> tuple[str, Figure]:
    """Exercise 6: least squares for each unit, over the inputs that it still has."""
    rng = np.random.default_rng(6)
    before = rng.normal(size=(80, 4)) @ rng.normal(size=(4, 9))  # what the layer heard
    x = np.maximum(before + 0.5 * rng.normal(size=before.shape), 0)  # and what it hears now
    dense = rng.normal(size=(9, 5))
    kept = np.abs(dense) >= np.sort(np.abs(dense), axis=0)[5]  # four of nine inputs a unit
    kernel, goal = dense * kept, np.maximum(before, 0) @ dense
    right = np.zeros_like(kernel)
    for unit in range(kernel.shape[1]):  # the normal equations of the inputs that are left
        a = x[:, kept[:, unit]]
        right[kept[:, unit], unit] = np.linalg.solve(a.T @ a, a.T @ goal[:, unit])
    new = _array(_ask(my_refit, kernel, x, goal), kernel.shape, "The kernel")
    full = np.linalg.lstsq(x, goal, rcond=None)[0]

    def off(k: np.ndarray) -> str:
        return f"{np.linalg.norm(x @ k - goal) / np.linalg.norm(goal):.1%}"

    best = f"the sums are off by {off(new)}, where {off(right)} can be reached"
    _refuse_arrays(
        new,
        {
            "The pruned weights have come back. Fit each unit by itself, with the columns of x "
            "alone whose weights it still has.": full,
            f"You fit all weights, then remove some, and {best}: those that stay count on the "
            "others. Remove first, then fit.": full * kept,
            "This is the kernel as it came.": kernel,
        },
    )
    if new[~kept].any():
        raise Wrong("Some weights are not zero that were.")
    if not np.allclose(new, right, atol=1e-4):
        raise Wrong(f"The zeros are kept, but {best}.")
    figure, [ax] = _panels(1)
    for k, color, name in ((kernel, PALE, "pruned"), (new, BLUE, "refitted")):
        ax.plot(goal.ravel(), (x @ k).ravel(), ".", color=color, label=f"{name}, off by {off(k)}")
    ax.axline((0, 0), slope=1, color=GREY, linewidth=1)
    ax.set(xlabel="sums of the dense layer", ylabel="sums of the pruned one")
    ax.legend(frameon=False, fontsize="small")
    return f"From {off(kernel)} to {off(new)}, with as many zeros.", figure


@exercise("my_score must return a number for each weight: the lowest are pruned first.")
def check_score(my_score: Callable, network: keras.Model, data: Any) -> tuple[str, Figure]:
    """Exercise 7: a score by which layers are off by less than by magnitude, without 95 %."""
    layers = [layer for layer in network.layers if layer.weights]
    *hidden, last = [layer.get_weights()[0] for layer in layers]
    shown, heard = _heard(hidden, data.x_train[:2_000]), _heard(hidden, data.x_test[:1_000])
    off, networks = {"magnitude": [], "yours": []}, {"magnitude": [], "yours": []}
    for kernel, inputs, tested in zip(hidden, shown[:-1], heard[:-1], strict=True):
        score = _array(_ask(my_score, kernel, inputs), kernel.shape, "The score")
        if not np.isfinite(score).all():
            raise Wrong("Some scores are not finite: is there a division by zero?")
        for name, ranks in {"magnitude": np.abs(kernel), "yours": score}.items():
            pruned = _pruned(kernel, ranks, 0.95)
            goal = tested @ kernel
            off[name].append(float(np.linalg.norm(tested @ pruned - goal) / np.linalg.norm(goal)))
            networks[name].append(pruned)
    pairs = zip(networks["yours"], networks["magnitude"], strict=True)
    if all((yours == magnitude).all() for yours, magnitude in pairs):
        raise Wrong("It prunes just what magnitude prunes: let the inputs have a say.")
    yours, magnitude = (np.mean(off[name]) for name in ("yours", "magnitude"))
    result = f"The sums are off by {yours:.1%}, by magnitude {magnitude:.1%}"
    if yours >= magnitude:
        raise Wrong(f"{result}. A weight matters more the larger it is and the stronger its input.")
    right = {
        name: (_heard(kernels, data.x_test)[-1] @ last).argmax(axis=1) == data.y_test
        for name, kernels in networks.items()
    }
    figure, [ax] = _panels(1)
    for name, color, shift in (("magnitude", GREY, -0.2), ("yours", BLUE, 0.2)):
        places = np.arange(len(hidden)) + shift
        ax.bar(places, [100 * share for share in off[name]], 0.36, color=color, label=name)
    ax.set_xticks(range(len(hidden)), [layer.name for layer in layers[:-1]])
    ax.set(ylabel="sums are off by (%)", ylim=(0, 100))
    ax.legend(frameon=False, fontsize="small", ncols=2)
    praise = f"{result}. (Before any refit {right['yours'].mean():.0%} of the answers are right, "
    return f"{praise}by magnitude {right['magnitude'].mean():.0%}.)", figure


@exercise("my_small_network must return a pruned copy of the network.")
def check_budget(my_network: Callable, network: keras.Model, data: Any) -> tuple[str, Figure]:
    """Exercise 8: below 5 % of the weights at 98 %, or two points below dense on other data."""
    copy = keras.models.clone_model(network)
    copy.set_weights(network.get_weights())
    answer = _ask(my_network, copy, data)
    if not isinstance(answer, keras.Model):
        raise Wrong(f"A Keras model is asked for, and this is a {type(answer).__name__}.")
    total = network.count_params()
    left = {
        layer.name: sum(np.count_nonzero(weight) for weight in layer.get_weights())
        for layer in answer.layers
        if layer.weights
    }
    share = sum(left.values()) / total
    is_whole = data.title == "MNIST"
    needed = 0.98 if is_whole else _accuracy(network, data) - 0.02
    accuracy = _accuracy(answer, data)
    result = f"{share:.2%} of the weights are left, {accuracy:.2%} are right"
    if share >= 0.05:
        largest = max(left, key=lambda name: left[name])
        why = f"{largest} holds most of them, {left[largest]:,}. (If you had pruned more, training "
        why += "brought zeros back: callbacks=[pu.KeepZeros()] holds them.)"
        if share > 0.95:
            why = "Nothing is pruned, or training has brought the zeros back: use KeepZeros."
        raise Wrong(f"{result}: too large, below 5 % is asked for. {why}")
    if accuracy < needed:
        why = f"{result}: {needed:.2%} are asked for. Which layer bears least? Is the network "
        raise Wrong(f"{why}refitted with reconstruct, and trained on with KeepZeros?")
    figure, [ax] = _panels(1)
    ax.barh(list(left), [count / 1000 for count in left.values()], color=BLUE)
    ax.invert_yaxis()
    ax.set(title=result, xlabel="thousands of weights left")
    return f"{result}.", figure


# ---- what the checks share


def _ask(function: Callable, *given: Any) -> Any:
    """What the reader's function makes of copies of these arrays."""
    copies = [part.copy() if isinstance(part, np.ndarray) else part for part in given]
    try:
        answer = function(*copies)
    except Exception as error:
        if "ellipsis" in str(error).lower():
            raise Unfilled from error
        raise Wrong(f"Your function stops with {type(error).__name__}: {error}") from error
    parts = answer if isinstance(answer, tuple) else (answer,)
    if any(part is ... for part in parts):
        raise Unfilled
    if answer is None:
        raise Wrong("Your function returns nothing: does it end with return?")
    return answer


def _array(value: Any, shape: tuple[int, ...], name: str) -> np.ndarray:
    array = np.asarray(value)
    if array.shape != shape:
        raise Wrong(f"{name} should have the shape {shape}, and has {array.shape}.")
    if array.dtype.kind not in "bifu":
        raise Wrong(f"{name} should hold numbers, and holds {array.dtype}.")
    return array


def _mask(value: Any, shape: tuple[int, ...], name: str) -> np.ndarray:
    array = _array(value, shape, name)
    if not np.isin(array, (0, 1)).all():
        raise Wrong("A mask holds True and False only: compare, do not multiply.")
    return array.astype(bool)


def _pair(value: Any, names: str) -> tuple[Any, Any]:
    if not isinstance(value, tuple) or len(value) != 2:
        raise Wrong(f"Two things are asked for: return {names}, with a comma between them.")
    return value


def _refuse_numbers(answer: float, mistakes: dict[str, float]) -> None:
    for sentence, value in mistakes.items():
        if np.isclose(answer, value, rtol=1e-6):
            raise Wrong(sentence)


def _refuse_arrays(answer: np.ndarray, mistakes: dict[str, np.ndarray]) -> None:
    for sentence, value in mistakes.items():
        if np.allclose(answer, value, atol=1e-6):
            raise Wrong(sentence)


def _refuse_wrong_ranks(kernel: np.ndarray, mask: np.ndarray) -> None:
    sizes = np.abs(kernel)
    if sizes[mask].min() >= sizes[~mask].max():
        return
    if sizes[mask].max() <= sizes[~mask].min():
        raise Wrong("It keeps the smallest weights: those should go first.")
    if kernel[mask].min() >= kernel[~mask].max():
        raise Wrong("It ranks by w, so that large negative weights go first: rank by |w|.")
    raise Wrong("It removes some weights that are larger than others that stay.")


def _refuse_wrong_norms(norms: Any, kernel: np.ndarray) -> None:
    shape = np.shape(norms)
    if kernel.ndim == 2 and shape == kernel.shape[:1]:
        raise Wrong("This is one norm an input: a unit is a column, so sum over axis 0.")
    if kernel.ndim == 4 and shape != kernel.shape[-1:]:
        text = "Right for a dense kernel. In one of a convolution, (rows, columns, inputs, units), "
        raise Wrong(f"{text}units are the last axis: reshape it to (-1, units) first.")


def _bytes(inputs: int, units: tuple[int, ...], classes: int, sparsity: float) -> int:
    network = keras.Sequential([keras.Input((inputs,))])
    for size in (*(size - round(sparsity * size) for size in units), classes):
        network.add(keras.layers.Dense(size, use_bias=False))
    return sum(weight.nbytes for weight in network.get_weights())


def _heard(kernels: list[np.ndarray], images: np.ndarray) -> list[np.ndarray]:
    """What each hidden layer hears, and then what the last one sends on."""
    heard = [images.reshape(len(images), -1).astype(np.float32) / 255]
    for kernel in kernels:
        heard.append(np.maximum(heard[-1] @ kernel, 0))
    return heard


def _pruned(kernel: np.ndarray, scores: np.ndarray, sparsity: float) -> np.ndarray:
    kernel, count = kernel.copy(), round(sparsity * kernel.size)
    kernel.flat[np.argpartition(scores, count, axis=None)[:count]] = 0
    return kernel


def _accuracy(network: keras.Model, data: Any) -> float:
    answers = network.predict(data.x_test, batch_size=1_000, verbose=0).argmax(axis=1)
    return float((answers == data.y_test).mean())


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    """A small figure that the cell shows once, by returning it."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, count, figsize=(1 + 3.4 * count, 2.6), layout="constrained", squeeze=False
    )
    plt.close(figure)
    return figure, list(axes[0])
