"""Names that options of planning take; imported by the commands, so nothing heavy is here."""

from typing import Literal, get_args

ConfigurationName = Literal["2d", "3d_lowres", "3d_fullres", "3d_cascade"]
CONFIGURATION_NAMES: tuple[ConfigurationName, ...] = ("2d", "3d_lowres", "3d_fullres", "3d_cascade")
Preset = Literal["default", "M", "L", "XL", "tiny"]
Architecture = Literal["unet", "medformer"]
# Architecture -> presets that there are for it.
PRESETS_OF: dict[Architecture, tuple[Preset, ...]] = {
    "unet": get_args(Preset),
    "medformer": ("default", "tiny"),
}
SpacingMode = Literal["auto", "source", "target", "fixed"]
ModalityName = Literal["CT", "MR", "other"]
