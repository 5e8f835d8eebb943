"""The task in Torch-Pruning: units of a PyTorch model, cut out along its traced graph.

Its MagnitudePruner with the L2 norm, which looks at the weights into a unit and out of it. It
prunes no single weights. The outputs stay.
"""

from collections.abc import Callable

import _task
import _torch_networks as networks
import torch
import torch_pruning
from torch import nn


def cut(model: nn.Module, example: torch.Tensor, outputs: nn.Module, sparsity: float) -> None:
    torch_pruning.pruner.MagnitudePruner(
        model,
        example,
        importance=torch_pruning.importance.MagnitudeImportance(p=2),
        pruning_ratio=sparsity,
        ignored_layers=[outputs],
    ).step()


def units(task: _task.Task, report: _task.Report) -> None:
    for sparsity in task.unit_sparsities:
        builds = [lambda kernels=kernels: networks.dense(kernels) for kernels in task.dense]
        measure(task, report, "units", sparsity, builds, lambda model: model[-1])


def convolutional(task: _task.Task, report: _task.Report) -> None:
    builds = [lambda: networks.Convolutional(task.convolutional)]
    sparsity = _task.UNIT_SPARSITIES[0]
    report.add("filters, dense", sparsity, [networks.accuracy(task, builds[0]())], "% accuracy")
    measure(task, report, "filters", sparsity, builds, lambda model: model.head)


def measure(
    task: _task.Task,
    report: _task.Report,
    kind: str,
    sparsity: float,
    builds: list[Callable[[], nn.Module]],
    outputs: Callable[[nn.Module], nn.Module],
) -> None:
    found: dict[str, list[float]] = {"at once": [], "one epoch": []}
    left, faster = [], []
    for build in builds:
        dense, model = build().eval(), build().eval()
        cut(model, networks.inputs(model, task.x_test[:1]), outputs(model), sparsity)
        found["at once"].append(networks.accuracy(task, model))
        left.append(100 * networks.parameters(model) / networks.parameters(dense))
        faster += networks.speed(task, dense, model)
        networks.one_epoch(task, model)
        found["one epoch"].append(networks.accuracy(task, model))
    for what, accuracies in found.items():
        report.add(f"{kind}, {what}", sparsity, accuracies, "% accuracy")
    report.add(f"{kind}, parameters left", sparsity, left, "%")
    report.add(f"{kind}, times as fast", sparsity, faster)


def main() -> None:
    options = _task.arguments(__doc__.splitlines()[0])
    task = _task.Task(options.task, options.quick)
    report = _task.Report("Torch-Pruning", ["torch-pruning", "torch", "numpy"], options.results)
    dense = [networks.accuracy(task, networks.dense(kernels)) for kernels in task.dense]
    report.add("dense", None, dense, "% accuracy")
    units(task, report)
    convolutional(task, report)
    report.save()


if __name__ == "__main__":
    main()
