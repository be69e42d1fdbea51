"""Names that options of planning take; imported by the commands, so nothing heavy is here."""

from typing import Literal, get_args

ConfigurationName = Literal["2d", "3d_lowres", "3d_fullres", "3d_cascade"]
CONFIGURATION_NAMES: tuple[ConfigurationName, ...] = ("2d", "3d_lowres", "3d_fullres", "3d_cascade")
Preset = Literal["default", "M", "L", "XL", "tiny"]
Architecture = Literal["unet", "medformer", "omnia", "dxnet", "dsnet"]
# Architecture -> its presets if it is planned without an encoder; and those of any with one.
PRESETS_OF: dict[Architecture, tuple[Preset, ...]] = {
    "unet": get_args(Preset),
    "medformer": ("default", "tiny"),
}
WITH_ENCODER: tuple[Preset, ...] = ("default", "tiny")
EncoderName = Literal[
    "efficientnet_b0",
    "efficientnet_b4",
    "efficientnet_lite0",
    "resnet18",
    "resnet34",
    "resnet50",
]
# Architecture -> its encoder, unless another one is asked for.
ENCODER_OF: dict[Architecture, EncoderName] = {
    "omnia": "efficientnet_b4",
    "dxnet": "efficientnet_b0",
    "dsnet": "efficientnet_b0",
}
# Along which of the five levels of an encoder the depth of a volume is halved: where the planner
# halves it, or at all of them as published.
ZStrides = Literal["auto", "all"]
SpacingMode = Literal["auto", "source", "target", "fixed"]
ModalityName = Literal["CT", "MR", "other"]
