"""Image and text encoders: any of open_clip's by name, and the tiny one that is shipped."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from bvsa_core.errors import UserError, unknown_name

TINY = "tiny"
RANDOM = "random"
# The weights that UBP and BVSA use; other models take the first that open_clip lists.
PRETRAINED = {
    "RN50": "openai",
    "RN101": "openai",
    "ViT-B-16": "laion2b_s34b_b88k",
    "ViT-B-32": "laion2b_s34b_b79k",
    "ViT-L-14": "laion2b_s32b_b82k",
    "ViT-H-14": "laion2b_s32b_b79k",
    "ViT-g-14": "laion2b_s34b_b88k",
    "ViT-bigG-14": "laion2b_s39b_b160k",
}


@dataclass(frozen=True)
class Clip:
    """A frozen pair of encoders into one space."""

    name: str  # as tables show it, such as "RN50/openai"
    model: Any  # of open_clip
    tokenize: Callable[[list[str]], Tensor]
    image_size: int  # pixels
    mean: tuple[float, float, float]  # of the pixels it was trained on, in [0, 1]
    std: tuple[float, float, float]
    fingerprint: str  # of everything that shapes a feature: equal only for equal models
    layers: tuple[int, ...] = ()  # stages of the image encoder whose features stand beside its output

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def encode_images(self, images: Tensor) -> Tensor:
        """Features (B, D) float32 of normalised images (B, 3, image_size, image_size).

        Unit-norm; with layers, the output and the mean over space of each of these stages, all unit-norm, side by side.
        """
        return torch.cat(self._encode(images), dim=-1)

    def widths(self) -> list[int]:
        """Widths of what stands side by side in a feature."""
        blank = torch.zeros(1, 3, self.image_size, self.image_size, device=self.device)
        return [part.shape[1] for part in self._encode(blank)]

    @torch.no_grad()
    def _encode(self, images: Tensor) -> list[Tensor]:
        seen = {}
        hooks = [
            stages(self.model.visual)[layer].register_forward_hook(
                lambda _, __, output, layer=layer: seen.update({layer: output})
            )
            for layer in self.layers
        ]
        try:
            parts = [self.model.encode_image(images)]
        finally:
            for hook in hooks:
                hook.remove()
        for layer in self.layers:  # of a transformer (B, tokens, width), of a ResNet (B, width, height, width)
            parts.append(seen[layer].mean(1) if seen[layer].ndim == 3 else seen[layer].mean((2, 3)))
        return [normalize(part.float(), dim=-1) for part in parts]

    def with_layers(self, layers: Sequence[int]) -> Clip:
        """The same encoder, with features of some of its stages beside its output: 0 is the first, -1 the last.

        Raises:
            UserError: it has no such stage.
        """
        count = len(stages(self.model.visual))
        for layer in layers:
            if not -count <= layer < count:
                raise UserError(
                    f"vision encoder {self.name} has no layer {layer}; it has {count}, from 0 or from -{count} to -1"
                )
        chosen = tuple(layer % count for layer in layers)
        digest = hashlib.sha256(f"{self.fingerprint} {chosen}".encode()).hexdigest()
        return replace(self, layers=chosen, fingerprint=digest) if chosen else self

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Unit-norm features (B, D) float32 of texts."""
        batches = [list(texts[start : start + batch_size]) for start in range(0, len(texts), batch_size)]
        features = [self.model.encode_text(self.tokenize(batch).to(self.device)).float() for batch in batches]
        return normalize(torch.cat(features), dim=-1)


def image_size_of(name: str) -> int:
    """The side of an encoder's images in pixels, without loading it.

    Raises:
        UserError: an unknown name.
    """
    import open_clip

    if name == TINY:
        from bvsa_core.vision import tiny

        open_clip.add_model_config(tiny.CONFIG)
        name = tiny.CONFIG.stem
    config = open_clip.get_model_config(name)
    if config is None:
        raise UserError(unknown_name("vision encoder", name, [TINY, *PRETRAINED]) + ", or any other model of open_clip")
    size = config["vision_cfg"]["image_size"]
    return size if isinstance(size, int) else size[0]


def stages(visual: Any) -> list[nn.Module]:
    """The blocks of an image encoder, first to last.

    Raises:
        UserError: it is neither open_clip's transformer nor its ResNet.
    """
    if hasattr(visual, "transformer"):
        return list(visual.transformer.resblocks)
    if hasattr(visual, "layer4"):
        return [visual.layer1, visual.layer2, visual.layer3, visual.layer4]
    raise UserError(
        f"a vision encoder of kind {type(visual).__name__} shows no layers; leave target_layers out, or take a ViT or RN"
    )


def load_clip(
    name: str = TINY,
    weights: str | None = None,
    cache_dir: str | Path | None = None,
    device: str | torch.device = "cpu",
) -> Clip:
    """Load an encoder.

    Args:
        name: "tiny", or a model of open_clip: RN50, RN101, ViT-B-16, ViT-B-32, RN50-quickgelu, ...
        weights: a pretrained tag of open_clip, a local weights file, or "random"; None takes the field's usual ones.
        cache_dir: where open_clip keeps what it downloads.
        device: where the model goes.

    Raises:
        UserError: an unknown name or tag, or weights that cannot be found or downloaded.
    """
    import open_clip

    if name == TINY:
        from bvsa_core.vision.tiny import load_tiny

        model, tokenize = load_tiny()
        shown = TINY
    else:
        model, shown = _load_open_clip(open_clip, name, weights, cache_dir)
        tokenize = open_clip.get_tokenizer(name)
    model = model.eval().requires_grad_(False).to(device)
    size = model.visual.image_size
    return Clip(
        name=shown,
        model=model,
        tokenize=tokenize,
        image_size=size if isinstance(size, int) else size[0],
        mean=tuple(model.visual.image_mean),
        std=tuple(model.visual.image_std),
        fingerprint=fingerprint(shown, model),
    )


def _load_open_clip(open_clip, name: str, weights: str | None, cache_dir: str | Path | None) -> tuple[nn.Module, str]:
    models = open_clip.list_models()
    if name not in models:
        raise UserError(unknown_name("vision encoder", name, [TINY, *PRETRAINED]) + ", or any other model of open_clip")
    tags = open_clip.list_pretrained_tags_by_model(name)
    tag = weights or PRETRAINED.get(name) or (tags[0] if tags else RANDOM)
    is_file = Path(tag).is_file()
    if not is_file and tag not in (*tags, RANDOM):
        raise UserError(f"weights {tag!r} of {name}: neither a file nor one of {', '.join(tags)}, {RANDOM}")
    if tag == RANDOM:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return open_clip.create_model(name, load_weights=False), f"{name}/{RANDOM}"
    try:
        model = open_clip.create_model(name, pretrained=tag, cache_dir=cache_dir, weights_only=True)
    except Exception as error:  # open_clip lets through whatever its downloaders raise
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        remedy = (
            "give another file"
            if is_file
            else "give a local file with --weights, or a folder that has them with --cache_dir"
        )
        raise UserError(f"weights {tag!r} of {name} cannot be loaded ({detail}); {remedy}") from error
    return model, f"{name}/{Path(tag).name}"


def fingerprint(name: str, model: nn.Module) -> str:
    """SHA-256 over the name and every weight of a model."""
    digest = hashlib.sha256(name.encode())
    for key, value in sorted(model.state_dict().items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
