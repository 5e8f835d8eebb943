"""Zeros skipped: pruned networks that run with fewer products, dense chains without Keras.

`sparse_chain` plans the layers of a dense chain by measured costs; `planner` turns other models
into the steps of `block_layers`, which `block_network` runs on blocks of examples;
`_sparse_kernels` holds the compiled loops of both.
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
