"""Wrong arguments of the similarity: every error names the argument, its value and what is allowed."""

import numpy as np
import pytest
import torch

import fovblur

GOOD = dict(zip(("brain_image", "image", "brain_text", "text"), map(torch.rand, ((2, 4), (3, 4), (2, 5), (3, 5)))))
CASES = {
    TypeError: [
        (dict(image=np.zeros((3, 4))), r"image is a ndarray; pass a torch.Tensor of shape \(M, D\)"),
        (dict(brain_image=torch.zeros(2, 4).int()), "brain_image is torch.int32; it must be one of float16"),
        (dict(text=torch.rand(3, 5).double()), "text is torch.float64 and brain_image torch.float32; all must be"),
        (dict(image=torch.rand(3, 4).to_sparse()), "image must be a dense tensor"),
        (dict(row_gate=1.0), r"row_gate is a float; pass None or a torch.Tensor of shape \(2,\)"),
        (dict(column_gate=torch.ones(3) * 1j), "real numbers or booleans"),
    ],
    ValueError: [
        (dict(brain_text=torch.rand(5)), r"brain_text has shape \(5,\); it must be \(N, E\); add a dimension with"),
        (dict(image=torch.rand(3, 4, device="meta")), "image is on meta and brain_image on cpu; they must"),
        (dict(image=torch.rand(3, 6)), r"image has shape \(3, 6\) and brain_image \(2, 4\); their numbers of columns"),
        (dict(brain_text=torch.rand(1, 5)), r"brain_text has shape .* and brain_image .*; their numbers of rows"),
        (dict(text=torch.rand(1, 5)), "text has shape .* and image .*; their numbers of rows"),
        (dict(text=torch.rand(3, 6)), "text has shape .* and brain_text .*; their numbers of columns"),
        (
            dict(row_gate=torch.ones(3)),
            r"row_gate has shape \(3,\); it must be \(2,\), one for each row of brain_image",
        ),
        (dict(column_gate=torch.ones(1, 3)), r"column_gate has shape \(1, 3\); it must be \(3,\)"),
        (dict(column_gate=torch.ones(3, device="meta")), "column_gate is on meta and image on cpu"),
        (dict(backend="fast"), "backend is 'fast'; choose one of auto, reference"),
    ],
}
CASES_OF_K = [
    (0, ValueError, "k is 0; it must be from 1 to 3, the number of rows of image"),
    (-1, ValueError, "k is -1"),
    (4, ValueError, "k is 4; it must be from 1 to 3"),
    (2.0, TypeError, r"k is 2.0 \(float\); it must be an int"),
    (True, TypeError, "k is True"),
    (None, TypeError, "k is None"),
]


@pytest.mark.parametrize(("error", "case"), [(error, case) for error, cases in CASES.items() for case in cases])
def test_wrong_arguments(error, case):
    change, message = case
    with pytest.raises(error, match=message):
        fovblur.enhanced_similarity(**GOOD | change)
    with pytest.raises(error, match=message):
        fovblur.enhanced_topk(**GOOD | change, k=1)


def test_wrong_k():
    for k, error, message in CASES_OF_K:
        with pytest.raises(error, match=message):
            fovblur.enhanced_topk(**GOOD, k=k)
    with pytest.raises(ValueError, match="k is 1; it must be from 1 to 0"):
        fovblur.enhanced_topk(**GOOD | {"image": torch.rand(0, 4), "text": torch.rand(0, 5)}, k=1)
