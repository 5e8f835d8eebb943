"""Zeros skipped: a pruned chain of Dense layers that runs without Keras and with fewer products.

`sparse_chain` plans each layer by measured costs; `_sparse_kernels` holds the compiled loops.
"""

from keras_pruning.inference.dense_chain import read_dense_chain
from keras_pruning.inference.sparse_chain import sparse_forward
from keras_pruning.inference.sparse_model import SparseModel
from keras_pruning.inference.threads import count_cores, one_blas_thread

__all__ = [
    "SparseModel",
    "count_cores",
    "one_blas_thread",
    "read_dense_chain",
    "sparse_forward",
]
