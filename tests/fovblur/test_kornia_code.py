"""Kornia's own code gives the same features when our blur runs in place of kornia's."""

import sys

import pytest
import torch

from fovblur.adapters.kornia import gaussian_blur2d

LAFS = torch.tensor([[[8.0, 1.0, 20.0], [-1.0, 7.0, 24.0]], [[12.0, 0.0, 30.0], [0.0, 12.0, 20.0]]])
CODE = {  # of kornia, and the borders that it asks for
    "SIFT": (lambda k, x: k.feature.SIFTDescriptorFromPyramid().orient_and_describe(x, LAFS[None])[1], {"replicate"}),
    "MKD": (lambda k, x: k.feature.MKDDescriptor(40, whitening=None)(x[..., :40, :40]), {"replicate"}),
    "Harris": (lambda k, x: k.feature.harris_response(x), {"reflect"}),
    "DoG": (lambda k, x: k.feature.dog_response_single(x, 1.0, 1.6), {"reflect"}),
    "unsharp": (lambda k, x: k.filters.unsharp_mask(x, (5, 9), (1.0, 2.5), "circular"), {"circular"}),
    "pyramid": (lambda k, x: k.geometry.ScalePyramid(3, 1.6, 15)(x)[0][0], {"reflect"}),
    "module": (lambda k, x: k.filters.GaussianBlur2d((7, 5), (1.5, 0.8), "constant")(x), {"constant"}),
}


@pytest.mark.parametrize("name", CODE)
def test_code_of_kornia_runs_on_our_blur(name, seed, monkeypatch):
    import kornia  # here, as machines that only collect the tests of a GPU may lack it

    code, borders = CODE[name]
    image = kornia.filters.gaussian_blur2d(torch.rand(1, 1, 48, 56), (5, 5), (1.0, 1.0))
    expected = code(kornia, image)
    asked = []

    def blur(input, kernel_size, sigma, border_type="reflect", separable=True):
        asked.append(border_type)
        return gaussian_blur2d(input, kernel_size, sigma, border_type, separable)

    for module in list(sys.modules.values()):
        if module.__name__.startswith("kornia.") and "gaussian_blur2d" in vars(module):
            monkeypatch.setattr(module, "gaussian_blur2d", blur)
    ours = code(kornia, image)
    assert set(asked) == borders
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)
