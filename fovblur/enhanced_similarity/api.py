"""The public functions of the similarity: checks, and one call of an op."""

from __future__ import annotations

from torch import Tensor

from fovblur import backends
from fovblur.enhanced_similarity import reference, validation
from fovblur.enhanced_similarity.op import enhanced_similarity_op, enhanced_topk_op
from fovblur.enhanced_similarity.params import Inputs
from fovblur.sharding import by_sample
from fovblur.tracing import is_transformed


def enhanced_similarity(
    brain_image: Tensor,
    image: Tensor,
    brain_text: Tensor,
    text: Tensor,
    *,
    row_gate: Tensor | None = None,
    column_gate: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Return the similarity of N recordings to M images, enhanced where the recording agrees with the image's text.

    ``M = M_bi * (1 + r_i c_j M_bt)`` with ``M_bi = brain_image @ image.T``, ``M_bt = brain_text @ text.T``, and r and c
    the row and column gates. The similarity modulation of BVSA (CVPR 2026).

    Args:
        brain_image: (N, D) float16, bfloat16, float32 or float64, of any strides: image embeddings of the recordings.
        image: (M, D), same dtype and device: embeddings of the images. No embeddings are normalised; do so beforehand.
        brain_text: (N, E), same dtype and device: text embeddings of the recordings.
        text: (M, E), same dtype and device: embeddings of the images' texts.
        row_gate: (N,) of real numbers or booleans on the same device: r. Default: 1.
        column_gate: (M,): c. Default: 1. Where either gate is 0, M_bt is ignored, even if it is infinite or NaN; if all
            values of one gate are 0, the compiled backends do not compute it.
        backend: ``"reference"``, ``"cpu"``, ``"triton"``, ``"cuda"`` or ``"auto"``. Default: the environment variable
            FOVBLUR_BACKEND, else ``"auto"``: cpu for CPU tensors, cuda or triton for CUDA ones (triton first for half
            types on compute capability 9), the reference for others and for float64 on a GPU.

    Returns:
        (N, M) in the dtype of the embeddings: accumulated and modulated in float32 (float64 for float64), rounded once.
        For float32 values of half embeddings see :func:`enhanced_topk`. On GPUs float32 embeddings are multiplied in
        float32, or in tf32 if ``torch.set_float32_matmul_precision`` allows it, which it does not by default.

    Raises:
        TypeError, ValueError: a wrong type, shape, dtype or device; the message names the argument.
        RuntimeError: the requested backend cannot run; the message says why.

    Differentiable, any number of times, in the four embeddings and the gates, in forward mode too. Transforms of
    ``torch.func`` and forward mode use the reference, which is composed of PyTorch's own matrix products, so that
    tracing and ONNX work with ``backend="reference"``, too. Where the recordings are a DTensor that is sharded over N,
    every process computes its rows.

    Examples:
        >>> import torch
        >>> recordings, images = torch.eye(2, 4), torch.eye(3, 4)
        >>> enhanced_similarity(recordings, images, recordings, images)
        tensor([[2., 0., 0.],
                [0., 2., 0.]])
    """
    validation.check_embeddings(brain_image, image, brain_text, text)
    row_gate = validation.gate("row_gate", row_gate, "brain_image", brain_image)
    column_gate = validation.gate("column_gate", column_gate, "image", image)
    backends.check_name(backend)

    def similarity(brain_image, brain_text, row_gate, image, text, column_gate):
        inputs = Inputs(brain_image, image, brain_text, text, row_gate, column_gate)
        if backends.is_reference(backend) or is_transformed():
            return reference.enhanced_similarity(inputs).to(brain_image.dtype)
        return enhanced_similarity_op(*inputs, backend or "")

    return by_sample(similarity, brain_image, (brain_text, row_gate), (image, text, column_gate))


def enhanced_topk(
    brain_image: Tensor,
    image: Tensor,
    brain_text: Tensor,
    text: Tensor,
    k: int,
    *,
    row_gate: Tensor | None = None,
    column_gate: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the k images of the largest :func:`enhanced_similarity` to each recording, without the N x M matrix.

    Args:
        brain_image: (N, D), as for :func:`enhanced_similarity`.
        image: (M, D).
        brain_text: (N, E).
        text: (M, E).
        k: number of images, from 1 to M.
        row_gate: (N,). Default: 1.
        column_gate: (M,). Default: 1.
        backend: as for :func:`enhanced_similarity`.

    Returns:
        values: (N, k) float32 (float64 for float64 embeddings), descending.
        indices: (N, k) int64, rows of ``image``. Of equal values the lower index comes first, whatever the number of
            threads and tiles. NaN ranks below -inf, and -0 equals 0.

    Raises:
        TypeError, ValueError, RuntimeError: as for :func:`enhanced_similarity`, for a k out of range, and on a GPU for
            a gallery of more than about 2^32 rows.

    Not differentiable: gather the rows and call :func:`enhanced_similarity` on them.

    Examples:
        >>> import torch
        >>> recordings, images = torch.eye(2, 4), torch.eye(3, 4)
        >>> values, indices = enhanced_topk(recordings, images, recordings, images, 2)
        >>> indices
        tensor([[0, 1],
                [1, 0]])
    """
    validation.check_embeddings(brain_image, image, brain_text, text)
    validation.check_k(k, image)
    row_gate = validation.gate("row_gate", row_gate, "brain_image", brain_image)
    column_gate = validation.gate("column_gate", column_gate, "image", image)
    backends.check_name(backend)

    def topk(brain_image, brain_text, row_gate, image, text, column_gate):
        tensors = (brain_image, image, brain_text, text, row_gate, column_gate)
        return enhanced_topk_op(*(None if tensor is None else tensor.detach() for tensor in tensors), k, backend or "")

    return by_sample(topk, brain_image, (brain_text, row_gate), (image, text, column_gate))
