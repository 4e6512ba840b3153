"""Random images, exact gradients, and errors relative to them."""

import torch
from gpu_streams import to_device

import fovblur
from fovblur.foveated_blur import reference
from fovblur.foveated_blur.params import BlurGradients, BlurParams


def random_images(shape, dtype: torch.dtype) -> torch.Tensor:
    images = torch.rand(shape)
    return (images * 255).round().to(torch.uint8) if dtype == torch.uint8 else images.to(dtype)


LAYOUTS = {  # of images (B, C, H, W) with at least two samples and channels
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "sliced": lambda x: x[::2, 1:, 3:20, ::3],
    "expanded": lambda x: x[:1, :1].expand(3, 3, -1, -1),
    "transposed": lambda x: x.transpose(2, 3),
    "offset": lambda x: x[..., 1:81],  # rows that are not aligned for wide loads
    "flipped-storage": lambda x: x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
}


def edges(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return images (B, C, H, W) of edges with some noise, of which much is left after a wide blur."""
    _, _, height, width = shape
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    images = 0.6 * ((columns > width / 3) ^ (rows > height / 2)) + 0.2 * torch.rand(shape) + 0.1
    return (images * 255).round().to(torch.uint8) if dtype == torch.uint8 else images.to(dtype)


def followed_by_gradients(images: torch.Tensor, sigma: torch.Tensor, kernel_size: torch.Tensor) -> torch.Tensor:
    """Return what a blur takes away from images, at most 1; as a gradient, terms of sigma and gain do not cancel."""
    taps = reference.gaussian_taps(sigma.double(), kernel_size)
    blurred = reference.gaussian(images.double(), (taps, taps), "reflect")
    taken = images.double() - blurred
    return taken / taken.abs().amax((1, 2, 3), keepdim=True)


def exact_parameter_gradients(grad: torch.Tensor, images: torch.Tensor, params: BlurParams) -> list[torch.Tensor]:
    """Return the gradients of sigma and gain by the reference in float64."""
    double = lambda x: x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x  # noqa: E731
    totals = BlurGradients(None, *(torch.zeros(len(images)).double() for _ in range(2)))
    reference.reference_backward(grad.double(), double(images), totals, BlurParams(*map(double, params)))
    return [totals.sigma, totals.gain]


def uint8_error(backend: str, largest: float = 255) -> float:
    """Return the largest error of a uint8 result, in levels: half a level of rounding, and what comes before it.

    On GPUs taps are rounded to 11 bits in both passes, and rows between them; elsewhere the sums are float32's.
    """
    return 0.5 + (3 * 2**-11 * largest if backend in ("triton", "cuda") else 1e-3)


def relative_error(ours: torch.Tensor, expected: torch.Tensor) -> float:
    if expected.numel() == 0:
        return 0.0
    return ((ours.double() - expected).abs().max() / expected.abs().max()).item()


def exact_gradients(images, sigma, kernel_size, gain, grad, std: float = 1.0):
    """Return the gradients by autograd through the reference's formula in float64."""
    leaves = [x.detach().double().requires_grad_() for x in (images, sigma, gain)]
    batch, channels, height, width = images.shape
    fixation = torch.tensor([[height // 2, width // 2]], dtype=torch.float64).expand(batch, 2)
    mean, std = torch.zeros(channels).double(), torch.full((channels,), std).double()
    params = BlurParams(leaves[1], kernel_size, leaves[2], fixation, mean, std, None, "exp", 3.0)
    y = reference.foveated_blur(leaves[0], params, torch.float64)
    return torch.autograd.grad(y, leaves, grad.double(), allow_unused=True, materialize_grads=True)


def gradients(implementation, images, sigma, kernel_size, gain, grad, **options):
    device = implementation.device
    leaves = [x.detach().to(device).requires_grad_() for x in (images, sigma, gain)]
    options |= {"kernel_size": kernel_size.to(device), "backend": implementation.backend}
    y = fovblur.foveated_blur(leaves[0], leaves[1], gain=leaves[2], **options)
    return tuple(x.cpu() for x in torch.autograd.grad(y, leaves, to_device(grad.to(y.dtype), device)))


def option_gradients(implementation, images, sigma, gain, grad, **options):
    """Return the gradients of images, sigma and gain under options, and those of the float64 reference."""
    double = lambda x: x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x  # noqa: E731
    results = []
    for device, convert, backend in (
        (implementation.device, lambda x: x, implementation.backend),
        (torch.device("cpu"), double, "reference"),
    ):
        move = lambda x: convert(x).to(device) if isinstance(x, torch.Tensor) else x  # noqa: E731, B023
        leaves = [move(x).detach().requires_grad_() for x in (images, sigma, gain)]
        moved = {name: move(value) for name, value in options.items()}
        y = fovblur.foveated_blur(leaves[0], leaves[1], gain=leaves[2], backend=backend, **moved)
        results.append([x.cpu() for x in torch.autograd.grad(y, leaves, move(grad).to(y.dtype))])
    return tuple(results)


def assert_close(ours, expected, tolerance, grad):
    """Compare image gradients relative to the largest; those of parameters, whose terms cancel, to sum |grad|.

    uint8 images have none: then the gradients are those of sigma and gain alone.
    """
    scales = (expected[0].abs().max().item(), *2 * (grad.double().abs().sum().item() / len(grad),))[-len(expected) :]
    for name, one, other, scale in zip(("images", "sigma", "gain")[-len(expected) :], ours, expected, scales):
        error = (one.double() - other).abs().max().item() / scale
        assert error < tolerance, f"gradient of {name}: relative error {error:.2e}"
