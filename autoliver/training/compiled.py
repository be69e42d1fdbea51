"""Compiles the network of a training, and its loss, for the device.

Both become graphs of their own: a convolution, with which the network ends, is not fused with what
follows it, so that one graph would gain nothing. Held-out patches are scored without compilation,
which would cost another minute.
"""

from dataclasses import replace
from typing import cast

import torch
from torch import nn

from autoliver.errors import AutoliverError, OptionError
from autoliver.memory import out_of_memory
from autoliver.training.fold import FoldTask
from autoliver.training.objectives.lesions import LesionObjective
from autoliver.training.objectives.objective import Objective
from autoliver.training.objectives.segmentation import SegmentationObjective, segmentation_loss

# What torch.compile makes kernels with.
BACKEND = "inductor"


def compiles(task: FoldTask) -> bool:
    """Whether a training is compiled: as `--compile` says, by itself on CUDA alone.

    Compiled kernels are chosen by timing, so that a deterministic training has none by itself.

    Raises:
        OptionError: A deterministic training is to be compiled.
    """
    asked = task.machine.compile
    if asked == "on" and task.options.deterministic:
        raise OptionError(
            "--compile on and --deterministic cannot be given together: compiled operations are "
            "chosen by timing.",
            hint="Leave one of them out.",
        )
    if asked == "auto":
        return task.device.type == "cuda" and not task.options.deterministic
    return asked == "on"


def compiled_network(network: nn.Module) -> nn.Module:
    """Compiles a network when it is first called; its weights and their names stay its own."""
    found = torch.compile(network, backend=BACKEND, dynamic=False)
    return cast(nn.Module, found)


def compiled_objective(objective: Objective, task: FoldTask) -> Objective:
    """The objective with a compiled loss; as it is where several processes compute it together."""
    if task.group.size > 1:
        return objective
    if isinstance(objective, LesionObjective) and objective.segmentation is not None:
        return replace(objective, segmentation=compiled_objective(objective.segmentation, task))
    if isinstance(objective, SegmentationObjective):
        compute = torch.compile(segmentation_loss, backend=BACKEND, dynamic=False)
        return replace(objective, compute=compute)
    return objective


def may_go_on(error: Exception, *, proven: bool) -> bool:
    """Whether a step that failed may be taken again without compilation.

    Args:
        error: The error of the step.
        proven: Whether a compiled step has succeeded before. From then on, only errors of the
            compiler count.
    """
    if isinstance(error, AutoliverError) or out_of_memory(error):
        return False
    return not proven or isinstance(error, torch._dynamo.exc.TorchDynamoException)
