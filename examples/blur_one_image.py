"""Foveated blur of one image: eight blurs in one call, and the sharpness that explains a blurred image."""

# %% An image: any uint8 tensor (batch, 3, height, width), such as torchvision.io.decode_image(...)[None]
import torch

import fovblur
from fovblur.modules import FoveatedBlur2d

y, x = torch.meshgrid(torch.arange(128), torch.arange(128), indexing="ij")
rings = torch.cos((y - 64).float().hypot((x - 64).float()) * 0.8)
checks = ((y // 8 + x // 8) % 2 * 2 - 1).float()
image = torch.stack([rings, checks, rings * checks]).add(1).mul(127.5).to(torch.uint8)[None]  # (1, 3, 128, 128)

# %% Eight blurs in one call: every sample has its own sigma, gain (sharpness at the fixation) and fixation (y, x)
sigma = torch.tensor([0.0, 2.0, 4.0, 8.0, 8.0, 8.0, 8.0, 8.0])  # pixels
gain = torch.tensor([0.0, 0.5, 0.5, 0.0, 0.5, 1.0, 1.0, 1.0])
fixation = torch.tensor([[64.0, 64.0]] * 6 + [[20.0, 20.0], [20.0, 108.0]])
blurred = fovblur.foveated_blur(image.expand(8, -1, -1, -1), sigma, gain=gain, fixation=fixation)
assert blurred.dtype == torch.uint8 and torch.equal(blurred[0], image[0])  # sigma 0 changes nothing
difference = (blurred.float() - image.float()).square().mean(dim=(1, 2, 3)).sqrt()
for i in range(8):
    settings = f"sigma {sigma[i]:g}, gain {gain[i]:g}, fixation {tuple(fixation[i].int().tolist())}"
    print(f"{settings}: differs by {difference[i]:.1f} grey levels")

# %% The blur is differentiable in sigma and gain: find the gain that made an image
image = image.double() / 255
target = fovblur.foveated_blur(image, 6.0, gain=0.7)
raw = torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)  # its sigmoid is the gain, within [0, 1]
optimiser = torch.optim.LBFGS([raw], line_search_fn="strong_wolfe")


def closure() -> torch.Tensor:
    optimiser.zero_grad()
    loss = (fovblur.foveated_blur(image, 6.0, gain=raw.sigmoid()) - target).square().sum()
    loss.backward()
    return loss


optimiser.step(closure)
print(f"the gain was 0.7; found {raw.sigmoid().item():.4f}")
assert abs(raw.sigmoid().item() - 0.7) < 1e-4

# %% The same as a layer: an nn.Parameter given as sigma or gain is learnt
layer = FoveatedBlur2d(kernel_size=51, gain=torch.nn.Parameter(torch.tensor(0.5)))
assert layer(image.float()).shape == image.shape and len(list(layer.parameters())) == 1
