"""With the reference, whatever PyTorch can do with plain operations works: tracing, ONNX, torch.func, all gradients."""

import io

import onnxruntime
import pytest
import torch
from torch import func, nn

import fovblur
from fovblur.modules import FoveatedBlur2d

SIGMA = torch.tensor([0.7, 1.6], dtype=torch.float64)
OPTIONS = [
    {"sigma": 1.5, "kernel_size": 5},
    {"sigma": 0.8, "gain": 0.2},
    {"kernel_size": 7, "fixation": (1.0, 2.0), "gain": 1.0, "mean": (0.1, 0.2), "std": 0.5},
    {"sigma": (1.5, 0.7), "kernel_size": (5, 9), "border": "circular"},
    {"kernel_size": (5, 3), "rule": "opencv", "border": "constant", "fixation": [[(1.0, 2.0), (4.0, 4.0)]]},
]


@pytest.fixture
def images(seed) -> torch.Tensor:
    return torch.rand(2, 2, 6, 7, dtype=torch.float64)


def blur(images, sigma=SIGMA, **options):
    options = {"kernel_size": 5, "gain": 0.4, "fixation": (2.0, 3.25), **options}
    return fovblur.foveated_blur(images, sigma, backend="reference", **options)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_traces_and_exports_to_onnx(images, options):
    module, images = FoveatedBlur2d(**options, backend="reference"), images.float()
    assert torch.equal(torch.jit.trace(module, images)(2 * images), module(2 * images))
    for dynamo in (False, True):
        file = io.BytesIO()
        if dynamo:
            torch.onnx.export(module, (images,), dynamo=True, verbose=False).save(file)
        else:
            torch.onnx.export(module, (images,), file, dynamo=False, opset_version=18)
        session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
        (exported,) = session.run(None, {session.get_inputs()[0].name: (2 * images).numpy()})
        torch.testing.assert_close(torch.from_numpy(exported), module(2 * images), rtol=1e-5, atol=1e-5)


def test_compiles_and_exports(images):
    assert torch.allclose(torch.compile(blur, fullgraph=True)(images), blur(images))

    class Blur(nn.Module):
        def forward(self, images):
            return blur(images)

    assert torch.equal(torch.export.export(Blur(), (images,)).module()(images), blur(images))


def test_forward_mode_is_the_blurred_tangent(images):
    assert torch.allclose(func.jvp(blur, (images,), (images,))[1], blur(images))
    step = 1e-6
    along_sigma = (blur(images, SIGMA + step * SIGMA) - blur(images, SIGMA - step * SIGMA)) / (2 * step)
    assert torch.allclose(func.jvp(lambda s: blur(images, s), (SIGMA,), (SIGMA,))[1], along_sigma, atol=1e-8)


def test_jacobians_and_hessians(images):
    of_sigma = lambda sigma: blur(images, sigma, kernel_size=None)  # noqa: E731
    assert torch.allclose(func.jacrev(of_sigma)(SIGMA), func.jacfwd(of_sigma)(SIGMA))
    loss = lambda sigma: of_sigma(sigma).square().sum()  # noqa: E731
    hessian, step = func.hessian(loss)(SIGMA), torch.tensor([1e-5, 0], dtype=torch.float64)
    differences = (func.grad(loss)(SIGMA + step) - func.grad(loss)(SIGMA - step)) / (2 * 1e-5)
    assert torch.allclose(hessian[0], differences, rtol=1e-5, atol=1e-7)


def test_vmap(images):
    stacked, sigmas = torch.stack([images, 2 * images]), torch.stack([SIGMA, 2 * SIGMA])
    expected = torch.stack([blur(images, SIGMA), blur(2 * images, 2 * SIGMA)])
    assert torch.allclose(func.vmap(blur)(stacked, sigmas), expected)


def test_every_parameter_has_first_and_second_derivatives(images):
    shapes = {"gain": (2,), "fixation": (2, 2), "mean": (2,), "std": (2,)}
    values = [torch.rand(shape, dtype=torch.float64) * 0.5 + 0.3 for shape in shapes.values()]
    values[1] += 2  # pixels, between them
    inputs = [each.requires_grad_() for each in (images, SIGMA.clone(), *values)]

    def all_of(images, sigma, *parameters):
        return blur(images, sigma, **dict(zip(shapes, parameters)))

    assert torch.autograd.gradcheck(all_of, inputs) and torch.autograd.gradgradcheck(all_of, inputs)


def test_a_fixation_on_a_pixel_has_finite_gradients(images):
    fixation = torch.tensor([2.0, 3.0], dtype=torch.float64, requires_grad=True)
    blur(images, fixation=fixation).square().sum().backward()
    assert fixation.grad.isfinite().all() and fixation.grad.any()
