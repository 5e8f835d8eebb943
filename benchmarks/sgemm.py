"""The speed of this machine's dense products in float32, which bounds the other scripts' ones."""

import statistics
import time

import numpy as np


def sgemm_gflops() -> float:
    """Returns the GFLOP/s of (10000, 1000) x (1000, 1000), the median of five; two a multiply-add.

    On as many threads as NumPy's BLAS takes.
    """
    a, b = np.ones((10_000, 1000), np.float32), np.ones((1000, 1000), np.float32)
    out = np.empty((10_000, 1000), np.float32)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        np.matmul(a, b, out)
        seconds.append(time.perf_counter() - start)
    return 2e-9 * a.size * b.shape[1] / statistics.median(seconds)
