"""Image and text encoders: any model of open_clip by name, and the tiny one of this package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from bvsa_core.errors import UserError, unknown_name
from bvsa_core.vision.downloads import check_reachable
from bvsa_core.vision.encoder import VisionEncoder

TINY = "tiny"
RANDOM = "random"
# Weights that UBP and BVSA use; the default of other models is the first that open_clip lists.
PRETRAINED = {
    "RN50": "openai", "RN101": "openai", "ViT-B-16": "laion2b_s34b_b88k", "ViT-B-32": "laion2b_s34b_b79k",
    "ViT-L-14": "laion2b_s32b_b82k", "ViT-H-14": "laion2b_s32b_b79k", "ViT-g-14": "laion2b_s34b_b88k",
    "ViT-bigG-14": "laion2b_s39b_b160k",
}  # fmt: skip


@dataclass(frozen=True)
class Clip(VisionEncoder):
    """A frozen image encoder and text encoder of open_clip with a common embedding space."""

    tokenize: Callable[[list[str]], Tensor] = field(kw_only=True)

    @property
    def tower(self) -> nn.Module:
        """The part of the model that encodes images."""
        return self.model.visual

    @property
    def has_texts(self) -> bool:
        """Whether it encodes texts too: it does."""
        return True

    def _architecture(self) -> str:
        return ""  # the name says it

    def _output(self, images: Tensor) -> Tensor:
        return self.model.encode_image(images)

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Encode texts to unit-norm features (B, D) float32."""
        batches = [list(texts[start : start + batch_size]) for start in range(0, len(texts), batch_size)]
        features = [self.model.encode_text(self.tokenize(batch).to(self.device)).float() for batch in batches]
        return normalize(torch.cat(features), dim=-1)


def sizes(name: str) -> tuple[int, int]:
    """Return the width of an encoder's images in pixels and that of its features, without loading it."""
    about = _description(name)
    size = about["vision_cfg"]["image_size"]
    return size if isinstance(size, int) else size[0], about["embed_dim"]


def _description(name: str) -> dict[str, Any]:
    """Return open_clip's description of an encoder."""
    import open_clip

    if name == TINY:
        from bvsa_core.vision import tiny

        name = tiny.CONFIG.stem
    else:
        _check_name(name)
    return cast(dict[str, Any], open_clip.get_model_config(name))


def weights_are_here(name: str, weights: str | None = None, cache_dir: str | Path | None = None) -> bool:
    """Return whether an encoder can be loaded without a download; see `load_clip`."""
    import open_clip
    from huggingface_hub import try_to_load_from_cache
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME

    tag = None if name == TINY else _tag(name, weights)
    if tag in (None, RANDOM) or Path(tag).is_file():
        return True
    config = open_clip.get_pretrained_cfg(name, tag)
    if hub := config.get("hf_hub"):
        repository, _, file = hub.rpartition("/")
        files = [file] if file else [HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME]
        return any(isinstance(try_to_load_from_cache(repository, each, cache_dir), str) for each in files)
    folder = Path(cache_dir) if cache_dir else Path.home() / ".cache" / "clip"
    return (folder / config["url"].rpartition("/")[2]).is_file()


def load_clip(
    name: str = TINY,
    weights: str | None = None,
    cache_dir: str | Path | None = None,
    device: str | torch.device = "cpu",
) -> VisionEncoder:
    """Load an encoder, frozen; see `loading.load_vision_encoder` for those of other libraries.

    Args:
        name: "tiny", or a model of open_clip: RN50, RN101, ViT-B-16, ViT-B-32, RN50-quickgelu, ...
        weights: a pretrained tag of open_clip, a local weights file, or "random"; default: those of UBP and BVSA.
        cache_dir: where open_clip keeps downloaded weights.
        device: device of the model.

    Raises:
        UserError: the name or tag is unknown, or the weights cannot be found or downloaded.
    """
    return load(name, weights, cache_dir).frozen(device)


def load(name: str, weights: str | None, cache_dir: str | Path | None) -> Clip:
    """Load an encoder on the CPU; see `load_clip`."""
    if name == TINY:
        from bvsa_core.vision import tiny

        full_name, model, tokenize = TINY, tiny.create_tiny(tiny.WEIGHTS), tiny.tiny_tokenizer()
    else:
        model, full_name, tokenize = _load_open_clip(name, weights, cache_dir)
    size, mean, std = model.visual.image_size, tuple(model.visual.image_mean), tuple(model.visual.image_std)
    return Clip(model, size if isinstance(size, int) else size[0], mean, std, full_name, tokenize=tokenize)


def _load_open_clip(
    name: str, weights: str | None, cache_dir: str | Path | None
) -> tuple[nn.Module, str, Callable[[list[str]], Tensor]]:
    import open_clip

    tag = _tag(name, weights)
    check_weights(name, weights, cache_dir)
    try:
        tokenize = open_clip.get_tokenizer(name)
        if tag == RANDOM:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                return open_clip.create_model(name, load_weights=False), f"{name}/{RANDOM}", tokenize
        settings = {"force_quick_gelu": (open_clip.get_pretrained_cfg(name, tag) or {}).get("quick_gelu", False)}
        model = open_clip.create_model(name, pretrained=tag, cache_dir=cache_dir, weights_only=True, **settings)
    except Exception as error:  # open_clip does not wrap the errors of its downloaders
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        remedy = "give another file" if Path(tag).is_file() else "give a folder that has them with --cache_dir"
        raise UserError(f"weights {tag!r} of {name} cannot be loaded ({detail}); {remedy}") from error
    return model, f"{name}/{Path(tag).name}", tokenize


def check_weights(name: str, weights: str | None = None, cache_dir: str | Path | None = None) -> None:
    """Check that an encoder's weights are on this machine or can be downloaded; see `load_clip`.

    Raises:
        UserError: name or tag are unknown, or the server of the weights does not answer within ANSWER_S seconds.
    """
    if name == TINY or weights_are_here(name, weights, cache_dir):
        return
    import open_clip

    tag = _tag(name, weights)
    source = open_clip.get_pretrained_cfg(name, tag)
    hub = source.get("hf_hub", "").rpartition("/")[0]
    check_reachable(f"weights {tag!r} of {name}", hub, source.get("url", ""))


def _tag(name: str, weights: str | None) -> str:
    """Return the pretrained tag or the weights file of a model of open_clip."""
    import open_clip

    _check_name(name)
    tags = open_clip.list_pretrained_tags_by_model(name)
    tag = weights or PRETRAINED.get(name) or (tags[0] if tags else RANDOM)
    if not Path(tag).is_file() and tag not in (*tags, RANDOM):
        raise UserError(f"weights {tag!r} of {name}: neither a file nor one of {', '.join(tags)}, {RANDOM}")
    return tag


def _check_name(name: str) -> None:
    """Raise UserError for a name that is not in open_clip's own list: it asks a hub for some, and reads folders."""
    if name not in names():
        message = unknown_name("vision encoder", name, [TINY, *PRETRAINED])
        raise UserError(f"{message}, or any other model of open_clip, hf:NAME, timm:NAME, or register your own first")


def names() -> list[str]:
    """Return the names of all encoders: the tiny one and those of open_clip."""
    import open_clip

    return [TINY, *open_clip.list_models()]
