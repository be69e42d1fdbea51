"""Freezes parts of a network: they keep their initial weights for some epochs or for good.

The network defines which parts it has and which weights belong to them. Heads are always trained. A
frozen weight has no gradient, and optimisers skip such weights: neither momentum nor weight decay
moves them. The optimiser therefore stays the same when a part is unfrozen. A frozen norm that keeps
running statistics keeps those, too.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from autoliver.errors import OptionError
from autoliver.networks.contract import ENCODER, Part, PartGroup
from autoliver.networks.spec import NetworkSpec
from autoliver.training.options import TrainingOptions
from autoliver.transfer.table import IMAGENET


@dataclass(frozen=True, kw_only=True)
class Freezing:
    """The frozen parts of a network, and how long each of them is frozen.

    Attributes:
        network: The network.
        until: Frozen part -> the first epoch (from 0) in which it is trained; None: it is never
            trained.
    """

    network: NetworkSpec
    until: Mapping[Part, int | None]

    def trainable(self, name: str, epoch: int) -> bool:
        """Whether a parameter, given by its name in the state dict, is trained in an epoch."""
        part = self.network.role(name).part
        until = 0 if part is None else self.until.get(part, 0)
        return until is not None and epoch >= until

    def apply(self, network: nn.Module, epoch: int) -> bool:
        """Sets, for one epoch, which parameters of the frozen parts take gradients.

        Parameters of other parts are left as they are.

        Returns:
            Whether anything has changed.
        """
        changed = False
        for name, parameter in network.named_parameters():
            wanted = self.trainable(name, epoch)
            if self.network.role(name).part in self.until and parameter.requires_grad != wanted:
                parameter.requires_grad_(wanted)
                parameter.grad = None
                changed = True
        return changed

    def still(self, network: nn.Module, epoch: int) -> tuple[nn.Module, ...]:
        """Finds the largest modules of which all weights are frozen in an epoch.

        It takes some milliseconds, so that it is for the start and for epochs in which `apply` has
        changed something, not for every step.
        """
        if not self.until:
            return ()
        weights = [*network.state_dict()]
        holding = {start for name in weights for start in _starts(name)}
        learning = {s for name in weights if self.trainable(name, epoch) for s in _starts(name)}
        still = {
            name: module
            for name, module in network.named_modules()
            if name in holding and name not in learning
        }
        return tuple(
            module
            for name, module in still.items()
            if not name or name.rpartition(".")[0] not in still
        )


def set_modes(network: nn.Module, still: Iterable[nn.Module]) -> None:
    """Sets a network to training, except for modules that are frozen.

    A norm with running statistics is thereby frozen with them: it normalises by the statistics it
    has, and keeps them. Random depth is off there as well.
    """
    network.train()
    for module in still:
        module.eval()


def _starts(name: str) -> Iterator[str]:
    """Yields the names of the modules that a weight is in, the whole network's "" first."""
    words = name.split(".")
    yield from (".".join(words[:count]) for count in range(len(words)))


def freezing(options: TrainingOptions, network: NetworkSpec) -> Freezing:
    """Resolves `options.freeze` and `options.unfreeze` for a network.

    A part that is named twice in `options.unfreeze` is unfrozen at the earlier epoch.

    Raises:
        OptionError: A part does not exist, starts from random weights, is unfrozen without being
            frozen, or is unfrozen after the end of the training; or `options.encoder_factor` is
            given for a network that has no encoder.
    """
    _check_encoder(options, network)
    frozen = [
        part
        for word in _words(options.freeze)
        for part in _parts(word, network, where=f"--freeze {options.freeze}")
    ]
    _check_known(frozen, options)
    until: dict[Part, int | None] = dict.fromkeys(frozen)
    for word in _words(options.unfreeze):
        named, epoch = _thaw(word, options)
        where = f"--unfreeze {options.unfreeze}"
        parts = [part for part in _parts(named, network, where=where) if part in until]
        if not parts:
            raise OptionError(
                f"{where}: {named} is not frozen.",
                hint="Leave it out, or freeze it as well: "
                f"--freeze {','.join([*_words(options.freeze), named])}",
            )
        for part in parts:
            before = until[part]
            until[part] = epoch if before is None else min(before, epoch)
    return Freezing(network=network, until=until)


def _check_encoder(options: TrainingOptions, network: NetworkSpec) -> None:
    names = [group.name for group in network.parts]
    if options.encoder_factor != 1.0 and ENCODER not in names:
        raise OptionError(
            f"--encoder-factor {options.encoder_factor:g}: this network has no part "
            f"'{ENCODER}', only {', '.join(names)}.",
            hint="Leave it out.",
        )


def _check_known(frozen: Iterable[Part], options: TrainingOptions) -> None:
    """Refuses to freeze what ImageNet weights leave at random: all but the encoder."""
    drawn = list(dict.fromkeys(group for group, _ in frozen if group != ENCODER))
    if drawn and options.pretrained == IMAGENET:
        raise OptionError(
            f"--freeze {options.freeze}: with --pretrained imagenet, {' and '.join(drawn)} would "
            "keep random weights, which are not worth keeping.",
            hint="Freeze the encoder alone, with --freeze encoder.",
        )


def _words(text: str | None) -> list[str]:
    return [] if text is None else [word.strip() for word in text.split(",")]


def _thaw(word: str, options: TrainingOptions) -> tuple[str, int]:
    """Splits "encoder.4@20" into the part and the epoch."""
    named, _, epoch = word.partition("@")
    where = f"--unfreeze {options.unfreeze}"
    if not (epoch.isascii() and epoch.isdigit()):
        raise OptionError(
            f"{where}: '{word}' is not a part with an epoch.",
            hint="Write it as encoder.4@20, or several as encoder.4@20,encoder.3@40.",
        )
    epochs = options.epochs + sum(options.extensions)
    if options.epochs and int(epoch) >= epochs:
        raise OptionError(
            f"{where}: the training ends before epoch {epoch}; its epochs are numbered "
            f"from 0 to {epochs - 1}.",
            hint="Give an earlier epoch, or leave it out: then the part stays frozen.",
        )
    return named.strip(), int(epoch)


def _parts(word: str, network: NetworkSpec, *, where: str) -> list[Part]:
    """The parts that "encoder", "encoder:2" (the stages below 2) or "encoder.2" stands for."""
    stages = {group.name: group.stages for group in network.parts}
    found = re.fullmatch(r"(\w+)(?:([.:])([0-9]+))?", word)
    if found is not None and found[1] in stages:
        group, sign, number = found[1], found[2], int(found[3] or 0)
        count = stages[group]
        if sign is None:
            return [(group, stage) for stage in range(count)]
        if sign == ":" and 1 <= number <= count:
            return [(group, stage) for stage in range(number)]
        if sign == "." and number < count:
            return [(group, number)]
    first, *others = network.parts
    known = [f"its {first.name} has {_stages(first, unit=True)}"]
    known += [f"its {group.name} {_stages(group)}" for group in others]
    last = first.stages - 1
    several = f", one stage ({first.name}.{last}), or those below one ({first.name}:{last})"
    raise OptionError(
        f"{where}: this network has no part '{word}': {', '.join(known)}; heads always learn.",
        hint=f"Name {' or '.join(stages)}{several if last else ''}.",
    )


def _stages(group: PartGroup, *, unit: bool = False) -> str:
    """Describes a group: the number of its stages, and the names of the first and the last."""
    words = f" stage{'s' if group.stages > 1 else ''}" if unit else ""
    first = f"{group.name}.0" + (f" ({group.first})" if group.first else "")
    last = f" to {group.name}.{group.stages - 1}" if group.stages > 1 else ""
    return f"{group.stages}{words}, {first}{last}"
