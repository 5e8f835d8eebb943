"""Time of a sweep over 20 points, beside the plain loop that most notebooks write.

    TFDS_DATA_DIR=... python benchmarks/sweep.py

The tutorial's network on the 10,000 test images of MNIST, weights and units at ten
sparsities. The loop clones the network, compiles it, sets the masked weights and evaluates,
point by point, with Keras's defaults. Both take turns in one process, `--repeats` times,
and must agree on every accuracy. The last line tells how long the multiplications alone take at the
speed of this machine's sgemm, without the weights that are pruned: what bounds a sweep.
"""

import argparse
import gc
import os
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import keras  # noqa: E402
import numpy as np  # noqa: E402
from sgemm import sgemm_gflops  # noqa: E402

import keras_pruning as kp  # noqa: E402
import pruning_utils as pu  # noqa: E402
from keras_pruning.inference.dense_chain import compact, read_dense_chain  # noqa: E402
from keras_pruning.studies.sweep import SPARSITIES  # noqa: E402

METHODS = {
    "weights": (kp.weight_mask, kp.prune_weights),
    "units": (kp.unit_mask, kp.prune_units),
}


def plain_loop(network: keras.Model, data: pu.Dataset) -> list[float]:
    accuracies = []
    for mask, _ in METHODS.values():
        for sparsity in SPARSITIES:
            pruned = keras.models.clone_model(network)
            pruned.compile(loss=network.loss, metrics=["accuracy"])
            *hidden, logits = network.get_weights()
            pruned.set_weights([w * mask(w, sparsity) for w in hidden] + [logits])
            accuracies.append(pruned.evaluate(data.x_test, data.y_test, verbose=0)[1])
    return accuracies


def swept(network: keras.Model, data: pu.Dataset) -> list[float]:
    table = kp.sparsity_sweep(
        network, data.x_test, data.y_test, methods=list(METHODS), progress=False
    )
    return table["accuracy"].tolist()


def multiply_adds(network: keras.Model, images: int) -> float:
    """Of the weights that are left at all points; the dense network counts once."""
    models = [network]
    models += [prune(network, s) for _, prune in METHODS.values() for s in SPARSITIES if s]
    chains = [compact(read_dense_chain(model)) for model in models]
    return images * sum(float(np.count_nonzero(step.kernel)) for chain in chains for step in chain)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=1)
    arguments = parser.parse_args()
    data = pu.load_dataset("mnist")
    network = pu.build_dense_network(data.image_shape)
    pu.train(network, data, epochs=arguments.epochs)
    seconds: dict[str, list[float]] = {"plain loop": [], "sparsity_sweep": []}
    for repeat in range(arguments.repeats):
        results = []
        for name, run in zip(seconds, (plain_loop, swept), strict=True):
            gc.collect()  # neither side clears up behind the other
            start = time.perf_counter()
            results.append(run(network, data))
            seconds[name].append(time.perf_counter() - start)
        difference = float(np.max(np.abs(np.subtract(*results))))
        print(
            f"repeat {repeat + 1}: loop {seconds['plain loop'][-1]:.1f} s, "
            f"sweep {seconds['sparsity_sweep'][-1]:.2f} s, "
            f"largest difference of an accuracy {difference:.1e}"
        )
        if difference > 1e-3:
            raise SystemExit("The two disagree.")
    ratio = statistics.median(a / b for a, b in zip(*seconds.values(), strict=True))
    print(f"sparsity_sweep is {ratio:.1f} times faster (median of {arguments.repeats})")
    work = multiply_adds(network, len(data.x_test))
    seconds_at_best = 2e-9 * work / sgemm_gflops()
    print(f"{work:.2e} multiply-adds, at the speed of sgemm {seconds_at_best:.2f} s")


if __name__ == "__main__":
    main()
