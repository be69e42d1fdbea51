"""Small phantoms of CT and MR, from one of which the other is to be made."""

from pathlib import Path

from autoliver.synthesis.phantom import PhantomOptions, write_phantom_dataset

CT, MR = "Dataset931_CT", "Dataset932_MR"


def write_ct_and_mr(root: Path, *, cases: int) -> None:
    """Writes both datasets, with so many cases each, of 8 slices of 40 x 44 pixels."""
    for seed, (name, contrast) in enumerate(((CT, "CT"), (MR, "T2"))):
        options = PhantomOptions(
            contrast=contrast, shape_zyx=(8, 40, 44), spacing_mm=(8.0, 4.0, 4.0), lesions=(0, 0)
        )
        write_phantom_dataset(root, name=name, cases=cases, seed=seed, options=(options,))
