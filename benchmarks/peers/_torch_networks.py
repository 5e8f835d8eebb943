"""The task's networks in PyTorch, with the same weights, and one epoch of training."""

import math

import _task
import numpy as np
import torch
from torch import nn


def dense(kernels: list[np.ndarray]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for kernel in kernels:
        layer = nn.Linear(*kernel.shape, bias=False)
        layer.weight = nn.Parameter(torch.from_numpy(kernel.T.copy()))
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Convolutional(nn.Module):
    """As `make_task.convolutional_network`."""

    def __init__(self, arrays: list[np.ndarray]) -> None:
        super().__init__()
        kernels, norms, (head, bias) = arrays[0:20:5], [], arrays[20:]
        sizes = [(k.shape[2], k.shape[3]) for k in kernels]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in sizes
        )
        norms = [nn.BatchNorm2d(b, eps=1e-3, momentum=0.1) for _, b in sizes]
        self.norms = nn.ModuleList(norms)
        self.head = nn.Linear(*head.shape)
        with torch.no_grad():
            for place, (convolution, norm) in enumerate(zip(self.convolutions, norms, strict=True)):
                kernel, gamma, beta, mean, variance = map(
                    torch.from_numpy, arrays[5 * place : 5 * place + 5]
                )
                convolution.weight.copy_(kernel.permute(3, 2, 0, 1))
                norm.weight.copy_(gamma)
                norm.bias.copy_(beta)
                norm.running_mean.copy_(mean)
                norm.running_var.copy_(variance)
            self.head.weight.copy_(torch.from_numpy(head.T.copy()))
            self.head.bias.copy_(torch.from_numpy(bias))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        def convolved(x: torch.Tensor, place: int) -> torch.Tensor:
            return self.norms[place](self.convolutions[place](x))

        x = nn.functional.max_pool2d(convolved(x, 0).relu(), 2)
        x = nn.functional.max_pool2d(convolved(x, 1).relu(), 2)
        x = (x + convolved(convolved(x, 2).relu(), 3)).relu()
        return self.head(x.mean((2, 3)))


def inputs(model: nn.Module, images: np.ndarray) -> torch.Tensor:
    x = torch.from_numpy(_task.flat(images))
    return x.view(-1, 1, 28, 28) if isinstance(model, Convolutional) else x


def accuracy(task: _task.Task, model: nn.Module) -> float:
    model.eval()
    with torch.inference_mode():
        return task.accuracy(lambda images: model(inputs(model, images)).numpy())


def one_epoch(task: _task.Task, model: nn.Module) -> None:
    """Adam with Keras's epsilon, its rate falling to 0 along a cosine."""
    torch.manual_seed(0)
    model.train()
    x, y = inputs(model, task.x_train), torch.from_numpy(task.y_train)
    optimizer = torch.optim.Adam(model.parameters(), _task.LEARNING_RATE, eps=1e-7)
    decay = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: (1 + math.cos(math.pi * step / task.steps)) / 2
    )
    for batch in torch.randperm(len(x)).split(_task.BATCH):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
        decay.step()


def speed(task: _task.Task, before: nn.Module, after: nn.Module) -> list[float]:
    x = inputs(before, task.x_test[: _task.TIMED_IMAGES])
    before.eval(), after.eval()
    with torch.inference_mode():
        return _task.ratios(lambda: after(x), lambda: before(x), task.repeats)


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
