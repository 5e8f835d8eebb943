"""The task in torch.nn.utils.prune: masks for weights and for units of a PyTorch model.

Units that it prunes stay in the model as zeros; nothing of PyTorch takes them out.
"""

from functools import partial

import _task
import _torch_networks as networks
import torch
from torch import nn
from torch.nn.utils import prune


def hidden(model: nn.Sequential) -> list[nn.Linear]:
    return [layer for layer in model if isinstance(layer, nn.Linear)][:-1]


def weights(task: _task.Task, report: _task.Report) -> None:
    differ = 0
    for sparsity in task.sparsities:
        found: dict[str, list[float]] = {"at once": [], "one epoch": []}
        for kernels in task.dense:
            model = networks.dense(kernels)
            for layer, kernel in zip(hidden(model), kernels, strict=False):
                prune.l1_unstructured(layer, "weight", amount=sparsity)
                kept = layer.weight_mask.numpy().T != 0
                differ += int((kept != _task.smallest_kept(kernel, sparsity)).sum())
            found["at once"].append(networks.accuracy(task, model))
            networks.one_epoch(task, model)
            found["one epoch"].append(networks.accuracy(task, model))
        for what, accuracies in found.items():
            report.add(f"weights, {what}", sparsity, accuracies, "% accuracy")
    report.add("weights other than the smallest", None, [differ])


def units(task: _task.Task, report: _task.Report) -> None:
    for sparsity in task.unit_sparsities:
        found: dict[str, list[float]] = {"at once": [], "one epoch": []}
        left, faster = [], []
        for kernels in task.dense:
            model = networks.dense(kernels)
            for layer in hidden(model):
                prune.ln_structured(layer, "weight", amount=sparsity, n=2, dim=0)
            found["at once"].append(networks.accuracy(task, model))
            networks.one_epoch(task, model)
            found["one epoch"].append(networks.accuracy(task, model))
            for layer in hidden(model):
                prune.remove(layer, "weight")
            dense = networks.dense(kernels)
            left.append(100 * networks.parameters(model) / networks.parameters(dense))
            faster += networks.speed(task, dense, model)
        for what, accuracies in found.items():
            report.add(f"units, {what}", sparsity, accuracies, "% accuracy")
        report.add("units, parameters left", sparsity, left, "%")
        report.add("units, times as fast", sparsity, faster)


def times(task: _task.Task, report: _task.Report) -> None:
    kernel = task.large_kernel()
    weight = torch.from_numpy(kernel.T.copy())

    def prune_layer() -> None:
        layer = nn.Linear(1, 1, bias=False)
        layer.weight = nn.Parameter(weight)
        prune.l1_unstructured(layer, "weight", amount=_task.LARGE_SPARSITY)

    found = _task.ratios(partial(_task.partition, kernel), prune_layer, task.repeats)
    report.add("prune 10 million weights", None, found, "x np.partition")
    before, after = (networks.dense(task.dense[0]) for _ in range(2))
    for layer in hidden(after):
        prune.l1_unstructured(layer, "weight", amount=_task.SPEED_SPARSITY)
        prune.remove(layer, "weight")
    found = networks.speed(task, before, after)
    report.add("zeros, times as fast", _task.SPEED_SPARSITY, found)


def main() -> None:
    options = _task.arguments(__doc__.splitlines()[0])
    task = _task.Task(options.task, options.quick)
    report = _task.Report("torch.nn.utils.prune", ["torch", "numpy"], options.results)
    dense = [networks.accuracy(task, networks.dense(kernels)) for kernels in task.dense]
    report.add("dense", None, dense, "% accuracy")
    weights(task, report)
    units(task, report)
    times(task, report)
    report.save()


if __name__ == "__main__":
    main()
