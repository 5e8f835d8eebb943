"""The laws of the masks: exact counts, ties by position, nested, any float type."""

import math
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from keras_pruning.pruning.masks import (
    masks_by_magnitude,
    masks_by_score,
    n_of_m_mask,
    n_of_m_mask_by_score,
    num_pruned,
    unit_mask,
    unit_norms,
    weight_mask,
)

DTYPES = (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)
INF = math.inf


def floats_with_ties():
    few = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 2.0, INF, -INF])
    return few | st.floats(width=16, allow_nan=False)


@st.composite
def kernels(draw, min_dims=1):
    shape = draw(hnp.array_shapes(min_dims=min_dims, max_dims=4, min_side=0, max_side=6))
    array = draw(hnp.arrays(np.float64, shape, elements=floats_with_ties()))
    return array.astype(draw(st.sampled_from(DTYPES)))


def lowest_by_sorting(scores, count):
    """The oracle: a stable sort ranks by score, then by position."""
    mask = np.ones(scores.size, bool)
    mask[np.argsort(scores.reshape(-1), kind="stable")[:count]] = False
    return mask.reshape(scores.shape)


def assert_lowest_of_the_row_go(masks, arrays, count, rank=np.abs):
    """Compares masks of several arrays with one stable sort of all their entries in a row."""
    row = np.concatenate([rank(a.astype(np.float64)).reshape(-1) for a in arrays])
    assert [m.shape for m in masks] == [a.shape for a in arrays]
    found = np.concatenate([m.reshape(-1) for m in masks])
    np.testing.assert_array_equal(found, lowest_by_sorting(row, count))


# Weights


def test_smallest_magnitudes_are_pruned():
    kernel = np.array([[0.1, -3.0, 0.2], [2.0, -0.5, 1.0]], np.float32)
    expected = [[False, True, False], [True, False, True]]
    assert weight_mask(kernel, 0.5).tolist() == expected


def test_equal_weights_lose_exactly_the_first_ones():
    assert weight_mask(np.ones(10), 0.5).tolist() == [False] * 5 + [True] * 5


def test_zero_and_minus_zero_are_equal():
    assert weight_mask(np.array([0.0, -0.0, 0.0, 1.0]), 0.5).tolist() == [False, False, True, True]


def test_infinities_go_last():
    assert weight_mask(np.array([-INF, 1e30, INF, 0.0]), 0.5).tolist() == [True, False, True, False]


def test_sparsity_zero_keeps_and_one_prunes_everything():
    kernel = np.array([[0.0, 1.0], [INF, -2.0]])
    assert weight_mask(kernel, 0).all()
    assert not weight_mask(kernel, 1).any()


@pytest.mark.parametrize("sparsity, count", [(0.29, 29), (0.5, 50), (0.005, 0), (0.015, 2)])
def test_count_is_pythons_round(sparsity, count):
    assert num_pruned(100, sparsity) == count
    assert np.count_nonzero(~weight_mask(np.arange(1.0, 101.0), sparsity)) == count


@given(kernels(min_dims=0), st.floats(0, 1))
def test_mask_equals_a_stable_sort_by_magnitude(kernel, sparsity):
    magnitudes = np.abs(kernel.astype(np.float64))
    expected = lowest_by_sorting(magnitudes, round(sparsity * kernel.size))
    np.testing.assert_array_equal(weight_mask(kernel, sparsity), expected)


@given(kernels(), st.floats(0, 1), st.floats(0, 1))
def test_masks_are_nested(kernel, one, other):
    lower, higher = sorted((one, other))
    assert not (weight_mask(kernel, higher) & ~weight_mask(kernel, lower)).any()


@given(kernels(), st.floats(0, 1))
def test_pruning_twice_at_one_sparsity_changes_nothing(kernel, sparsity):
    once = np.where(weight_mask(kernel, sparsity), kernel, kernel.dtype.type(0))
    np.testing.assert_array_equal(
        np.where(weight_mask(once, sparsity), once, kernel.dtype.type(0)), once
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_blocks_larger_than_the_cache_block_agree_with_sorting(dtype):
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((700, 500)).astype(dtype)  # bfloat16 has many ties here
    expected = lowest_by_sorting(np.abs(kernel.astype(np.float64)), 315_000)
    np.testing.assert_array_equal(weight_mask(kernel, 0.9), expected)


def test_ties_across_blocks_are_dropped_in_order():
    kernel = np.ones(300_000, np.float32)
    mask = weight_mask(kernel, 0.7)
    assert not mask[:210_000].any()
    assert mask[210_000:].all()


def test_views_and_fortran_order_give_the_mask_of_the_copy():
    kernel = np.random.default_rng(0).standard_normal((40, 30))
    for view in (kernel.T, kernel[::2, ::-1], np.asfortranarray(kernel)):
        np.testing.assert_array_equal(weight_mask(view, 0.6), weight_mask(view.copy("C"), 0.6))


@pytest.mark.parametrize("zeros", [0, 0.6])
@pytest.mark.parametrize("dtype", DTYPES)
def test_selection_needs_one_and_a_half_times_the_kernel_beside_it(dtype, zeros):
    rng = np.random.default_rng(0)
    kernel = (rng.standard_normal((2000, 2000)) * (rng.random((2000, 2000)) >= zeros)).astype(dtype)
    for sparsity in (0.1, 0.5, 0.99):
        tracemalloc.start()
        weight_mask(kernel, sparsity)
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak_bytes <= 1.5 * kernel.nbytes


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_go_first_and_in_order_however_many_they_are(dtype):
    rng = np.random.default_rng(0)
    kernel = rng.choice([0.0, -0.0, 1.0, -1.0, 2.0, INF], 300_000, p=[0.4, 0.2, 0.1, 0.1, 0.1, 0.1])
    kernel = kernel.astype(dtype).reshape(300, 1000)
    magnitudes = np.abs(kernel.astype(np.float64))
    zeros = int((magnitudes == 0).sum())
    for count in (0, 1, zeros - 1, zeros, zeros + 1, kernel.size - 1, kernel.size):
        expected = lowest_by_sorting(magnitudes, count)
        np.testing.assert_array_equal(weight_mask(kernel, count / kernel.size), expected)


def test_input_is_not_changed():
    kernel = np.array([3.0, 1.0, 2.0])
    weight_mask(kernel, 0.5)
    unit_mask(kernel, 0.5)
    assert kernel.tolist() == [3.0, 1.0, 2.0]


# Several kernels ranked as one


def test_two_kernels_are_ranked_together():
    small, large = np.array([0.1, 0.2, 3.0]), np.array([[1.0, 2.0], [0.3, 4.0]], np.float32)
    masks = masks_by_magnitude([small, large], 4)
    assert masks[0].tolist() == [False, False, True]
    assert masks[1].tolist() == [[False, True], [False, True]]


@given(st.lists(kernels(), min_size=1, max_size=3), st.floats(0, 1))
def test_several_kernels_lose_the_exact_total(arrays, share):
    count = round(share * sum(a.size for a in arrays))
    masks = masks_by_magnitude(arrays, count)
    assert [m.shape for m in masks] == [a.shape for a in arrays]
    assert sum(np.count_nonzero(~m) for m in masks) == count


@given(st.lists(kernels(), min_size=1, max_size=3), st.floats(0, 1))
def test_several_kernels_of_any_types_equal_a_stable_sort_of_all(arrays, share):
    count = round(share * sum(a.size for a in arrays))
    assert_lowest_of_the_row_go(masks_by_magnitude(arrays, count), arrays, count)
    assert_lowest_of_the_row_go(masks_by_score(arrays, count), arrays, count, rank=np.positive)


@pytest.mark.parametrize("finer", [np.array([1 + 2**-40]), np.array([1 + 2**-10], np.float16)])
@pytest.mark.parametrize("coarser", [np.float32, ml_dtypes.bfloat16])
def test_kernels_of_two_types_are_compared_without_rounding(finer, coarser):
    for select in (masks_by_magnitude, masks_by_score):
        assert [m.tolist() for m in select([finer, np.ones(1, coarser)], 1)] == [[True], [False]]


@pytest.mark.parametrize("value", [0.0, 1.0, INF])
def test_ties_across_kernels_are_dropped_from_the_first_one_on(value):
    arrays = [np.full((2, 2), value), np.full(3, -value, np.float32), np.full((3, 1), value)]
    for count in range(11):
        kept = np.concatenate([m.reshape(-1) for m in masks_by_magnitude(arrays, count)])
        assert kept.tolist() == [False] * count + [True] * (10 - count)


def test_zeros_spread_over_several_long_kernels_go_first():
    rng = np.random.default_rng(0)
    dtypes = (np.float32, np.float16, np.float32)
    arrays = [rng.standard_normal((400, 400)).astype(dtype) for dtype in dtypes]
    for array, share in zip(arrays, (0.9, 0.0, 0.3), strict=True):
        array[rng.random(array.shape) < share] = 0
    zeros = sum(int((a == 0).sum()) for a in arrays)
    size = sum(a.size for a in arrays)
    for count in (0, zeros // 2, zeros - 1, zeros, zeros + 1, (zeros + size) // 2, size):
        assert_lowest_of_the_row_go(masks_by_magnitude(arrays, count), arrays, count)


def test_zero_scores_of_either_sign_go_in_order_after_the_negative_ones():
    scores = np.array([0.0, -0.0, -1.0, 0.0, -INF, 1.0], np.float32)
    (mask,) = masks_by_score([scores], 3)
    assert mask.tolist() == [False, True, False, True, False, True]


@settings(deadline=None)  # a busy machine takes longer than hypothesis's 200 ms
@given(kernels(), st.floats(0, 1))
def test_scores_are_ranked_by_signed_value(scores, share):
    count = round(share * scores.size)
    (mask,) = masks_by_score([scores], count)
    expected = lowest_by_sorting(scores.astype(np.float64), count)
    np.testing.assert_array_equal(mask, expected)


# Units


def test_units_of_smallest_norm_are_pruned():
    kernel = np.array([[0.1, 3.0, 1.0], [0.2, 4.0, -1.0]])
    assert unit_mask(kernel, 2 / 3).tolist() == [False, True, False]


@pytest.mark.parametrize("order, expected", [(1, [7, 5.5]), (2, [5, 5.5]), (INF, [4, 5.5])])
def test_norms_of_a_known_kernel(order, expected):
    kernel = np.array([[3.0, 5.5], [-4.0, 0.0]])
    np.testing.assert_allclose(unit_norms(kernel, order=order), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", [1, 2, 3.5, INF])
def test_norms_agree_with_numpy(dtype, order):
    kernel = np.random.default_rng(0).standard_normal((3, 3, 50, 70)).astype(dtype)
    columns = kernel.astype(np.float64).reshape(-1, 70)
    expected = np.linalg.norm(columns, ord=order, axis=0)
    np.testing.assert_allclose(unit_norms(kernel, order=order), expected, rtol=1e-12)


def test_norms_of_a_kernel_longer_than_a_block():
    kernel = np.random.default_rng(0).standard_normal((3000, 100)).astype(np.float32)
    expected = np.linalg.norm(kernel.astype(np.float64), axis=0)
    np.testing.assert_allclose(unit_norms(kernel), expected, rtol=1e-12)


def test_norm_of_large_half_floats_does_not_overflow():
    assert unit_norms(np.full((4, 1), 60_000, np.float16)).tolist() == [120_000.0]


def test_axis_chooses_what_a_unit_is():
    kernel = np.array([[1.0, 1.0], [0.0, 9.0]])
    assert unit_mask(kernel, 0.5, axis=0).tolist() == [False, True]
    assert unit_mask(kernel, 0.5, axis=1).tolist() == [False, True]
    assert unit_mask(kernel[::-1], 0.5, axis=0).tolist() == [True, False]


@given(kernels(), st.floats(0, 1, exclude_max=True))
def test_a_sparsity_below_one_leaves_a_unit(kernel, sparsity):
    units = kernel.shape[-1]
    pruned = np.count_nonzero(~unit_mask(kernel, sparsity))
    assert pruned == min(round(sparsity * units), max(units - 1, 0))


@given(kernels(), st.floats(0, 1), st.floats(0, 1))
def test_unit_masks_are_nested(kernel, one, other):
    lower, higher = sorted((one, other))
    assert not (unit_mask(kernel, higher) & ~unit_mask(kernel, lower)).any()


def test_all_units_go_at_sparsity_one():
    assert not unit_mask(np.ones((2, 3)), 1).any()


# Bad input


@pytest.mark.parametrize(
    "sparsity, error, message",
    [
        (-0.1, ValueError, r"must lie in \[0, 1\].*sparsity=-0.1"),
        (1.5, ValueError, r"sparsity=1.5.*divide by 100"),
        (math.nan, ValueError, "sparsity=nan"),
        (True, TypeError, "sparsity=True of type bool"),
        ("0.5", TypeError, "sparsity='0.5' of type str"),
        (None, TypeError, "sparsity=None"),
    ],
)
@pytest.mark.parametrize("mask", [weight_mask, unit_mask])
def test_bad_sparsity_is_named(mask, sparsity, error, message):
    with pytest.raises(error, match=message):
        mask(np.ones((2, 2)), sparsity)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", [weight_mask, unit_mask])
def test_nan_is_refused(mask, dtype):
    with pytest.raises(ValueError, match="kernel holds NaN"):
        mask(np.array([[1.0, np.nan], [0.0, 2.0]]).astype(dtype), 0.5)


@pytest.mark.parametrize("kernel", [np.ones(3, int), np.ones(3, bool), np.ones(3, complex)])
def test_only_floats_have_masks(kernel):
    with pytest.raises(TypeError, match=f"dtype={kernel.dtype}"):
        weight_mask(kernel, 0.5)


@pytest.mark.parametrize("order", [0, -1, math.nan, "2", True])
def test_order_must_be_positive(order):
    with pytest.raises(ValueError, match="order must be a positive number"):
        unit_norms(np.ones((2, 2)), order=order)


def test_a_scalar_has_no_units():
    with pytest.raises(ValueError, match="no units"):
        unit_mask(np.float32(1), 0.5)


# Patterns n of m


def test_the_largest_of_every_group_along_the_input_axis_stay():
    kernel = [[0.1, 4.0], [-3.0, 0.5], [2.0, -0.6], [0.5, 1.0]]
    assert n_of_m_mask(kernel, 2, 4).tolist() == [[0, 1], [1, 0], [1, 0], [0, 1]]
    assert n_of_m_mask(kernel, 1, 2).tolist() == [[0, 1], [1, 0], [1, 0], [0, 1]]
    assert n_of_m_mask(kernel, 1, 4).tolist() == [[0, 1], [1, 0], [0, 0], [0, 0]]


def test_the_axis_chooses_along_which_the_groups_lie():
    kernel = [[1.0, 2.0], [3.0, 4.0]]
    assert n_of_m_mask(kernel, 1, 2).tolist() == [[0, 0], [1, 1]]
    assert n_of_m_mask(kernel, 1, 2, axis=-1).tolist() == [[0, 1], [0, 1]]


def test_of_equal_magnitudes_the_first_of_the_group_go_first():
    assert n_of_m_mask(-np.ones((4, 1)), 2, 4).ravel().tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_groups_of_a_convolution_lie_along_its_input_channels(dtype):
    # As tfmot does it: transposed to (filters, height, width, channels), then rows of four.
    kernel = np.random.default_rng(0).normal(size=(3, 2, 8, 5)).astype(dtype)
    rows = np.abs(kernel.astype(float)).transpose(3, 0, 1, 2).reshape(-1, 4)
    expected = np.zeros(rows.shape, bool)
    for row, mask in zip(rows, expected, strict=True):
        mask[np.lexsort((np.arange(4), row))[2:]] = True
    mask = n_of_m_mask(kernel, 2, 4)
    np.testing.assert_array_equal(mask.transpose(3, 0, 1, 2).reshape(-1, 4), expected)


@given(kernels(min_dims=2), st.integers(2, 6), st.data())
def test_every_group_keeps_n(kernel, m, data):
    n = data.draw(st.integers(1, m - 1))
    kernel = np.repeat(kernel, m, axis=-2)
    groups = np.moveaxis(n_of_m_mask(kernel, n, m), -2, -1).reshape(-1, m)
    assert (groups.sum(axis=1) == n).all()


def test_scores_are_ranked_with_their_sign():
    scores = np.array([[-1.0], [0.5], [-INF], [0.0]])
    assert n_of_m_mask_by_score(scores, 2, 4).ravel().tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    "shape, n, m, message",
    [
        ((6, 3), 2, 4, r"m=4 must divide the input axis.*6 entries in shape \(6, 3\)"),
        ((4, 3), 4, 4, "0 < n < m. Received: n=4, m=4"),
        ((4, 3), 0, 4, "n=0, m=4"),
        ((4, 3), 1.0, 2, "n=1.0, m=2"),
        ((4,), 2, 4, r"input axis and an output axis. Received: shape \(4,\)"),
    ],
)
def test_a_pattern_that_does_not_fit_is_refused(shape, n, m, message):
    with pytest.raises(ValueError, match=message):
        n_of_m_mask(np.ones(shape), n, m)
