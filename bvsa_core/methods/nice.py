"""NICE: natural image contrast (Song et al., ICLR 2024). The symmetric contrastive loss at a fixed scale, sharp images.

Its training is part of the published system: the encoder TSConv, Adam, weights from N(0, 0.02), and 740 held-out
images, whose loss selected the published weights. `selection` in the protocol of a score says what selected ours. The
preset `code` takes all channels, and the weights that are best on the held-out images.
"""

from bvsa_core.encoders import InputSpec
from bvsa_core.methods.base import LogitOptions, Preset
from bvsa_core.methods.vanilla import Vanilla


class NICE(Vanilla):
    """Vanilla with a scale of 1 / 0.07 throughout."""

    TRAINING = {
        "encoder": "tsconv",
        "optimiser": "adam",
        "lr": 2e-4,
        "betas": (0.5, 0.999),
        "weight_decay": 0.0,
        "batch_size": 1000,
        "epochs": 200,
        "initial_std": 0.02,
        "validation": 740,
    }
    PRESETS = {"corrected": Preset(), "code": Preset({}, {"channels": "all", "selection": "validation"})}
    DEVIATIONS = (
        "holds out images by whole concepts; the released code holds out 740 at random, and keeps the weights with the "
        "least loss on them",
    )

    def __init__(self, options: LogitOptions, build_encoder, samples: int, shape: InputSpec):
        super().__init__(options, build_encoder, samples, shape)
        self.logit_scale.requires_grad_(False)


METHOD = NICE
