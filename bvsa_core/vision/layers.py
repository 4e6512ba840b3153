"""Layers of image encoders: where they are, and how their outputs are pooled."""

from typing import Any

from torch import Tensor, nn

from bvsa_core.errors import UserError


def stages(visual: Any) -> list[nn.Module]:
    """Return the blocks of an image encoder, a transformer or a ResNet of open_clip, first to last."""
    if hasattr(visual, "transformer"):
        return list(visual.transformer.resblocks)
    if hasattr(visual, "layer4"):
        return [visual.layer1, visual.layer2, visual.layer3, visual.layer4]
    remedy = "do not give target_layers, or choose a ViT or RN"
    raise UserError(f"a vision encoder of kind {type(visual).__name__} has no known layers; {remedy}")


def pool(output: Tensor) -> Tensor:
    """Return the mean (B, width) of tokens (B, tokens, width), or over the space of maps (B, width, height, width)."""
    return output.mean(1 if output.ndim == 3 else (2, 3))
