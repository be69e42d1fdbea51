"""The state of a training: everything that changes during it, and its form on disk."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from autoliver.artifacts import to_record
from autoliver.errors import ModelError
from autoliver.networks.blocks import to_channels_last
from autoliver.networks.build import build_network
from autoliver.networks.checkpoint import check_fit
from autoliver.networks.device import half_precision
from autoliver.networks.spec import NetworkSpec
from autoliver.training.course import Course
from autoliver.training.objectives.objective import Tally
from autoliver.training.options import TrainingOptions
from autoliver.training.progress import EpochLog
from autoliver.training.rates import rate_factor
from autoliver.training.recipes import Recipe

# Devices on which the optimiser updates all weights in one kernel, which can skip a step by itself.
# On the CPU it would round otherwise than trainings that were begun with an earlier version.
FUSED_ON = frozenset({"cuda"})


@dataclass(kw_only=True)
class EpochSums:
    """What the current epoch has accumulated so far.

    Attributes:
        losses: Losses of the steps taken.
        tally: Counts of the batches of these steps.
        skipped: Cases of batches that were skipped because they were not finite.
        seconds: Seconds spent.
        waited: Seconds of these that were spent waiting for patches.
    """

    losses: list[float] = field(default_factory=list)
    tally: Tally
    skipped: list[str] = field(default_factory=list)
    seconds: float = 0.0
    waited: float = 0.0


@dataclass(kw_only=True)
class TrainingState:
    """Weights, optimiser and counters of a training.

    Attributes:
        recipe: The recipe that the optimiser was made from.
        network: The network being trained.
        averaged: Network with the running mean of the weights; None if the recipe keeps none.
        optimizer: Optimiser of the network's weights.
        scaler: Loss scaling for float16; disabled for other precisions.
        sums: What the current epoch has accumulated.
        logs: One log per finished epoch.
        step: Steps done.
        elapsed: Seconds spent in all sessions.
        failures: Number of batches in a row that were skipped because they were not finite.
        course: What the end and the learning rate depend on besides the steps done.
    """

    recipe: Recipe
    network: nn.Module
    averaged: nn.Module | None
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    sums: EpochSums
    logs: list[EpochLog] = field(default_factory=list)
    step: int = 0
    elapsed: float = 0.0
    failures: int = 0
    course: Course = field(default_factory=Course)

    def __post_init__(self) -> None:
        """Looks up the weights once: by name it takes longer than a small network's update."""
        self.weights: list[Tensor] = list(self.network.parameters())
        self._buffers = list(self.network.buffers())
        averaged = nn.Module() if self.averaged is None else self.averaged
        self._means: list[Tensor] = list(averaged.parameters())
        self._mean_buffers = list(averaged.buffers())

    @property
    def skips_by_itself(self) -> bool:
        """Whether the optimiser finds on the device that a step is to be skipped.

        With loss scaling the steps are judged by the scaler.
        """
        fused = all(group.get("fused") for group in self.optimizer.param_groups)
        return fused and not self.scaler.is_enabled()

    @property
    def result(self) -> nn.Module:
        """The network whose weights are the result: the running mean, if there is one."""
        return self.averaged if self.averaged is not None else self.network

    def update_average(self, skipped: Tensor | None = None) -> None:
        """Moves the running mean towards the current weights, if the recipe keeps one.

        The decay grows with the number of steps, so that the mean forgets the untrained weights.
        Buffers, such as the statistics of a batch norm, are copied: they are running means already.

        Args:
            skipped: A scalar on the device, 1 where the step is skipped and the mean is to stay as
                it is, else 0; None: it is not skipped.
        """
        if self.averaged is None:
            return
        share = 1.0 - min(self.recipe.average, (1.0 + self.step) / (10.0 + self.step))
        with torch.no_grad():
            if skipped is None:
                torch._foreach_lerp_(self._means, self.weights, share)
                if self._buffers:
                    torch._foreach_copy_(self._mean_buffers, self._buffers)
                return
            moves = torch._foreach_sub(self.weights, self._means)
            torch._foreach_mul_(moves, share * (1.0 - skipped))
            torch._foreach_add_(self._means, moves)
            for mean, buffer in zip(self._mean_buffers, self._buffers, strict=True):
                mean.copy_(torch.where(skipped > 0, mean, buffer))

    def update_if_finite(self, numbers: Tensor) -> None:
        """Updates weights and running mean unless a number is not finite; the host does not wait.

        Args:
            numbers: Loss and norm of the gradients, on the device.
        """
        # What a gradient scaler sets: the fused kernels look at it and leave everything as it is.
        self.optimizer.grad_scale = None  # type: ignore[attr-defined]
        skipped = torch.isfinite(numbers).logical_not().any().float()
        self.optimizer.found_inf = skipped  # type: ignore[attr-defined]
        self.optimizer.step()
        self.update_average(skipped)

    def snapshot(self) -> dict[str, Any]:
        """The state without its logs, as tensors and plain values."""
        return {
            "recipe": msgspec.to_builtins(self.recipe),
            "network": self.network.state_dict(),
            "averaged": self.averaged.state_dict() if self.averaged is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "elapsed": self.elapsed,
            "failures": self.failures,
            "course": msgspec.to_builtins(self.course),
            "losses": self.sums.losses,
            "counts": self.sums.tally.saved(),
            "skipped": self.sums.skipped,
            "seconds": self.sums.seconds,
            "waited": self.sums.waited,
        }

    def restore(self, saved: dict[str, Any], *, where: str) -> None:
        """Restores a snapshot of a state with the same network and recipe; logs stay as they are.

        Args:
            saved: The snapshot.
            where: File that it comes from, for messages.

        Raises:
            ModelError: The snapshot belongs to another network or objective.
        """
        check_fit(saved["network"], self.network, where=where)
        self.network.load_state_dict(saved["network"])
        if self.averaged is not None:
            self.averaged.load_state_dict(saved["averaged"])
        self._restore_optimizer(saved["optimizer"], where=where)
        if saved["scaler"]:  # empty if the training was started without loss scaling
            self.scaler.load_state_dict(saved["scaler"])
        self.step, self.elapsed = saved["step"], saved["elapsed"]
        self.failures = saved["failures"]
        # Version 0.1 saved no course: its trainings always followed the recipe.
        self.course = to_record(saved.get("course", {}), Course, where=where)
        self.sums = EpochSums(
            losses=saved["losses"],
            tally=self.sums.tally.restored(saved["counts"], where=where),
            skipped=saved["skipped"],
            seconds=saved["seconds"],
            waited=saved["waited"],
        )

    def _restore_optimizer(self, saved: dict[str, Any], *, where: str) -> None:
        """Restores the optimiser; the device of this training decides whether it is fused.

        Raises:
            ModelError: It was made for other weights, or with other parts of the network apart.
        """
        numbers = [
            [len(group["params"]) for group in groups]
            for groups in (saved["param_groups"], self.optimizer.param_groups)
        ]
        if numbers[0] != numbers[1]:
            raise ModelError(
                f"{where}: its optimiser has groups of {_listed(numbers[0])} weights, that of this "
                f"training of {_listed(numbers[1])} weights.",
                hint="Continue with the version and the options that the training was begun with, "
                "or train again from the beginning: give the same command with --fresh.",
            )
        fused = self.optimizer.param_groups[0].get("fused")
        groups = [{**group, "fused": fused} for group in saved["param_groups"]]
        self.optimizer.load_state_dict({**saved, "param_groups": groups})
        _fill_momentum(self.optimizer)


def _listed(numbers: Sequence[int]) -> str:
    """Numbers for a message: "3, 4 and 5"."""
    *others, last = map(str, numbers)
    return f"{', '.join(others)} and {last}" if others else last


def new_state(
    spec: NetworkSpec,
    recipe: Recipe,
    *,
    options: TrainingOptions,
    device: torch.device,
    sums: EpochSums,
    start: Mapping[str, Tensor] | None = None,
) -> TrainingState:
    """Makes the state of a training before its first step.

    Args:
        spec: The network.
        recipe: The recipe of the training.
        options: The options of the training; only the seed influences randomly initialised weights.
        device: Where the network is trained.
        sums: Empty sums of the first epoch.
        start: Initial weights of the network and of its running mean; None: random initialisation.

    Raises:
        ModelError: `start` belongs to another network.
    """
    generator = torch.Generator().manual_seed(options.seed)
    network = build_network(spec, deep_supervision=True, generator=generator)
    if start is not None:
        check_fit(start, network, where="The weights to start with")
        network.load_state_dict(dict(start))
    for name, parameter in network.named_parameters():
        # DistributedDataParallel would wait for the gradient of an idle weight.
        parameter.requires_grad_(not spec.role(name).idle)
    network = network.to(device)
    if memory_format(spec, device) != torch.contiguous_format:
        to_channels_last(network)
    return _state_of(network, spec, recipe, options=options, sums=sums)


def begun_again(
    state: TrainingState,
    spec: NetworkSpec,
    recipe: Recipe,
    *,
    options: TrainingOptions,
    sums: EpochSums,
) -> TrainingState:
    """Makes the state before the first step of another recipe, with the network of a state.

    Args:
        state: A state whose network has the initial weights; of no use afterwards.
        spec: The network.
        recipe: The recipe of the training.
        options: The options of the training.
        sums: Empty sums of the first epoch.
    """
    state.network.zero_grad(set_to_none=True)
    return _state_of(state.network, spec, recipe, options=options, sums=sums)


def _state_of(
    network: nn.Module,
    spec: NetworkSpec,
    recipe: Recipe,
    *,
    options: TrainingOptions,
    sums: EpochSums,
) -> TrainingState:
    device = next(network.parameters()).device
    return TrainingState(
        recipe=recipe,
        network=network,
        averaged=copy.deepcopy(network) if recipe.average else None,
        optimizer=_make_optimizer(network, spec, recipe, options, device),
        scaler=torch.amp.GradScaler(device.type, enabled=amp_dtype(device) == torch.float16),
        sums=sums,
    )


def saved_recipe(saved: dict[str, Any], *, where: str) -> Recipe:
    """The recipe that a snapshot was trained with, even if another would be chosen now."""
    return to_record(saved["recipe"], Recipe, where=where)


def memory_format(spec: NetworkSpec, device: torch.device) -> torch.memory_format:
    """The memory layout of weights and patches with which training is fastest.

    On the CPU, channels last nearly halves the time of 3D convolutions forward and backward (0.77 s
    against 0.41 s a step for 8 features, batch 4, 40x56x40, on 2 cores).
    """
    if device.type != "cpu":
        return torch.contiguous_format
    return torch.channels_last if spec.dimension == 2 else torch.channels_last_3d


def amp_dtype(device: torch.device) -> torch.dtype | None:
    """The autocast type of the forward pass: bfloat16 or float16 on CUDA, else None (float32)."""
    return half_precision(device, training=True)


def _make_optimizer(
    network: nn.Module,
    spec: NetworkSpec,
    recipe: Recipe,
    options: TrainingOptions,
    device: torch.device,
) -> torch.optim.Optimizer:
    """Makes the optimiser; "factor" of a parameter group multiplies its learning rate."""
    # The group of heads comes first because the rate of the first group is logged.
    by_factor: dict[float, list[nn.Parameter]] = {1.0: []}
    for name, parameter in network.named_parameters():
        by_factor.setdefault(rate_factor(name, spec, options), []).append(parameter)
    groups: list[dict[str, Any]] = [{"params": list(network.parameters())}]
    if len(by_factor) > 1:
        groups = [{"params": some, "factor": factor} for factor, some in by_factor.items()]
    fused = True if device.type in FUSED_ON else None
    if recipe.optimizer == "sgd":
        made = torch.optim.SGD(
            groups,
            lr=recipe.learning_rate,
            momentum=0.99,
            nesterov=True,
            weight_decay=recipe.weight_decay,
            fused=fused,
        )
        _fill_momentum(made)
        return made
    if recipe.optimizer == "nadam":  # torch has no fused one
        return torch.optim.NAdam(
            groups, lr=recipe.learning_rate, betas=recipe.betas, weight_decay=recipe.weight_decay
        )
    return torch.optim.AdamW(
        groups,
        lr=recipe.learning_rate,
        betas=recipe.betas,
        weight_decay=recipe.weight_decay,
        fused=fused,
    )


def _fill_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Gives a fused SGD its momentum, 0, before the first step.

    Otherwise it takes memory as it finds it, and keeps it if its first step is skipped.
    """
    for group in optimizer.param_groups:
        if group.get("fused") and "momentum" in group:
            for weight in group["params"]:
                if optimizer.state[weight].get("momentum_buffer") is None:
                    optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
