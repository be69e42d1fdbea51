import pytest

from autoliver.networks.spec import ResidualUNetSpec, UNetSpec
from autoliver.planning.topology import pool_topology


def test_coarse_axis_waits_until_the_others_have_caught_up():
    topology = pool_topology((5.0, 1.0, 1.0), (20, 160, 160))
    assert topology.strides == (
        (1, 1, 1),
        (1, 2, 2),
        (1, 2, 2),
        (2, 2, 2),
        (2, 2, 2),
        (1, 2, 2),
    )
    assert topology.kernels == ((1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3))
    assert topology.total_stride == (4, 32, 32)
    assert topology.patch_shape == (20, 160, 160)


def test_a_last_axis_is_halved_only_from_twelve_voxels():
    assert pool_topology((1, 1, 1), (40, 7, 7)).total_stride == (4, 1, 1)
    assert pool_topology((1, 1), (11, 7)).total_stride == (1, 1)
    assert pool_topology((1, 1), (12, 7)).total_stride == (2, 1)


def test_patch_is_rounded_up_to_the_total_stride():
    # 35.5 is the median of 35 and 36.
    assert pool_topology((1, 1, 1), (36, 50, 35.5)).patch_shape == (40, 56, 40)


def test_too_small_to_halve():
    topology = pool_topology((1, 1), (5, 6))
    assert (topology.strides, topology.kernels) == (((1, 1),), ((3, 3),))
    assert topology.patch_shape == (5, 6)


def spec(kind, features, strides, **channels):
    stages = len(features)
    plain = kind == "unet"
    return (UNetSpec if plain else ResidualUNetSpec)(
        features=features,
        strides=strides,
        kernels=((3,) * len(strides[0]),) * stages,
        blocks_encoder=(2,) * stages if plain else (1, 3, 4, 6)[:stages],
        blocks_decoder=(2 if plain else 1,) * (stages - 1),
        **channels,
    )


def test_two_stages_by_hand():
    # encoder 2*4*64 + 2*8*16, decoder (1 transposed + 2) * 4*64, head 3*64
    network = spec("unet", (4, 8), ((1, 1), (2, 2)), in_channels=1, out_channels=3)
    assert network.feature_map_elements((8, 8)) == 512 + 256 + 768 + 192
    # stem 4*64, one block 2*4*64, three blocks (6 + 1 skip)*8*16, decoder 2*4*64, head
    network = spec("resenc", (4, 8), ((1, 1), (2, 2)), in_channels=1, out_channels=3)
    assert network.feature_map_elements((8, 8)) == 256 + 512 + 896 + 512 + 192


@pytest.mark.parametrize(
    ("kind", "in_3d", "in_2d"), [("unet", 8110080, 616448), ("resenc", 10982400, 1026048)]
)
def test_equals_dynamic_network_architectures(kind, in_3d, in_2d):
    # compute_conv_feature_map_size of version 0.4.4 of the package, nets built as nnU-Net does.
    strides = ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2))
    network = spec(kind, (32, 64, 128, 128), strides, in_channels=2, out_channels=3)
    assert network.feature_map_elements((16, 48, 40)) == in_3d
    strides = ((1, 1), (2, 2), (2, 2), (2, 1))
    network = spec(kind, (32, 64, 128, 256), strides, in_channels=1, out_channels=5)
    assert network.feature_map_elements((64, 32)) == in_2d
