"""The change of the weights that are left, against `np.linalg.solve` and `lstsq` unit by unit."""

import numpy as np
import pytest

from keras_pruning.recovery.least_squares import ridge_step

FEATURES, UNITS = 12, 7


def system(examples=60, *, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(examples, FEATURES)) + 0.5
    return x, rng.normal(size=(examples, UNITS))


def solved(x, errors, keep, damping):
    """The normal equations of each unit, over the weights that it keeps."""
    ridge = damping * np.mean([np.sum(column**2) for column in x.T])
    change = np.zeros(keep.shape)
    for unit in range(keep.shape[1]):
        kept = [feature for feature in range(keep.shape[0]) if keep[feature, unit]]
        if kept:
            part = x[:, kept]
            matrix = part.T @ part + ridge * np.eye(len(kept))
            change[kept, unit] = np.linalg.solve(matrix, part.T @ errors[:, unit])
    return change


def step(x, errors, keep, damping):
    return ridge_step(x.T @ x, x.T @ errors, keep, damping)


def unit_keep():
    keep = np.ones((FEATURES, UNITS), bool)
    keep[:, [1, 4]] = False
    return keep


KEPT = {
    "random": np.random.default_rng(1).random((FEATURES, UNITS)) < 0.4,
    "all": np.ones((FEATURES, UNITS), bool),
    "one weight a unit": np.eye(FEATURES, UNITS, dtype=bool),
    "whole units": unit_keep(),
    "some inputs": np.repeat(np.arange(FEATURES)[:, None] % 3 != 0, UNITS, axis=1),
    "two of four": np.tile([[True], [False], [False], [True]], (FEATURES // 4, UNITS)),
}


@pytest.mark.parametrize("damping", [1e-8, 0.01, 3.0])
@pytest.mark.parametrize("keep", KEPT.values(), ids=KEPT)
def test_each_unit_gets_the_solution_over_the_weights_that_it_keeps(keep, damping):
    x, errors = system()
    change = step(x, errors, keep, damping)
    exactly = 1e-9 if damping == 1e-8 else 1e-5  # too little for float32
    np.testing.assert_allclose(change, solved(x, errors, keep, damping), atol=exactly)
    assert not change[~keep].any()
    assert change[keep].all()


def test_units_that_keep_the_same_weights_in_any_order_get_their_own_solution():
    x, errors = system()
    keep = np.zeros((FEATURES, UNITS), bool)
    keep[::2, ::2] = True  # units 0, 2, 4, 6 keep one set
    keep[1::2, 1::2] = True  # and units 1, 3, 5 the other
    np.testing.assert_allclose(step(x, errors, keep, 0.1), solved(x, errors, keep, 0.1), atol=1e-5)


def test_where_nothing_is_kept_nothing_changes():
    x, errors = system()
    keep = np.zeros((FEATURES, UNITS), bool)
    np.testing.assert_array_equal(step(x, errors, keep, 0.01), np.zeros((FEATURES, UNITS)))


def test_inputs_that_are_always_zero_change_nothing():
    keep = np.ones((FEATURES, UNITS), bool)
    x = np.zeros((5, FEATURES))
    np.testing.assert_array_equal(step(x, np.ones((5, UNITS)), keep, 0.01), np.zeros(keep.shape))


def test_a_weight_of_an_input_that_is_always_zero_is_left_alone():
    x, errors = system()
    x[:, [0, 5]] = 0
    keep = KEPT["random"]
    change = step(x, errors, keep, 0.01)
    assert not change[[0, 5]].any()
    np.testing.assert_allclose(change, solved(x, errors, keep, 0.01), atol=1e-5)


def test_no_errors_no_change():
    x, errors = system()
    assert not step(x, 0 * errors, KEPT["random"], 0.01).any()


@pytest.mark.parametrize("examples", [1, 5])
def test_fewer_examples_than_inputs_are_solved_by_the_damping(examples):
    x, errors = system(examples)
    keep = np.ones((FEATURES, UNITS), bool)
    augmented = np.concatenate(
        [x, np.sqrt(0.01 * np.mean(np.sum(x**2, axis=0))) * np.eye(FEATURES)]
    )
    goal = np.concatenate([errors, np.zeros((FEATURES, UNITS))])
    expected = np.linalg.lstsq(augmented, goal)[0]
    np.testing.assert_allclose(step(x, errors, keep, 0.01), expected, atol=1e-4)


def test_inputs_that_depend_on_each_other_are_solved_at_a_damping_below_rounding():
    x, errors = system()
    x[:, 6:] = x[:, :6]  # the matrix of the normal equations has half its rank
    keep = np.ones((FEATURES, UNITS), bool)
    change = step(x, errors, keep, 1e-30)
    least = np.linalg.lstsq(x, errors)[0]
    np.testing.assert_allclose(x @ change, x @ least, atol=1e-5)
    assert np.abs(change).max() < 10 * np.abs(least).max()


def test_the_arguments_are_not_changed():
    x, errors = system()
    given = [x.T @ x, x.T @ errors, KEPT["random"].copy()]
    before = [array.copy() for array in given]
    ridge_step(*given, 0.01)
    for array, as_it_was in zip(given, before, strict=True):
        np.testing.assert_array_equal(array, as_it_was)


@pytest.mark.parametrize("share", [0.3, 0.55, 0.9, 1.0])
def test_many_units_and_patterns_give_the_same_numbers_each_time(share):
    rng = np.random.default_rng(2)
    x, errors = rng.normal(size=(200, 40)), rng.normal(size=(200, 90))
    x[:, 3] = 0
    keep = rng.random((40, 90)) < share
    first = step(x, errors, keep, 0.01)
    np.testing.assert_array_equal(first, step(x, errors, keep, 0.01))
    np.testing.assert_allclose(first, solved(x, errors, keep, 0.01), atol=1e-5)


@pytest.mark.parametrize("size", [1e-30, 1e25])
def test_inputs_beyond_the_range_of_float32_are_solved(size):
    x, errors = system()
    keep = KEPT["random"]
    change = step(size * x, errors, keep, 0.01)
    np.testing.assert_allclose(size * change, solved(x, errors, keep, 0.01), atol=1e-5)
