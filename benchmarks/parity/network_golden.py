"""Writes the golden networks of tests/networks: run with a Python that has nnU-Net 2.8.1.

    python benchmarks/parity/network_golden.py tests/golden

Each file holds a spec in autoliver's terms, seeded weights of nnU-Net's own network, which names
share a tensor, an input and all deep supervision outputs.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

# blocks_decoder is written full resolution first, as autoliver has it.
CASES = {
    "plain_2d": {
        "kind": "unet",
        "in_channels": 2,
        "out_channels": 3,
        "features": [4, 6, 8],
        "strides": [[1, 1], [2, 2], [2, 1]],
        "kernels": [[3, 3], [3, 3], [3, 1]],
        "blocks_encoder": [1, 2, 2],
        "blocks_decoder": [2, 1],
    },
    "plain_3d": {
        "kind": "unet",
        "in_channels": 1,
        "out_channels": 2,
        "features": [4, 6, 6],
        "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
        "kernels": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
        "blocks_encoder": [2, 2, 1],
        "blocks_decoder": [1, 2],
    },
    "resenc_3d": {
        "kind": "resenc",
        "in_channels": 2,
        "out_channels": 3,
        "features": [4, 6, 6],
        "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
        "kernels": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
        "blocks_encoder": [1, 2, 1],
        "blocks_decoder": [1, 2],
    },
    # A stage that gains features without pooling: the projection takes another place in the list.
    "resenc_2d": {
        "kind": "resenc",
        "in_channels": 1,
        "out_channels": 2,
        "features": [4, 6, 8, 8],
        "strides": [[1, 1], [1, 1], [2, 2], [2, 2]],
        "kernels": [[3, 3], [3, 3], [3, 3], [3, 3]],
        "blocks_encoder": [1, 1, 2, 1],
        "blocks_decoder": [1, 1, 1],
    },
}
INPUT_SHAPES = {2: (16, 12), 3: (4, 12, 8)}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    for seed, (name, spec) in enumerate(CASES.items()):
        torch.manual_seed(seed)
        write_case(folder / f"networks_{name}.npz", spec)


def write_case(path: Path, spec: dict) -> None:
    dimension = len(spec["strides"][0])
    network = nnunet_network(spec, dimension)
    with torch.no_grad():
        for parameter in network.parameters():
            # Norms and biases too: at their initial 0 and 1 a mix-up would not show.
            parameter.copy_(0.5 * torch.randn_like(parameter))
        image = torch.randn(2, spec["in_channels"], *INPUT_SHAPES[dimension])
        outputs = network(image)
    first_of: dict[int, str] = {}
    state = network.state_dict()
    aliases = [(key, first_of.setdefault(value.data_ptr(), key)) for key, value in state.items()]
    np.savez_compressed(
        path,
        spec=json.dumps(spec),
        aliases=json.dumps(aliases),
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        image=image.numpy(),
        **{f"output_{i}": output.numpy() for i, output in enumerate(outputs)},
        **{f"weights/{key}": state[key].numpy() for key in first_of.values()},
    )
    print(path, path.stat().st_size, "bytes")


def nnunet_network(spec: dict, dimension: int) -> torch.nn.Module:
    plain = spec["kind"] == "unet"
    architecture = "PlainConvUNet" if plain else "ResidualEncoderUNet"
    return get_network_from_plans(
        f"dynamic_network_architectures.architectures.unet.{architecture}",
        {
            "n_stages": len(spec["features"]),
            "features_per_stage": spec["features"],
            "conv_op": f"torch.nn.modules.conv.Conv{dimension}d",
            "kernel_sizes": spec["kernels"],
            "strides": spec["strides"],
            "n_conv_per_stage" if plain else "n_blocks_per_stage": spec["blocks_encoder"],
            "n_conv_per_stage_decoder": spec["blocks_decoder"][::-1],
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimension}d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        ["conv_op", "norm_op", "dropout_op", "nonlin"],
        spec["in_channels"],
        spec["out_channels"],
        allow_init=True,
        deep_supervision=True,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
