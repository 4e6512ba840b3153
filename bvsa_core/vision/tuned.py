"""An image encoder that is trained with a method, by low-rank updates of its linear maps (LoRA, Hu et al. 2021).

A map W x + b becomes W x + b + B A x with A (rank, in) and B (out, rank), which starts at zero; alpha is the rank, so
that the update has weight 1. The maps are those of the image tower of a transformer: q, k, v and out of every attention
(of timm, whose q, k and v are one map, that one) and the MLPs.
"""

from __future__ import annotations

import copy
import functools
import hashlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from bvsa_core.errors import UserError, first_few
from bvsa_core.vision.encoder import VisionEncoder

ADAPTER = "default"  # peft's name of the only one


class TunedVision(nn.Module):
    """A copy of a frozen image encoder with trainable low-rank updates, which are its only parameters.

    The frozen weights are shared with the encoder, not copied.

    Args:
        encoder: a transformer; it stays as it is.
        rank: of the updates.
        dropout: rate at which inputs of A are dropped in training.
        checkpoint_blocks: keep the inputs of blocks alone for the backward pass, which computes the rest again.

    Raises:
        UserError: peft is missing, or the encoder has no linear maps that can be updated, or none of that rank.
    """

    def __init__(
        self,
        encoder: VisionEncoder,
        rank: int,
        dropout: float = 0.0,
        checkpoint_blocks: bool = False,
    ):
        super().__init__()
        peft = import_peft()
        frozen = (*encoder.model.parameters(), *encoder.model.buffers())
        model = copy.deepcopy(encoder.model, {id(each): each for each in frozen})
        adapted = replace(encoder, model=model)
        targets = _linear_maps(adapted)
        widest = min(min(model.get_submodule(name).weight.shape) for name in targets)
        if rank > widest:
            raise UserError(f"vision_lora is {rank}; linear maps of {encoder.name} have ranks of at most {widest}")
        options = {"r": rank, "lora_alpha": rank, "lora_dropout": dropout, "target_modules": targets}
        peft.inject_adapter_in_model(peft.LoraConfig(**options), model, adapter_name=ADAPTER)
        self._dropouts = [module for name, module in model.named_modules() if ".lora_dropout." in name]
        self._hidden = (adapted,)  # a tuple hides it from parameters() and state_dict()
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                short = name.replace(f".{ADAPTER}.weight", "")
                self.register_parameter(short.replace(".", "/"), weight)
        if checkpoint_blocks:
            for block in adapted._layers().blocks:
                block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore
        self.train()

    @property
    def encoder(self) -> VisionEncoder:
        """The image encoder with the updates."""
        return self._hidden[0]

    def fingerprinted(self) -> VisionEncoder:
        """Return the encoder with a fingerprint of the weights as they are, for a bank that no other one shares."""
        digest = hashlib.sha256(self.encoder.fingerprint.encode())
        for name, weight in self.named_parameters():
            digest.update(f"{name} {tuple(weight.shape)}".encode() + weight.detach().cpu().numpy().tobytes())
        return replace(self.encoder, fingerprint=digest.hexdigest())

    def train(self, mode: bool = True) -> TunedVision:
        """Switch the dropout of the updates; all else of the encoder stays in evaluation mode."""
        for module in self._dropouts:
            module.train(mode)
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TunedVision:
        self.encoder.model._apply(fn)
        return super()._apply(fn, recurse)


class _Attention(nn.Module):
    """nn.MultiheadAttention with a linear map each for q, k, v and out, whose modules are called."""

    def __init__(self, packed: nn.MultiheadAttention):
        super().__init__()
        if packed.bias_k is not None or packed.add_zero_attn or packed.dropout:
            raise UserError("attention with bias_k, add_zero_attn or dropout cannot be updated; choose another encoder")
        if packed.in_proj_weight is None:
            weights: Any = (packed.q_proj_weight, packed.k_proj_weight, packed.v_proj_weight)
        else:
            weights = packed.in_proj_weight.chunk(3)
        biases = (None, None, None) if packed.in_proj_bias is None else packed.in_proj_bias.chunk(3)
        self.heads, self.batch_first = packed.num_heads, packed.batch_first
        self.q, self.k, self.v = (_linear(weight, bias) for weight, bias in zip(weights, biases))
        self.out = _linear(packed.out_proj.weight, packed.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        if not self.batch_first:
            query, key, value = (each.transpose(0, 1) for each in (query, key, value))
        maps = (self.q, query), (self.k, key), (self.v, value)
        q, k, v = (to(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for to, x in maps)
        mixed = self.out(scaled_dot_product_attention(q, k, v, attn_mask).transpose(1, 2).flatten(2))
        return (mixed if self.batch_first else mixed.transpose(0, 1)), None


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return a frozen linear map of these weights, which it shares."""
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    made.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        made.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return made


def _linear_maps(encoder: VisionEncoder) -> list[str]:
    """Return the names of the linear maps that images pass, after giving those of attention modules of their own.

    Raises:
        UserError: there are none, or some that images pass without a call of their module, where an update is lost.
    """
    model = encoder.model
    for name in _called(encoder):
        module = model.get_submodule(name)
        if isinstance(module, nn.MultiheadAttention):
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, _Attention(module))
        elif hasattr(module, "qkv_bias_separate"):  # of timm's EVA, which else takes the weight of its map, not the map
            module.qkv_bias_separate = True
    called = _called(encoder)
    maps = [name for name in called if isinstance(model.get_submodule(name), nn.Linear)]
    weights = {name: each.weight for name, each in model.named_modules() if isinstance(each, nn.Linear)}
    passed_by = [name for name in _used(encoder, weights) if name not in called] if weights else []
    if passed_by or not maps:
        which = f"takes the weights of {first_few(passed_by)} without their modules" if passed_by else "has none"
        problem = f"vision_lora updates the linear maps of transformers, and {encoder.name} {which}"
        raise UserError(f"{problem}; choose a ViT, such as ViT-B-32")
    return maps


def _called(encoder: VisionEncoder) -> list[str]:
    """Return the names of the modules that are called for an image."""
    called: list[str] = []
    with ExitStack() as hooks, torch.no_grad():
        for name, module in encoder.model.named_modules():
            hook = module.register_forward_pre_hook(lambda *_, name=name: called.append(name))
            hooks.callback(hook.remove)
        encoder.encode_images(_blank(encoder))
    return list(dict.fromkeys(called))


def _used(encoder: VisionEncoder, weights: dict[str, Tensor]) -> list[str]:
    """Return the names of the weights that the feature of an image depends on."""
    for weight in weights.values():
        weight.requires_grad_(True)
    feature = encoder.encode_images(_blank(encoder))
    gradients = torch.autograd.grad(feature.sum(), [*weights.values()], allow_unused=True)
    for weight in weights.values():
        weight.requires_grad_(False)
    return [name for name, gradient in zip(weights, gradients) if gradient is not None]


def _blank(encoder: VisionEncoder) -> Tensor:
    return torch.zeros(1, 3, encoder.image_size, encoder.image_size, device=encoder.device)


def import_peft() -> ModuleType:
    """Import peft, which is optional."""
    try:
        import peft
    except ImportError as error:
        problem = f"peft cannot be imported ({error})"
        raise UserError(f"{problem}; vision_lora needs: pip install 'fovblur[lora]'") from error
    return peft
