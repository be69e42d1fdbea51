"""BMP files, which SimpleITK reads with three channels if they are grey, or not at all."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from autoliver.io.grids import geometry_from_xyz
from autoliver.io.header import Header, OpenedFile, unreadable
from autoliver.io.volume import FLAT_SPACING


def open_bitmap(path: Path) -> OpenedFile:
    """Opens a BMP file: one channel if it is grey or black and white (1 is white), three if not.

    Args:
        path: A file that exists and is not empty.

    Raises:
        DatasetError: The file is damaged.
    """
    import PIL.Image

    def load() -> tuple[npt.NDArray[Any], tuple[int, int]]:
        """The pixels (y, x[, c]) and the size (x, y)."""
        try:
            with PIL.Image.open(path, formats=["BMP"]) as image:
                # Only palettes with colours are left; Pillow takes grey ones as grey.
                whole = image.convert("RGB") if image.mode == "P" else image
                return np.asarray(whole), image.size
        except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise unreadable(path, f"it is damaged or cut short ({error})") from None

    def voxels() -> npt.NDArray[Any]:
        pixels = load()[0]
        pixels = pixels.astype(np.uint8) if pixels.dtype == bool else pixels
        return np.moveaxis(np.atleast_3d(pixels), -1, 0)[:, None]

    pixels, size = load()
    header = Header(
        geometry=geometry_from_xyz((*size, 1), (1.0, 1.0, FLAT_SPACING), (0.0,) * 3, np.eye(3)),
        channels=1 if pixels.ndim == 2 else pixels.shape[2],
        pixel_type="8-bit unsigned integer",
        integer=True,
    )
    return OpenedFile(header, voxels)
