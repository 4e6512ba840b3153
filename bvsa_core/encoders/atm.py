"""ATM-S: attention over electrodes, then TSConv over what it leaves of them (Li et al., NeurIPS 2024).

Each electrode is a token; one more is the subject's. The released code prepends it and then keeps as many tokens as
there are electrodes, from the front, and so loses the last electrode. Here the subject's token is dropped after the
attention, and every electrode is kept.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from bvsa_core.encoders import InputSpec, tsconv

HEADS, HIDDEN = 4, 256


@dataclass(frozen=True)
class Options:
    """Options of ATM-S."""

    subject_token: Literal["joint", "subject"] = "joint"
    """'joint': one token for all. 'subject': one for each training subject; unknown subjects take their mean."""
    dropout: float = 0.25
    """Dropout of the attention layer."""
    convolution_dropout: float = 0.5
    """Dropout of the convolution and the projection."""


class ATM(nn.Module):
    """Recordings (B, channels, time), subjects (B,) -> (B, embedding). A token is as wide as a recording is long."""

    uses_subject_ids = True

    def __init__(self, shape: InputSpec, options: Options):
        super().__init__()
        width = shape.time
        self.convolution = tsconv.build(shape, tsconv.Options(options.convolution_dropout))
        self.token = nn.Linear(shape.time, width)
        tokens = shape.subjects if options.subject_token == "subject" else 1
        self.subject_tokens = nn.Parameter(torch.randn(tokens, width))
        self.dropout = nn.Dropout(options.dropout)
        self.attention = Attention(width, HEADS, options.dropout)
        self.after_attention = nn.LayerNorm(width)
        hidden = [nn.Linear(width, HIDDEN), nn.GELU(), nn.Dropout(options.dropout)]
        self.feed_forward = nn.Sequential(*hidden, nn.Linear(HIDDEN, width), nn.Dropout(options.dropout))
        self.after_feed_forward = nn.LayerNorm(width)
        self.norm = nn.LayerNorm(width)

    def forward(self, recordings: Tensor, subjects: Tensor | None = None) -> Tensor:
        """Return embeddings of recordings."""
        subject = self._subject_token(len(recordings), subjects)
        tokens = self.dropout(torch.cat([subject[:, None], self.token(recordings)], dim=1))  # (B, 1 + channels, width)
        tokens = self.after_attention(tokens + self.dropout(self.attention(tokens)))
        tokens = self.norm(self.after_feed_forward(tokens + self.feed_forward(tokens)))
        return self.convolution(tokens[:, 1:])

    def _subject_token(self, count: int, subjects: Tensor | None) -> Tensor:
        """Return the subjects' tokens (count, width)."""
        mean = self.subject_tokens.mean(0).expand(count, -1)
        if subjects is None or len(self.subject_tokens) == 1:
            return mean
        known = (subjects >= 0) & (subjects < len(self.subject_tokens))
        return torch.where(known[:, None], self.subject_tokens[subjects.where(known, 0)], mean)


class Attention(nn.Module):
    """Multi-head self-attention over (B, tokens, width); each head is width // heads wide."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        inner = heads * (width // heads)
        self.query_key_value = nn.Linear(width, 3 * inner)
        self.output = nn.Linear(inner, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return tokens after attention."""
        query, key, value = self.query_key_value(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(query, key, value, dropout_p=self.dropout if self.training else 0.0)
        return self.output(mixed.transpose(1, 2).flatten(2))


build = ATM
