"""The blur against the alternatives on the same inputs; every output is first compared with ours."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

import fovblur
from benchmarks.harness import largest_difference
from fovblur import backends
from fovblur.foveated_blur import reference

SUITE = "blur"
GAIN = 0.5
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's
NORMALISED = {"mean": MEAN, "std": STD}
TO_HALF = {**NORMALISED, "out_dtype": torch.float16}
FMA_A_PIXEL_AND_TAP = 2  # one in either direction
OURS = ("cpu", "cuda", "triton")


def kernel_sizes(batch: int, sizes: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor([sizes[i % len(sizes)] for i in range(batch)], device=device)


def weight_of(images: Tensor) -> Tensor:
    """Return the weight of the sharp image, (1, 1, H, W)."""
    _, _, height, width = images.shape
    fixation = torch.tensor([[height // 2, width // 2]], dtype=torch.float32, device=images.device)
    return GAIN * reference.acuity("exp", 3.0, fixation, height, width)[:, None]


def by_torchvision(images: Tensor, sizes: Tensor) -> Callable[[], Tensor]:
    import torchvision.transforms.v2.functional as tvf

    weight, sizes = weight_of(images), sizes.tolist()

    def blur() -> Tensor:
        sigma = fovblur.sigma_from_kernel_size
        blurred = [tvf.gaussian_blur(image, [k, k], [sigma(k), sigma(k)]) for image, k in zip(images, sizes)]
        return weight * images + (1 - weight) * torch.stack(blurred)

    return blur


def by_kornia(images: Tensor, sizes: Tensor) -> Callable[[], Tensor]:
    import kornia

    weight, largest = weight_of(images), int(sizes.max())
    sigma = fovblur.sigma_from_kernel_size(sizes.float())[:, None].expand(-1, 2).contiguous()

    def blur() -> Tensor:  # kornia takes one kernel size for the batch, but a sigma for each image
        blurred = kornia.filters.gaussian_blur2d(images, (largest, largest), sigma, border_type="reflect")
        return weight * images + (1 - weight) * blurred

    return blur


def levels_of(images: Tensor) -> list[np.ndarray]:
    """Return images as uint8 arrays (H, W, C), the largest value as 255."""
    levels = (images.float() / images.float().max() * 255).round().to(torch.uint8)
    return list(levels.permute(0, 2, 3, 1).contiguous().cpu().numpy())


def by_opencv(images: Tensor, sizes: Tensor) -> Callable[[], Tensor]:
    """Blur as UBP and BVSA do: one uint8 image at a time, blurred and blended in 8 bits, then converted to a tensor."""
    import cv2

    arrays, weight, sizes = levels_of(images), weight_of(images)[0, 0].cpu().numpy()[..., None], sizes.tolist()

    def blur() -> Tensor:
        results = []
        for array, k in zip(arrays, sizes):
            blurred = cv2.GaussianBlur(
                array, (k, k), fovblur.sigma_from_kernel_size(k)
            )  # sigma 0 and k < 10 would use a table
            results.append(cv2.convertScaleAbs(array * weight + blurred * (1 - weight)))
        return torch.from_numpy(np.stack(results)).permute(0, 3, 1, 2)

    return blur


def by_opencv_in_float32(images: Tensor, sizes: Tensor) -> Callable[[], Tensor]:
    import cv2

    arrays = list(images.permute(0, 2, 3, 1).contiguous().numpy())
    weight, sizes = weight_of(images)[0, 0].numpy()[..., None], sizes.tolist()
    rest = 1 - weight

    def blur() -> Tensor:
        sigma = fovblur.sigma_from_kernel_size
        results = [weight * each + rest * cv2.GaussianBlur(each, (k, k), sigma(k)) for each, k in zip(arrays, sizes)]
        return torch.from_numpy(np.stack(results)).permute(0, 3, 1, 2)

    return blur


def by_pillow(images: Tensor, sizes: Tensor) -> Callable[[], Tensor]:
    """Blur 8-bit images by Pillow's three box filters, which come near the Gaussian; borders repeat the edge."""
    from PIL import Image, ImageFilter

    pictures, sizes = [Image.fromarray(array) for array in levels_of(images)], sizes.tolist()
    mask = Image.fromarray((weight_of(images)[0, 0] * 255).round().to(torch.uint8).numpy())

    def blur() -> Tensor:
        filters = [ImageFilter.GaussianBlur(fovblur.sigma_from_kernel_size(k)) for k in sizes]
        results = [Image.composite(each, each.filter(by), mask) for each, by in zip(pictures, filters)]
        return torch.from_numpy(np.stack([np.asarray(each) for each in results])).permute(0, 3, 1, 2)

    return blur


def by_dali(images: Tensor, sizes: Tensor) -> Callable[[], Tensor]:
    """Blur by the CPU operator of NVIDIA DALI, which takes sigma and window of every sample, as uint8 or float32."""
    from nvidia.dali import fn, pipeline_def, types

    weight, samples = weight_of(images), list(images.numpy())
    windows = [np.int32(k) for k in sizes.tolist()]
    sigmas = [np.float32(fovblur.sigma_from_kernel_size(int(k))) for k in windows]
    threads = {"num_threads": torch.get_num_threads(), "device_id": None}

    @pipeline_def(batch_size=len(samples), **threads, exec_async=False, exec_pipelined=False, prefetch_queue_depth=1)
    def blurred():
        given = fn.external_source(source=lambda: samples, layout="CHW", batch=True, no_copy=True)
        sigma = fn.external_source(source=lambda: sigmas, batch=True)
        window = fn.external_source(source=lambda: windows, batch=True)
        return fn.gaussian_blur(given, sigma=sigma, window_size=window, dtype=types.FLOAT)

    pipeline = blurred()
    pipeline.build()

    def blur() -> Tensor:
        (results,) = pipeline.run()
        return weight * images + (1 - weight) * torch.from_numpy(results.as_array())

    return blur


def by_scipy(images: Tensor, sizes: Tensor) -> Callable[[], Tensor]:
    import scipy.ndimage

    arrays, weight, sizes = images.numpy(), weight_of(images).numpy(), sizes.tolist()

    def blur() -> Tensor:
        sigma = fovblur.sigma_from_kernel_size
        blurred = [
            scipy.ndimage.gaussian_filter(image, sigma(k), mode="mirror", radius=k // 2, axes=(1, 2))
            for image, k in zip(arrays, sizes)
        ]
        return torch.from_numpy(weight * arrays + (1 - weight) * np.stack(blurred))

    return blur


class Peer(NamedTuple):
    """A provider that is not ours."""

    make: Callable[[Tensor, Tensor], Callable[[], Tensor]]
    module: str
    takes_uint8: bool = False  # in the cases of uint8; the others take float32
    is_8_bit: bool = False  # the result has levels from 0 to 255 in every case
    on_gpu: bool = False


PEERS = {
    "torchvision loop": Peer(by_torchvision, "torchvision", on_gpu=True),
    "kornia": Peer(by_kornia, "kornia", on_gpu=True),
    "OpenCV 8-bit, as UBP": Peer(by_opencv, "cv2", takes_uint8=True, is_8_bit=True),
    "OpenCV float32": Peer(by_opencv_in_float32, "cv2"),
    "Pillow 8-bit": Peer(by_pillow, "PIL", takes_uint8=True, is_8_bit=True),
    "DALI on the CPU": Peer(by_dali, "nvidia.dali", takes_uint8=True),
    "scipy": Peer(by_scipy, "scipy"),
}


def is_installed(module: str) -> bool:
    package, _, _ = module.partition(".")
    return find_spec(package) is not None and find_spec(module) is not None


def peer_names(device_name: str) -> list[str]:
    there = [name for name, peer in PEERS.items() if is_installed(peer.module)]
    return [name for name in there if device_name == "cpu" or PEERS[name].on_gpu]


# (case, batch, side, kernel sizes, dtype, options of ours)
FORWARD = [
    ("64 x 3 x 224 x 224 float32, k 45 51 57", 64, 224, (45, 51, 57), torch.float32, {}),
    ("64 x 3 x 224 x 224 uint8, k 45 51 57", 64, 224, (45, 51, 57), torch.uint8, {}),
    ("64 x 3 x 224 x 224 uint8 to normalised float32", 64, 224, (45, 51, 57), torch.uint8, NORMALISED),
    ("64 x 3 x 224 x 224 uint8 to normalised float16", 64, 224, (45, 51, 57), torch.uint8, TO_HALF),
    ("64 x 3 x 224 x 224 float16, k 45 51 57", 64, 224, (45, 51, 57), torch.float16, {}),
    ("64 x 3 x 96 x 96 float32, k 21 23 25", 64, 96, (21, 23, 25), torch.float32, {}),
    ("4 x 3 x 1024 x 1024 float32, k 51", 4, 1024, (51,), torch.float32, {}),
    ("1 x 3 x 224 x 224 float32, k 51", 1, 224, (51,), torch.float32, {}),
    *((f"16 x 3 x 224 x 224 float32, k {k}", 16, 224, (k,), torch.float32, {}) for k in (3, 5, 9, 21, 101)),
]
CASES = {case[0]: case for case in FORWARD}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    device_name = metafunc.config.getoption("--device")
    if "case" in metafunc.fixturenames:
        chosen = list(CASES) if metafunc.function is bench_forward else [FORWARD[0][0], FORWARD[5][0]]
        providers = [name for name in OURS if (name == "cpu") == (device_name == "cpu")]
        providers = [name for name in providers if backends.unavailable_reason(name) is None]
        if metafunc.function is bench_backward:
            providers += [name for name in ("torchvision loop", "kornia") if name in peer_names(device_name)]
        else:
            providers += peer_names(device_name)
        metafunc.parametrize(("case", "provider"), [(case, name) for case in chosen for name in providers])


def make_images(case: str, device: torch.device) -> tuple[Tensor, Tensor, dict]:
    _, batch, side, sizes, dtype, options = CASES[case]
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(batch, 3, side, side, generator=generator)
    images = (images * 255).round().to(torch.uint8) if dtype == torch.uint8 else images.to(dtype)
    return images.to(device), kernel_sizes(batch, sizes, device), dict(options)


def moved_and_multiplied(images: Tensor, out: Tensor, sizes: Tensor) -> tuple[int, int]:
    """Return the bytes a forward pass reads and writes, and the multiply-adds of the direct separable form."""
    pixels = images[0].numel()
    return images.nbytes + out.nbytes, FMA_A_PIXEL_AND_TAP * pixels * int(sizes.sum())


def bench_forward(case, provider, device, limits, time_provider):
    images, sizes, options = make_images(case, device)
    ours = fovblur.foveated_blur(images, kernel_size=sizes, gain=GAIN, **options)
    bytes_moved, fma = moved_and_multiplied(images, ours, sizes)
    if provider in OURS:
        options |= {"gain": GAIN}
        function = lambda: fovblur.foveated_blur(images, kernel_size=sizes, backend=provider, **options)  # noqa: E731
        expected = fovblur.foveated_blur(images[:4], kernel_size=sizes[:4], backend="reference", **options)
        assert largest_difference(function()[:4], expected) < 2e-2
    else:
        peer = PEERS[provider]
        as_float = images.float()
        function = peer.make(images if peer.takes_uint8 else as_float, sizes)
        expected = fovblur.foveated_blur(as_float, kernel_size=sizes, gain=GAIN)
        if peer.is_8_bit:
            expected = expected / as_float.max() * 255
        if provider == "Pillow 8-bit":  # which is no Gaussian at the borders: the mean difference is looked at
            different = ((function() - expected).abs().mean() / expected.max()).item()
        else:
            different = largest_difference(function(), expected)
        one_kernel = len(set(sizes.tolist())) > 1 and provider == "kornia"  # a wider cut-off for the smaller sigmas
        assert different < (2e-2 if one_kernel or peer.is_8_bit else 1e-4), (provider, different)
    limit = limits.seconds(bytes_moved, fma if device.type == "cpu" or images.dtype == torch.float32 else 0)
    info = {"suite": SUITE, "case": f"forward, {case}", "provider": provider, "ours": provider in OURS}
    time_provider(function, limit_s=limit, **info)


def bench_backward(case, provider, device, limits, time_provider):
    """Time the gradient of the images, without the forward pass."""
    images, sizes, _ = make_images(case, device)
    leaf = images.clone().requires_grad_()
    if provider in OURS:
        out = fovblur.foveated_blur(leaf, kernel_size=sizes, gain=GAIN, backend=provider)
    else:
        out = PEERS[provider].make(leaf, sizes)()
    grad = torch.rand_like(out)
    bytes_moved, fma = moved_and_multiplied(grad, images, sizes)
    info = {"suite": SUITE, "case": f"backward, {case}", "provider": provider, "ours": provider in OURS}
    function = lambda: torch.autograd.grad(out, leaf, grad, retain_graph=True)  # noqa: E731
    time_provider(function, limit_s=limits.seconds(bytes_moved, fma), **info)
