"""Layers of image encoders: their names, where they are in a model, and how the output of one becomes a feature.

A part of a feature is `output`, what the encoder puts out, or a pooled layer: `3` is the mean over patch tokens of a
transformer, or over space, after block 3; `3.cls` is the CLS token; `3.tokens` is the mean over all tokens, CLS
included, as earlier releases had it.
"""

import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from bvsa_core.errors import UserError

OUTPUT = "output"
LEARNED = "learned"
_LAYER = r"-?\d+(\.cls|\.tokens)?"
KINDS = "output, layer:L, layers:[A,B,...] or learned; L is a number from 0 or from -1, or 3.cls for the CLS token"


def parse_target(target: str, layer_count: Callable[[], int]) -> list[str]:
    """Return the parts of a target, in its order.

    >>> parse_target("layers:[output,-2,3.cls]", lambda: 12), parse_target("learned", lambda: 2)
    (['output', '-2', '3.cls'], ['output', '0', '1'])

    Raises:
        UserError: the target is none of output, layer:L, layers:[...] and learned, or names a part twice.
    """
    if target == OUTPUT:
        return [OUTPUT]
    if target == LEARNED:
        return [OUTPUT, *map(str, range(layer_count()))]
    parts = []
    if match := re.fullmatch(rf"layer:({_LAYER})", target):
        parts = [match[1]]
    elif match := re.fullmatch(r"layers:\[(.*)\]", target):
        parts = [part.strip() for part in match[1].split(",")]
    if not parts or not all(part == OUTPUT or re.fullmatch(_LAYER, part) for part in parts):
        raise UserError(f"target is {target!r}; it must be {KINDS}")
    if len({*parts}) < len(parts):
        raise UserError(f"target is {target!r}; it names a layer twice")
    return parts


def resolve(parts: Sequence[str], layer_count: Callable[[], int], encoder: str) -> tuple[str, ...]:
    """Return parts with layers counted from 0.

    Raises:
        UserError: the encoder has no such layer, or a layer is named twice, from 0 and from -1.
    """
    resolved: list[str] = []
    for part in parts:
        if part != OUTPUT:
            (number, dot, pool), count = part.partition("."), layer_count()
            if not -count <= int(number) < count:
                known = f"it has {count}, from 0 or from -{count} to -1"
                raise UserError(f"vision encoder {encoder} has no layer {number}; {known}")
            part = f"{int(number) % count}{dot}{pool}"
        if part in resolved:
            raise UserError(f"target names layer {part} of {encoder} twice, once from the end; leave one out")
        resolved.append(part)
    return tuple(resolved)


@dataclass(frozen=True)
class Layers:
    """The blocks of an image encoder, first to last, and the layout of what they put out."""

    blocks: list[nn.Module]
    prefix_tokens: int = 0  # before the patch tokens: CLS first, then registers
    has_cls: bool = False
    tokens_first: bool = False  # (tokens, B, width)
    channels_last: bool = False  # (B, height, width, channels)

    def pool(self, output: Tensor, part: str) -> Tensor:
        """Return the feature (B, width) float32 of a block's output, as its part says."""
        how = part.partition(".")[2]
        if output.ndim == 4:
            if how:
                raise UserError(f"target layer {part}: this encoder has no tokens; name the layer by its number alone")
            return output.float().mean((1, 2) if self.channels_last else (2, 3))
        tokens = (output.transpose(0, 1) if self.tokens_first else output).float()
        if how == "cls":
            if not self.has_cls:
                raise UserError(f"target layer {part}: this encoder has no CLS token; leave .cls out")
            return tokens[:, 0]
        return tokens.mean(1) if how == "tokens" else tokens[:, self.prefix_tokens :].mean(1)

    def record(self, parts: Sequence[str], encode: Callable[[], Tensor]) -> list[Tensor]:
        """Run an encoder once, to the end if its output is a part; return the parts, in their order."""
        outputs: dict[nn.Module, Tensor] = {}
        block_of = {part: self.blocks[int(part.partition(".")[0])] for part in parts if part != OUTPUT}
        wanted = dict.fromkeys(block_of.values())

        def keep(module: nn.Module, _inputs: Any, output: Tensor) -> None:
            outputs[module] = output
            if len(outputs) == len(wanted) and OUTPUT not in parts:
                raise _AllRecorded

        with ExitStack() as hooks, suppress(_AllRecorded):
            for block in wanted:
                hooks.callback(block.register_forward_hook(keep).remove)
            output = encode()
        return [output if part == OUTPUT else self.pool(outputs[block_of[part]], part) for part in parts]


class _AllRecorded(Exception):
    """The layers that are wanted have been computed, and what follows is not needed."""


def find_layers(visual: Any) -> Layers:
    """Return the layers of an image tower of open_clip or timm.

    They are the blocks of a transformer, or the stages of a convolutional network or of a Swin transformer.

    Raises:
        UserError: the tower is of another kind.
    """
    trunk = getattr(visual, "trunk", visual)  # open_clip keeps a model of timm there
    if hasattr(trunk, "transformer"):
        blocks = list(trunk.transformer.resblocks)
        return Layers(blocks, 1, True, tokens_first=not getattr(trunk.transformer, "batch_first", True))
    if hasattr(trunk, "layer4"):
        return Layers([trunk.layer1, trunk.layer2, trunk.layer3, trunk.layer4])
    for name in ("blocks", "stages", "layers"):
        if isinstance(found := getattr(trunk, name, None), (nn.Sequential, nn.ModuleList)):
            prefix, cls = getattr(trunk, "num_prefix_tokens", 0), getattr(trunk, "cls_token", None) is not None
            return Layers(list(found), prefix, cls, channels_last=getattr(trunk, "output_fmt", "") == "NHWC")
    remedy = "take its output as target, or choose a ViT or RN"
    raise UserError(f"a vision encoder of kind {type(visual).__name__} has no known layers; {remedy}")
