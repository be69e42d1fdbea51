"""Compares preprocessing and export with nnU-Net's, in values and in time.

Run with a Python that has nnU-Net 2.8.1 and autoliver, on any nnU-Net dataset folder:

    python benchmarks/parity/preprocess.py FOLDER CASE --spacing 1 1 1 [--transpose 1 0 2] [--mask]

Prints one line of JSON: the largest difference of the image in standard deviations, the share of
label voxels that are equal, the same for a label map exported from logits, and seconds of each.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from nnunetv2.inference.export_prediction import (
    convert_predicted_logits_to_segmentation_with_correct_shape as peer_export,
)
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from scipy.ndimage import gaussian_filter

from autoliver.datasets.cases import Labels
from autoliver.io.volume import Geometry, Volume
from autoliver.networks.spec import UNetSpec
from autoliver.planning.plan import Configuration, IntensityStats, Plan
from autoliver.preprocessing.case import backward_logits, forward

PEER_SCHEMES = {"ct": "CTNormalization", "zscore": "ZScoreNormalization"}


def read(folder, case):
    paths = sorted((folder / "imagesTr").glob(f"{case}_0*"))
    images = [sitk.ReadImage(str(path)) for path in paths]
    label = sitk.ReadImage(str(folder / "labelsTr" / f"{case}.nii.gz"))
    array = np.stack([sitk.GetArrayFromImage(image) for image in images]).astype(np.float32)
    geometry = Geometry(
        shape_zyx=array.shape[1:], spacing_mm=tuple(reversed(images[0].GetSpacing()))
    )
    label = sitk.GetArrayFromImage(label)[None].astype(np.int16)
    return Volume(array=array, geometry=geometry), Volume(array=label, geometry=geometry)


def foreground_stats(channel, label):
    values = channel[label > 0]
    low, high = np.percentile(values, [0.5, 99.5])
    return {
        "mean": float(values.mean()),
        "median": float(np.median(values)),
        "std": float(values.std()),
        "min": float(values.min()),
        "max": float(values.max()),
        "percentile_00_5": float(low),
        "percentile_99_5": float(high),
    }


def make_plan(dataset, options, stats, scheme):
    channels, classes = len(stats), len(dataset["labels"])
    configuration = Configuration(
        spacing_mm=tuple(options.spacing),
        median_shape=(64.0,) * len(options.spacing),
        patch_shape=(64,) * len(options.spacing),
        batch_size=2,
        batch_dice=False,
        normalization=(scheme,) * channels,
        mask_norm=(options.mask,) * channels,
        network=UNetSpec(
            in_channels=channels,
            out_channels=classes,
            features=(4,),
            strides=((1, 1, 1),),
            kernels=((3, 3, 3),),
            blocks_encoder=(1,),
            blocks_decoder=(),
        ),
    )
    return Plan(
        dataset="peer",
        preset="default",
        vram_gb=8.0,
        channel_names=tuple(dataset["channel_names"].values()),
        modality="other",
        labels=Labels(values={name: (value,) for name, value in dataset["labels"].items()}),
        file_ending=dataset["file_ending"],
        transpose_forward=tuple(options.transpose),
        transpose_backward=tuple(int(axis) for axis in np.argsort(options.transpose)),
        intensities=tuple(IntensityStats(**each) for each in stats),
        configurations={"3d_fullres": configuration},
    )


def peer_plans(options, stats, scheme):
    def resampling(kind, *, labels, order):
        keywords = {"is_seg": labels, "order": order, "order_z": 0, "force_separate_z": None}
        return {
            f"resampling_fn_{kind}": "resample_data_or_seg_to_shape",
            f"resampling_fn_{kind}_kwargs": keywords,
        }

    configuration = {
        "spacing": options.spacing,
        "patch_size": [64] * len(options.spacing),
        # Only so that the plan counts as one of today's; no network is made.
        "architecture": {},
        "normalization_schemes": [PEER_SCHEMES[scheme]] * len(stats),
        "use_mask_for_norm": [options.mask] * len(stats),
        **resampling("data", labels=False, order=3),
        **resampling("seg", labels=True, order=1),
        **resampling("probabilities", labels=False, order=1),
    }
    return PlansManager(
        {
            "dataset_name": "peer",
            "plans_name": "peer",
            "transpose_forward": options.transpose,
            "transpose_backward": [int(axis) for axis in np.argsort(options.transpose)],
            "foreground_intensity_properties_per_channel": {
                str(index): each for index, each in enumerate(stats)
            },
            "configurations": {"3d_fullres": configuration},
        }
    )


def timed(call):
    start = time.perf_counter()
    return call(), round(time.perf_counter() - start, 3)


def compare(options):
    dataset = json.loads((options.folder / "dataset.json").read_text())
    image, label = read(options.folder, options.case)
    stats = [foreground_stats(channel, label.array[0]) for channel in image.array]
    scheme = "ct" if "CT" in dataset["channel_names"].values() else "zscore"
    plan = make_plan(dataset, options, stats, scheme)
    configuration = plan.configurations["3d_fullres"]
    ours, our_seconds = timed(
        lambda: forward(image, label, plan=plan, configuration=configuration, name="x")
    )

    manager = peer_plans(options, stats, scheme)
    settings = manager.get_configuration("3d_fullres")
    properties = {"spacing": list(image.geometry.spacing_mm)}
    (peer_image, peer_label, _), peer_seconds = timed(
        lambda: DefaultPreprocessor(verbose=False).run_case_npy(
            image.array, label.array, properties, manager, settings, dataset
        )
    )

    noise = np.random.default_rng(0).normal(size=(len(plan.labels.values), *ours.image.shape[1:]))
    logits = (gaussian_filter(noise, (0, 3, 3, 3)) * 100).astype(np.float32)
    our_export, our_export_seconds = timed(
        lambda: backward_logits(logits, ours.properties, labels=plan.labels)
    )
    labels = manager.get_label_manager(dataset)
    peer_map, peer_export_seconds = timed(
        lambda: peer_export(logits, manager, settings, labels, properties, num_threads_torch=1)
    )
    return {
        "case": options.case,
        "shape": ours.image.shape,
        "image difference / SD": float(np.abs(ours.image - peer_image).max() / peer_image.std()),
        "labels equal": float(np.mean(ours.label == peer_label)),
        "exported labels equal": float(np.mean(our_export == peer_map)),
        "seconds": our_seconds,
        "nnU-Net's": peer_seconds,
        "export seconds": our_export_seconds,
        "nnU-Net's export": peer_export_seconds,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("case")
    parser.add_argument("--spacing", type=float, nargs="+", required=True)
    parser.add_argument("--transpose", type=int, nargs=3, default=[0, 1, 2])
    parser.add_argument("--mask", action="store_true")
    torch.set_num_threads(1)
    print(json.dumps(compare(parser.parse_args())))


if __name__ == "__main__":
    main()
