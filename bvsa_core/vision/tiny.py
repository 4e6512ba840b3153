"""The tiny CLIP of this package, for machines that cannot download pretrained weights.

It knows the images of :mod:`bvsa_core.synthetic.openmoji` only. ``scripts/train_tiny_clip.py`` trained it, and
``tiny_clip_training.json`` is the log.
"""

import gzip
import io
import json
from functools import lru_cache
from itertools import islice
from pathlib import Path

import open_clip
from open_clip.tokenizer import SimpleTokenizer, default_bpe

CONFIG = Path(__file__).with_name("tiny_clip.json")
WEIGHTS = Path(__file__).with_name("tiny_clip.safetensors")
LOG = Path(__file__).with_name("tiny_clip_training.json")
open_clip.add_model_config(CONFIG)


def create_tiny(weights: Path | None = None) -> open_clip.CLIP:
    """Return the model of ``tiny_clip.json`` with the weights of a file, or with random ones.

    The model takes (B, 3, 224, 224) images normalised by ``model.visual.image_mean`` and ``image_std``, and (B, 20)
    tokens.
    """
    return open_clip.create_model(CONFIG.stem, pretrained=weights and str(weights))


@lru_cache(maxsize=1)
def tiny_tokenizer() -> SimpleTokenizer:
    """Return CLIP's tokenizer with the first merges of its byte-pair encoding only: one per embedding of the model.

    The full vocabulary of 49,408 words would take up most of the weight file. The end-of-text token keeps the highest
    id, which open_clip's pooling of texts needs.
    """
    text = json.loads(CONFIG.read_text())["text_cfg"]
    merges = text["vocab_size"] - 512 - 2  # 256 bytes, alone and as the end of a word; start and end of text
    with gzip.open(default_bpe()) as lines:
        kept = b"".join(islice(lines, 1 + merges))
    return SimpleTokenizer(io.BytesIO(gzip.compress(kept.rstrip(b"\n"))), context_length=text["context_length"])
