"""Facade while the modules move."""

from keras_pruning.copies import *  # noqa: F403
from keras_pruning.functional import *  # noqa: F403
from keras_pruning.kernels import *  # noqa: F403
