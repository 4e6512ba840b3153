"""Derivatives of the similarity in forward mode, under torch.func, and by plain operations."""

import io

import onnxruntime
import pytest
import torch
from comparisons import relative_error
from torch import func, nn
from torch.autograd import forward_ad

import fovblur

DOUBLE = torch.float64
SHAPES = (3, 4), (5, 4), (3, 2), (5, 2), (3,), (5,)


@pytest.fixture
def inputs(seed) -> list[torch.Tensor]:
    drawn = [torch.randn(shape, dtype=DOUBLE) for shape in SHAPES]
    drawn[4][1] = drawn[5][2] = 0  # closed gates have derivatives, too
    return drawn


def similarity(*inputs, backend: str | None = "cpu") -> torch.Tensor:
    *embeddings, row_gate, column_gate = inputs
    return fovblur.enhanced_similarity(*embeddings, row_gate=row_gate, column_gate=column_gate, backend=backend)


def formula(brain_image, image, brain_text, text, row_gate, column_gate):
    return brain_image @ image.T * (1 + row_gate[:, None] * column_gate * (brain_text @ text.T))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_forward_mode_is_the_derivative_along_a_direction(backend, inputs):
    direction, step = [torch.randn_like(each) for each in inputs], 1e-6
    ends = [formula(*(x + sign * step * d for x, d in zip(inputs, direction))) for sign in (1, -1)]
    expected = (ends[0] - ends[1]) / (2 * step)
    call = lambda *at: similarity(*at, backend=backend)  # noqa: E731
    value, tangent = func.jvp(call, tuple(inputs), tuple(direction))
    assert relative_error(value, formula(*inputs)) < 1e-14 and relative_error(tangent, expected) < 1e-8
    with forward_ad.dual_level():
        dual = call(*(forward_ad.make_dual(x, d) for x, d in zip(inputs, direction)))
        assert relative_error(forward_ad.unpack_dual(dual).tangent, expected) < 1e-8


@pytest.mark.parametrize("argument", range(6))
def test_jacobians_and_hessians_are_those_of_the_formula(argument, inputs):
    def of(function):
        return lambda x: function(*inputs[:argument], x, *inputs[argument + 1 :]).square().sum(0)

    for transform in (func.jacrev, func.jacfwd, func.hessian):
        ours, expected = (transform(of(each))(inputs[argument]) for each in (similarity, formula))
        assert expected.any() and relative_error(ours, expected) < 1e-12


def test_vmap_takes_a_batch_of_any_argument(inputs):
    batch = [torch.stack([each, 2 * each]) for each in inputs]
    ours = func.vmap(similarity, in_dims=(0, None, 0, None, None, 0))(
        batch[0], inputs[1], batch[2], inputs[3], inputs[4], batch[5]
    )
    expected = [formula(b[0], inputs[1], b[2], inputs[3], inputs[4], b[5]) for b in zip(*batch)]
    assert relative_error(ours, torch.stack(expected)) < 1e-14


def test_a_closed_gate_ignores_infinite_texts_under_transforms(inputs):
    inputs[2][1] = torch.inf  # of the recording whose gate is 0
    _, tangent = func.jvp(lambda x: similarity(x, *inputs[1:]), (inputs[0],), (inputs[0],))
    assert torch.allclose(tangent[1], inputs[0][1] @ inputs[1].T)


class Similarity(nn.Module):
    def forward(self, *inputs):
        return similarity(*inputs, backend="reference")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("dynamo", [False, True])
def test_the_reference_traces_and_exports_to_onnx(dynamo, inputs):
    module, inputs = Similarity(), [each.float() for each in inputs]
    others = [2 * each for each in inputs]
    assert torch.equal(torch.jit.trace(module, tuple(inputs))(*others), module(*others))
    file = io.BytesIO()
    if dynamo:
        torch.onnx.export(module, tuple(inputs), dynamo=True, verbose=False).save(file)
    else:
        torch.onnx.export(module, tuple(inputs), file, dynamo=False, opset_version=18)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    (exported,) = session.run(None, dict(zip(names, (each.numpy() for each in others))))
    torch.testing.assert_close(torch.from_numpy(exported), module(*others), rtol=1e-5, atol=1e-5)
