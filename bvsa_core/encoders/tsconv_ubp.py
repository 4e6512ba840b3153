"""TSConv as the code of UBP and BVSA has it, without NICE's 1 x 1 convolution."""

from torch import nn

from bvsa_core.encoders import InputSpec, tsconv
from bvsa_core.encoders.tsconv import Options


def build(shape: InputSpec, options: Options) -> nn.Module:
    """Build the encoder."""
    return tsconv.build(shape, options, pointwise=False)
