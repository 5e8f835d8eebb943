"""Where the channels of each layer go in a model, and how those of pruned units are cut out.

`walk` follows a model through the rules of its layers, found in the `table`, and fills the `graph`;
`shrinking` cuts, `rebuilding` makes layers anew that were looked into.
"""

from keras_pruning.channels.shrinking import shrink
from keras_pruning.channels.walk import channel_readers, prunable_groups

__all__ = [
    "channel_readers",
    "prunable_groups",
    "shrink",
]
