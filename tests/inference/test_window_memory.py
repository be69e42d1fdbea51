"""Prediction on GPUs with little memory, pretended on the CPU: what is kept, moved and repeated."""

import itertools
import logging
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autoliver.errors import MachineError, ModelError
from autoliver.inference import sums, window
from autoliver.inference.fastest import Fastest
from autoliver.inference.roi import Window
from autoliver.inference.sums import WeightedSums, rows_kept, sums_bytes
from autoliver.inference.window import Scan, gaussian_weight, sliding_window, windows_of

PATCH = (8, 12, 10)
GIB = 2**30
FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


class Small(nn.Module):
    """A small network that runs out of memory as it is told, and notes what it is given."""

    def __init__(self, axes: int, full: Callable[[Tensor], bool] = lambda _: False) -> None:
        super().__init__()
        torch.manual_seed(axes)
        self.layer = (nn.Conv3d if axes == 3 else nn.Conv2d)(2, 3, 3, padding=1)
        self.full, self.sizes = full, list[int]()

    def forward(self, image: Tensor) -> Tensor:
        self.sizes.append(len(image))
        if self.full(image):
            raise FULL
        out: Tensor = self.layer(image)
        return out


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """A pretended GPU: the bytes that are free, and those that PyTorch holds."""
    state = {"free": 80 * GIB, "reserved": 0}
    monkeypatch.setattr(window, "on_gpu", lambda _: True)
    monkeypatch.setattr(window, "_free", lambda _: state["free"])
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: state["reserved"])
    monkeypatch.setattr(sums, "_LEAST_VOXELS", 0)
    return state


def noise(*shape: int) -> Tensor:
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))


def run(
    image: Tensor, network: nn.Module, patch: tuple[int, ...], windows: Sequence[Window] | None
) -> Tensor:
    with torch.inference_mode():
        scan = Scan(patch_shape=patch, mirror_axes=(0,), title="case_1: LiTS/2d")
        return sliding_window(image, [network], scan, windows=windows)


def near_both_ends(windows: list[Window]) -> list[Window]:
    """Windows of two lesions, between which rows are touched by none."""
    return windows[:5] + windows[-4:]


def shuffled(windows: list[Window]) -> list[Window]:
    order = np.random.default_rng(0).permutation(len(windows))
    return [windows[number] for number in order]


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("least", [0, 3000, 1 << 23])
@pytest.mark.parametrize("choose", [list, near_both_ends, shuffled])
@pytest.mark.parametrize("patch", [PATCH, (12, 10)])
@pytest.mark.parametrize("shape", [(37, 25, 31), (5, 14, 9), (41, 9, 10)])
def test_rows_that_are_handed_over_are_those_of_the_whole_scan(
    shape: tuple[int, int, int],
    patch: tuple[int, ...],
    choose: Callable[[list[Window]], list[Window]],
    least: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sums, "_LEAST_VOXELS", least)
    image, network = noise(*shape), Small(len(patch))
    windows = choose(windows_of(shape, patch, 0.5))
    kept = []
    plain = WeightedSums.__init__

    def noted(self: WeightedSums, *args: object, **options: object) -> None:
        kept.append(options["rows"])
        plain(self, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(WeightedSums, "__init__", noted)
    # A GPU that does not tell what is free: batches, and so the last bits, stay as they are.
    monkeypatch.setattr(window, "_free", lambda _: None)
    rolling = run(image, network, patch, windows)
    monkeypatch.setattr(window, "on_gpu", lambda _: False)
    whole = run(image, network, patch, windows)
    assert torch.equal(rolling.nan_to_num(9e9), whole.nan_to_num(9e9))
    assert kept[0] <= kept[1]
    if choose is list:
        assert least or kept[0] == (patch[0] if len(patch) == 3 else 1)
        assert not whole.isnan().any()


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("choose", [list, near_both_ends, shuffled])
def test_kept_rows_are_all_that_windows_to_come_have_in_common_with_past_ones(
    choose: Callable[[list[Window]], list[Window]],
) -> None:
    windows = choose(windows_of((37, 12, 31), PATCH, 0.5))
    most = 0
    for number in range(len(windows)):
        past = {row for w in windows[: number + 1] for row in range(w[0].start, w[0].stop)}
        first = min(w[0].start for w in windows[number:])
        most = max(most, max(past) + 1 - first)
    assert rows_kept(windows, (37, 12, 31)) == most


# What nnU-Net 2.8 takes beside the network: float32 image, float16 sums and weights of all voxels.
@pytest.mark.parametrize(("classes", "nnunet_gb", "most_gb"), [(5, 3.5, 1.7), (25, 12.3, 4.2)])
def test_a_scan_of_512_x_512_x_900_takes_less_than_in_nnunet(
    classes: int, nnunet_gb: float, most_gb: float
) -> None:
    shape, patch = (900, 512, 512), (128, 128, 128)
    image = 4 * np.prod(shape)
    assert (image + 2 * (classes + 1) * np.prod(shape)) / GIB == pytest.approx(nnunet_gb, abs=0.1)
    taken = sums_bytes(classes, shape, rows_kept(windows_of(shape, patch, 0.5), shape))
    assert taken == 4 * (classes + 1) * 128 * 512 * 512
    assert (image + taken) / GIB < most_gb


STEPS = [
    "batches have their usual size again",
    "outputs are added up in the host's memory",
    "the image stays in the host's memory",
    "batches are smaller",
]


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("first", "failures"), [(first, n) for first in (1, 4) for n in range(4)] + [(4, 4)]
)
def test_a_gpu_that_gets_full_changes_where_things_lie_and_not_the_result(
    first: int, failures: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    image = noise(37, 25, 31)
    voxels = int(np.prod(PATCH))
    monkeypatch.setattr(window, "_BATCH_VOXELS", 2 * voxels)
    monkeypatch.setattr(window, "_GPU_BATCH_VOXELS", 16 * voxels)
    expected = run(image, Small(3), PATCH, None)
    calls = itertools.count(1)
    network = Small(3, full=lambda _: first <= next(calls) < first + failures)
    caplog.clear()
    found = run(image, network, PATCH, None)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    # Before the first windows are through, batches have not been enlarged.
    steps = (STEPS if first > 1 else STEPS[1:])[:failures]
    assert [message.split("; ")[1].rstrip(".") for message in caplog.messages] == steps


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("call", [0, 1])
def test_a_gpu_that_gets_full_while_outputs_are_checked_goes_on(
    call: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    image = noise(37, 25, 31)
    monkeypatch.setattr(window, "_BATCH_VOXELS", 2 * int(np.prod(PATCH)))
    expected = run(image, Small(3), PATCH, None)
    plain, calls = torch.isfinite, itertools.count()

    def full_once(values: Tensor) -> Tensor:
        if next(calls) == call:
            raise FULL
        return plain(values)

    caplog.clear()
    monkeypatch.setattr(torch, "isfinite", full_once)
    found = run(image, Small(3), PATCH, None)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert len(caplog.messages) == 1


@pytest.mark.usefixtures("gpu")
def test_a_patch_that_does_not_fit_alone_ends_with_the_case_and_the_model() -> None:
    network = Small(3, full=lambda _: True)
    with pytest.raises(MachineError, match=r"case_1: LiTS/2d: .*80\.0 GB.* patch of 8x12x10") as e:
        run(noise(37, 25, 31), network, PATCH, None)
    assert "--device cpu" in e.value.hint
    assert network.sizes[-1] == 1


@pytest.mark.usefixtures("gpu")
def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    class Wrong(Small):
        def forward(self, image: Tensor) -> Tensor:
            raise RuntimeError(f"size mismatch: {image.shape}")

    with pytest.raises(RuntimeError, match="size mismatch"):
        run(noise(9, 12, 10), Wrong(3), PATCH, None)


@pytest.mark.parametrize(
    ("free_gb", "reserved", "exact", "largest"),
    [
        (80.0, 1000, False, 16),  # all that batches may have
        (1.0, 0.1 * GIB, False, 8),  # 0.7 * (1 - 0.25 - sums) / 0.05 = 10
        (0.5, 0.1 * GIB, False, 2),  # 3.5
        (80.0, 1000, True, 2),
    ],
)
def test_flips_of_windows_go_together_as_memory_allows(
    free_gb: float,
    reserved: float,
    exact: bool,
    largest: int,
    gpu: dict[str, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    voxels = int(np.prod(PATCH))
    monkeypatch.setattr(window, "_BATCH_VOXELS", 2 * voxels)
    monkeypatch.setattr(window, "_GPU_BATCH_VOXELS", 20 * voxels)
    gpu["free"] = int(free_gb * GIB)
    taken = iter([0, int(reserved)])
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: next(taken))
    network, image = Small(3), noise(37, 25, 31)
    scan = Scan(patch_shape=PATCH, mirror_axes=(0, 1, 2), exact=exact)
    with torch.inference_mode():
        found = sliding_window(image, [network], scan)
        assert network.sizes[:4] == [2, 2, 2, 2]
        assert max(network.sizes) == largest
        monkeypatch.setattr(window, "on_gpu", lambda _: False)
        expected = sliding_window(image, [network], scan)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("free", "device"), [(0, "host"), (10 * GIB, "gpu")])
def test_what_does_not_fit_is_added_up_on_the_host_from_the_beginning(
    free: int, device: str, gpu: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu["free"] = free
    runs = []
    plain = window._Run._make_sums
    monkeypatch.setattr(
        window._Run, "_make_sums", lambda self, k: (runs.append(self), plain(self, k))[1]
    )
    run(noise(37, 25, 31), Small(3), PATCH, None)
    (one,) = runs
    assert one.sums_moved == one.image_moved == (device == "host")
    assert one.rolling == (device == "gpu")


def test_an_image_that_is_not_smaller_than_the_patch_is_not_copied() -> None:
    image = noise(8, 12, 11)
    assert window._padded(image, PATCH) is image
    assert window._padded(noise(4, 12, 11), (12, 10)).shape[1] == 4
    assert window._padded(noise(4, 12, 11), PATCH).shape == (2, 8, 12, 11)


class Overflowing(nn.Module):
    """Overflows in half precision where the image is bright."""

    def __init__(self, *, always: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((), 1000.0))
        self.always, self.inputs = always, list[Tensor]()

    def forward(self, image: Tensor) -> Tensor:
        self.inputs.append(image)
        product = image * self.weight
        if torch.is_autocast_enabled("cpu"):
            product = product.to(torch.float16).float()
        return product / 0 if self.always else torch.cat([product, -product], 1)


@pytest.mark.parametrize("wrap", [Fastest, lambda n: nn.Sequential(Fastest(n), nn.Identity())])
def test_windows_that_overflow_are_repeated_in_float32_and_told(
    wrap: Callable[[nn.Module], nn.Module], caplog: pytest.LogCaptureFixture
) -> None:
    image = torch.randn(1, 8, 12, 40)
    image[..., 33] = 500.0  # in the last two windows alone
    network = Overflowing()
    scan = Scan(patch_shape=(8, 12, 16), title="case_1: LiTS/2d")
    with caplog.at_level(logging.WARNING), torch.inference_mode():
        with torch.autocast("cpu", torch.bfloat16):
            found = sliding_window(image, [wrap(network).eval()], scan)
        assert "case_1: LiTS/2d: 1 window exceeded the range of half precision" in caplog.text
        assert torch.isfinite(found).all()
        torch.testing.assert_close(found[..., 32:], network(image[None])[0][..., 32:])
        assert (
            sum(len(each) for each in network.inputs[:-1])
            == len(windows_of((8, 12, 40), (8, 12, 16), 0.5)) + 1
        )


def test_an_output_that_is_never_finite_names_the_case_and_the_model() -> None:
    with pytest.raises(ModelError, match=r"case_1: LiTS/2d: .* not finite, in float32 too"):
        run(noise(8, 12, 10), Overflowing(always=True), PATCH, None)


def test_weighted_sums_are_those_of_a_brute_force(gpu: dict[str, int]) -> None:
    shape = (21, 12, 10)
    image, network = noise(*shape), Small(3)
    found = run(image, network, PATCH, None)
    total, norm = np.zeros((3, *shape)), np.zeros(shape)
    weight = gaussian_weight(PATCH).numpy()
    with torch.no_grad():
        for place in windows_of(shape, PATCH, 0.5):
            cut = image[:, *place][None]
            flipped = network(cut.flip(2)).flip(2)
            total[:, *place] += ((network(cut) + flipped) / 2)[0].numpy() * weight
            norm[place] += weight
    assert gpu["free"]
    np.testing.assert_allclose(found.numpy(), total / norm, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("patch", [PATCH, (12, 10)])
def test_a_real_gpu_gives_what_the_host_gives(patch: tuple[int, ...]) -> None:
    image, network = noise(37, 25, 31), Small(len(patch))
    expected = run(image, network, patch, None)
    found = run(image, network.cuda(), patch, None)
    assert found.device.type == "cpu"
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)  # TF32 in convolutions
