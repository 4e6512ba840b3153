"""Image and text encoders: any model of open_clip by name, and the tiny one of this package."""

from __future__ import annotations

import functools
import hashlib
import http.client
import os
import queue
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from bvsa_core.errors import UserError, unknown_name

TINY = "tiny"
RANDOM = "random"
ANSWER_S = 3.0  # wait for an answer of the server that has weights
# Weights that UBP and BVSA use; the default of other models is the first that open_clip lists.
PRETRAINED = {
    "RN50": "openai", "RN101": "openai", "ViT-B-16": "laion2b_s34b_b88k", "ViT-B-32": "laion2b_s34b_b79k",
    "ViT-L-14": "laion2b_s32b_b82k", "ViT-H-14": "laion2b_s32b_b79k", "ViT-g-14": "laion2b_s34b_b88k",
    "ViT-bigG-14": "laion2b_s39b_b160k",
}  # fmt: skip


@dataclass(frozen=True)
class Clip:
    """A frozen image encoder and text encoder with a common embedding space."""

    name: str  # in tables, such as "RN50/openai"
    model: Any  # of open_clip
    tokenize: Callable[[list[str]], Tensor]
    image_size: int  # pixels
    mean: tuple[float, float, float]  # of the pixels it was trained on, in [0, 1]
    std: tuple[float, float, float]
    fingerprint: str  # hash of name and weights, equal only for equal models
    layers: tuple[int, ...] = ()  # stages of the image encoder whose features are appended to its output

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return next(self.model.parameters()).device

    def encode_images(self, images: Tensor) -> Tensor:
        """Encode normalised images (B, 3, image_size, image_size) to unit-norm features (B, D) float32.

        With layers, the spatial mean of each of these stages, unit-norm too, is appended to the output. Differentiable:
        there is a graph if the images, or weights of the encoder, require gradients; none of `load_clip` does.
        """
        return torch.cat(self._encode(images), dim=-1)

    def widths(self) -> list[int]:
        """Return the widths of the parts of a feature: the output, and each layer."""
        blank = torch.zeros(1, 3, self.image_size, self.image_size, device=self.device)
        return [part.shape[1] for part in self._encode(blank)]

    def _encode(self, images: Tensor) -> list[Tensor]:
        outputs: dict[nn.Module, Tensor] = {}

        def keep(module: nn.Module, _inputs: Any, output: Tensor) -> None:
            # Of a transformer (B, tokens, width), of a ResNet (B, width, height, width).
            outputs[module] = output.mean(1 if output.ndim == 3 else (2, 3))

        blocks = [stages(self.model.visual)[layer] for layer in self.layers]
        with ExitStack() as hooks:
            for block in blocks:
                hooks.callback(block.register_forward_hook(keep).remove)
            parts = [self.model.encode_image(images)]
        return [normalize(part.float(), dim=-1) for part in (*parts, *(outputs[block] for block in blocks))]

    def with_layers(self, layers: Sequence[int]) -> Clip:
        """Return the same encoder with features of some stages appended to its output: 0 is the first, -1 the last."""
        count = len(stages(self.model.visual))
        for layer in layers:
            if not -count <= layer < count:
                known = f"it has {count}, from 0 or from -{count} to -1"
                raise UserError(f"vision encoder {self.name} has no layer {layer}; {known}")
        chosen = tuple(layer % count for layer in layers)
        digest = hashlib.sha256(f"{self.fingerprint} {chosen}".encode()).hexdigest()
        return replace(self, layers=chosen, fingerprint=digest) if chosen else self

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Encode texts to unit-norm features (B, D) float32."""
        batches = [list(texts[start : start + batch_size]) for start in range(0, len(texts), batch_size)]
        features = [self.model.encode_text(self.tokenize(batch).to(self.device)).float() for batch in batches]
        return normalize(torch.cat(features), dim=-1)


def image_size_of(name: str) -> int:
    """Return the width of an encoder's images in pixels, without loading it."""
    size = _description(name)["vision_cfg"]["image_size"]
    return size if isinstance(size, int) else size[0]


def embedding_width_of(name: str) -> int:
    """Return the width of an encoder's features, without loading it."""
    return _description(name)["embed_dim"]


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


def stages(visual: Any) -> list[nn.Module]:
    """Return the blocks of an image encoder, a transformer or a ResNet of open_clip, first to last."""
    if hasattr(visual, "transformer"):
        return list(visual.transformer.resblocks)
    if hasattr(visual, "layer4"):
        return [visual.layer1, visual.layer2, visual.layer3, visual.layer4]
    remedy = "do not give target_layers, or choose a ViT or RN"
    raise UserError(f"a vision encoder of kind {type(visual).__name__} has no known layers; {remedy}")


def load_clip(
    name: str = TINY,
    weights: str | None = None,
    cache_dir: str | Path | None = None,
    device: str | torch.device = "cpu",
) -> Clip:
    """Load an encoder.

    Args:
        name: "tiny", or a model of open_clip: RN50, RN101, ViT-B-16, ViT-B-32, RN50-quickgelu, ...
        weights: a pretrained tag of open_clip, a local weights file, or "random"; default: those of UBP and BVSA.
        cache_dir: where open_clip keeps downloaded weights.
        device: device of the model.

    Raises:
        UserError: the name or tag is unknown, or the weights cannot be found or downloaded.
    """
    if name == TINY:
        from bvsa_core.vision import tiny

        full_name, model, tokenize = TINY, tiny.create_tiny(tiny.WEIGHTS), tiny.tiny_tokenizer()
    else:
        model, full_name, tokenize = _load_open_clip(name, weights, cache_dir)
    model = model.eval().requires_grad_(False).to(device)
    size, mean, std = model.visual.image_size, tuple(model.visual.image_mean), tuple(model.visual.image_std)
    size = size if isinstance(size, int) else size[0]
    return Clip(full_name, model, tokenize, size, mean, std, fingerprint(full_name, model))


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
    from huggingface_hub import constants

    tag = _tag(name, weights)
    source = open_clip.get_pretrained_cfg(name, tag)
    hub = source.get("hf_hub", "").rpartition("/")[0]
    offline = hub and constants.HF_HUB_OFFLINE
    problem = "downloads are switched off" if offline else _unreachable(constants.ENDPOINT if hub else source["url"])
    if problem is not None:
        get = f"run 'hf download {hub} --cache-dir FOLDER'" if hub else f"download {source['url']} into FOLDER"
        remedy = f"{get} on a machine with network, copy FOLDER here, and give it with --cache_dir"
        raise UserError(f"weights {tag!r} of {name} are not on this machine, and {problem}; {remedy}")


@functools.cache
def _unreachable(address: str) -> str | None:
    """Return why a server does not answer; None if it does. Looking up a name has no time limit, so a thread waits."""
    problems: queue.Queue[str | None] = queue.Queue()

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=ANSWER_S).close()
        except urllib.error.HTTPError:  # an answer
            problems.put(None)
        except (OSError, http.client.HTTPException, ValueError) as error:
            problems.put(str(getattr(error, "reason", error)))
        else:
            problems.put(None)

    threading.Thread(target=ask, daemon=True).start()
    try:
        problem = problems.get(timeout=ANSWER_S)
    except queue.Empty:
        problem = f"no answer within {ANSWER_S:g} s"
    return problem and f"{address} cannot be reached ({problem})"


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
    import open_clip

    if name not in open_clip.list_models():
        message = unknown_name("vision encoder", name, [TINY, *PRETRAINED])
        raise UserError(f"{message}, or any other model of open_clip")


def stay_offline() -> None:
    """Let this process ask no hub for weights, because it reads a run that may come from elsewhere.

    The environment variable HF_HUB_OFFLINE=0 allows it. Without effect once huggingface_hub is imported.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")


def fingerprint(name: str, model: nn.Module) -> str:
    """Return the SHA-256 of the name and every weight of a model."""
    digest = hashlib.sha256(name.encode())
    if "quickgelu" not in name and any(type(module).__name__ == "QuickGELU" for module in model.modules()):
        digest.update(b" QuickGELU")  # which the tag asks for; the name and the weights do not tell
    for key, value in sorted(model.state_dict().items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
