"""Image encoders of transformers: hf:NAME of the Hugging Face hub, or hf:FOLDER that `save_pretrained` wrote.

Any model that takes images and gives hidden states is one: DINOv2, DINOv3, SigLIP, CLIP, ViT, InternVL's, ConvNeXt,
Swin, ... Weights are read from safetensors only, and no code of a repository is run.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from bvsa_core.errors import UserError, first_few
from bvsa_core.vision.clip import RANDOM
from bvsa_core.vision.downloads import check_reachable
from bvsa_core.vision.encoder import VisionEncoder
from bvsa_core.vision.layers import OUTPUT, Layers

PREFIX = "hf:"
FILES = ("config.json", "preprocessor_config.json")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")  # one of them


@dataclass(frozen=True)
class TransformersEncoder(VisionEncoder):
    """An image encoder of transformers, with its text encoder if the model has both, as CLIP and SigLIP do.

    Layer L is `hidden_states[L + 1]`. The output is what the model pools (for a model of images and texts, in their
    common space); without pooling it is the CLS token, or the mean of patches where there is none.
    """

    tokenizer: Any = None  # of a model of images and texts
    has_pooling: bool = True  # the weights of the model's pooling, if it has some, are pretrained

    @property
    def tower(self) -> nn.Module:
        """The part of the model that encodes images."""
        return self.model.vision_model if self.has_texts else self.model

    @property
    def has_texts(self) -> bool:
        """Whether it encodes texts too."""
        return self.tokenizer is not None

    @functools.cached_property
    def layer_count(self) -> int:  # type: ignore[override]
        """Number of layers."""
        blank = torch.zeros(1, 3, self.image_size, self.image_size, device=self.device)
        with torch.no_grad():
            return len(self._run(blank, hidden_states=True).hidden_states) - 1

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Encode texts to unit-norm features (B, D) float32."""
        length = self.model.config.text_config.max_position_embeddings
        settings = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}
        features = []
        for start in range(0, len(texts), batch_size):
            tokens = self.tokenizer(list(texts[start : start + batch_size]), **settings).to(self.device)
            features.append(self.model.get_text_features(**tokens).pooler_output.float())
        return normalize(torch.cat(features), dim=-1)

    def _layers(self) -> Layers:
        lists = (module for module in self.tower.modules() if isinstance(module, nn.ModuleList))
        blocks = next((list(each) for each in lists if len(each) == self.layer_count), None)
        return super()._layers() if blocks is None else Layers(blocks)

    def _encode(self, images: Tensor) -> list[Tensor]:
        found = self._run(images, hidden_states=self.layers != (OUTPUT,))
        parts = []
        for part in self.layers:
            state = None if part == OUTPUT else found.hidden_states[1 + int(part.partition(".")[0])]
            parts.append(normalize(self._pooled(found).float(), dim=-1) if state is None else _pool(state, part))
        return parts

    def _run(self, images: Tensor, hidden_states: bool) -> Any:
        encode = self.model.get_image_features if self.has_texts else self.model
        return encode(pixel_values=images, output_hidden_states=hidden_states)

    def _pooled(self, found: Any) -> Tensor:
        pooled = getattr(found, "pooler_output", None) if self.has_pooling else None
        if pooled is not None:
            return pooled.flatten(1)
        state = found.last_hidden_state
        return _pool(state, "0.cls" if state.ndim == 3 and _prefix_tokens(state) else "0")


def _pool(state: Tensor, part: str) -> Tensor:
    prefix = _prefix_tokens(state) if state.ndim == 3 else 0
    return Layers([], prefix, has_cls=prefix > 0).pool(state, part)


def _prefix_tokens(state: Tensor) -> int:
    """Return how many tokens (B, tokens, width) come before those of patches, a square: CLS and registers."""
    return state.shape[1] - isqrt(state.shape[1]) ** 2


def load(name: str, weights: str | None, cache_dir: str | Path | None) -> TransformersEncoder:
    """Load an encoder on the CPU; see `loading.load_vision_encoder`."""
    transformers = _import_transformers()
    check_weights(name, weights, cache_dir)
    where = {"cache_dir": cache_dir, "trust_remote_code": False}
    where["local_files_only"] = weights_are_here(name, weights, cache_dir)
    shown = PREFIX + (Path(name).resolve().name if Path(name).is_dir() else name)
    try:
        with _quiet(transformers):
            _check_config(transformers.PretrainedConfig.get_config_dict(name, **where)[0])
            config = transformers.AutoConfig.from_pretrained(name, **where)
            preprocessing = _preprocessing(transformers.AutoImageProcessor.from_pretrained(name, **where))
            if weights == RANDOM:
                with torch.random.fork_rng():
                    torch.manual_seed(0)
                    model = transformers.AutoModel.from_config(config, trust_remote_code=False)
                shown, missing = f"{shown}/{RANDOM}", set[str]()
            else:
                settings = {"use_safetensors": True, "dtype": torch.float32, "output_loading_info": True}
                model, loading = transformers.AutoModel.from_pretrained(name, config=config, **settings, **where)
                missing = set(loading["missing_keys"]) | {str(each[0]) for each in loading["mismatched_keys"]}
            if lacking := sorted(key for key in missing if not key.startswith("pooler.")):
                raise ValueError(f"its files lack weights: {first_few(lacking)}")
            tokenizer = None
            if hasattr(model, "get_image_features") and hasattr(model, "get_text_features"):
                tokenizer = transformers.AutoTokenizer.from_pretrained(name, **where)
                if tokenizer("dog").input_ids == tokenizer("cat").input_ids:  # made without its files
                    raise ValueError("its tokenizer knows no words")
            elif model.main_input_name != "pixel_values":
                raise ValueError(f"{type(model).__name__} takes {model.main_input_name}, not images alone")
            encoder = TransformersEncoder(
                model.eval(), *preprocessing, shown, tokenizer=tokenizer, has_pooling=not missing
            )
            if not encoder.layer_count:  # encodes an image
                raise ValueError("it has no layers")
    except Exception as error:  # transformers wraps few of the errors of its readers
        detail = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        remedy = "give a repository or folder of a vision model with config, image processor and safetensors"
        remedy += ", or features made elsewhere with --features"
        raise UserError(f"vision encoder {PREFIX}{name} cannot be loaded ({detail}); {remedy}") from error
    return encoder


def check_weights(name: str, weights: str | None = None, cache_dir: str | Path | None = None) -> None:
    """Check that an encoder's files are on this machine or can be downloaded; see `loading.check_weights`."""
    _import_transformers()
    if weights not in (None, RANDOM):
        remedy = f"leave --weights out, or give {RANDOM!r}; name a folder as {PREFIX}FOLDER"
        raise UserError(f"weights are {weights!r}, but vision encoder {PREFIX}{name} has its own; {remedy}")
    missing = _missing(name, weights, cache_dir)
    if not missing:
        return
    if Path(name).is_dir():
        remedy = "write model and image processor there with save_pretrained"
        raise UserError(f"vision encoder {PREFIX}{name}: {' and '.join(missing)} missing in the folder; {remedy}")
    check_reachable(f"files of {PREFIX}{name}", name)


def weights_are_here(name: str, weights: str | None = None, cache_dir: str | Path | None = None) -> bool:
    """Return whether an encoder can be loaded without a download."""
    return not _missing(name, weights, cache_dir)


def _missing(name: str, weights: str | None, cache_dir: str | Path | None) -> list[str]:
    """Return the files that an encoder lacks on this machine."""
    from huggingface_hub import try_to_load_from_cache

    if not Path(name).is_dir() and (not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or re.search(r"--|\.\.", name)):
        raise UserError(f"vision encoder {PREFIX}{name}: no such folder, and no name OWNER/NAME of the hub; check it")

    def is_here(file: str) -> bool:
        if Path(name).is_dir():
            return (Path(name) / file).is_file()
        return isinstance(try_to_load_from_cache(name, file, cache_dir), str)

    missing = [file for file in FILES if not is_here(file)]
    return missing if weights == RANDOM or any(map(is_here, WEIGHTS)) else [*missing, WEIGHTS[0]]


def _check_config(config: dict[str, Any]) -> None:
    """Refuse attention that is not of transformers itself: it may be code, which is fetched and run."""
    for key, value in config.items():
        if key.endswith("attn_implementation") and value not in (None, "eager", "sdpa"):
            raise ValueError(f"its config.json asks for {key} {value!r}, which may be code; use sdpa or eager")
        if isinstance(value, dict):
            _check_config(value)


def _preprocessing(processor: Any) -> tuple[int, tuple[float, float, float], tuple[float, float, float]]:
    """Return image size, mean and std of an image processor; it must scale square images by 1 / 255."""
    cropped = getattr(processor, "do_center_crop", False)
    size = dict((processor.crop_size if cropped else processor.size) or {})
    sides = {each for each in (size.get("height"), size.get("width"), size.get("shortest_edge")) if each}
    factor = processor.rescale_factor if processor.do_rescale else None
    if len(sides) != 1 or factor is None or abs(255 * factor - 1) > 1e-6:
        problem = f"its image processor makes images of {size} scaled by {factor}"
        raise ValueError(f"{problem}; only square ones scaled by 1/255 are supported")
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ((0.0,) * 3, (1.0,) * 3)
    return sides.pop(), tuple(map(float, mean)), tuple(map(float, std))  # type: ignore[return-value]


@contextmanager
def _quiet(transformers: ModuleType) -> Iterator[None]:
    """Inside, transformers reports neither progress nor weights that a file has too many: `load` checks them."""
    logging = transformers.utils.logging
    level, shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def _import_transformers() -> ModuleType:
    try:
        import transformers
    except ImportError as error:
        needs = "encoders by hf:NAME need: pip install 'fovblur[hf]'"
        raise UserError(f"transformers cannot be imported ({error}); {needs}") from error
    return transformers
