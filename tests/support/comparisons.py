"""Random images, exact gradients, and errors relative to them."""

import torch
from gpu_streams import to_device

import fovblur
from fovblur.foveated_blur import reference
from fovblur.foveated_blur.params import BlurParams


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
    params = BlurParams(leaves[1], kernel_size, leaves[2], fixation, mean, std, "exp", 3.0)
    y = reference.foveated_blur(leaves[0], params, torch.float64)
    return torch.autograd.grad(y, leaves, grad.double(), allow_unused=True, materialize_grads=True)


def gradients(implementation, images, sigma, kernel_size, gain, grad, **options):
    device = implementation.device
    leaves = [x.detach().to(device).requires_grad_() for x in (images, sigma, gain)]
    options |= {"kernel_size": kernel_size.to(device), "backend": implementation.backend}
    y = fovblur.foveated_blur(leaves[0], leaves[1], gain=leaves[2], **options)
    return tuple(x.cpu() for x in torch.autograd.grad(y, leaves, to_device(grad.to(y.dtype), device)))


def assert_close(ours, expected, tolerance, grad):
    """Compare image gradients relative to the largest; those of parameters, whose terms cancel, to sum |grad|."""
    scales = (expected[0].abs().max().item(), *2 * (grad.double().abs().sum().item() / len(grad),))
    for name, one, other, scale in zip(("images", "sigma", "gain"), ours, expected, scales):
        error = (one.double() - other).abs().max().item() / scale
        assert error < tolerance, f"gradient of {name}: relative error {error:.2e}"
