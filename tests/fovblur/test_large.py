"""Offsets beyond 32 bits."""

import pytest
import torch
from backends_under_test import ON_GPU
from similarity_under_test import random_embeddings

import fovblur


def test_planes_may_lie_more_than_two_to_the_31_elements_apart(implementation, seed):
    """On a CPU only the pages that are touched, of 6 GiB of addresses, become memory."""
    images = torch.randint(0, 256, (3, 2, 9, 12), dtype=torch.uint8)
    far = 2**31 + 12_345
    held = torch.empty(2 * far + far // 2 + 1000, dtype=torch.uint8)
    spread = held.as_strided(images.shape, (far, far // 2, 12, 1)).copy_(images)
    sigma = torch.tensor([0.7, 2.0, 5.0])
    assert torch.equal(implementation.foveated_blur(spread, sigma), implementation.foveated_blur(images, sigma))


def test_rows_may_lie_more_than_two_to_the_31_elements_apart(implementation, seed):
    """As above, read 16 bytes at a time and one element at a time."""
    embeddings = random_embeddings(2, 3, 20, 10, torch.float16)
    expected = implementation.matrix(*embeddings)
    for far in (2**31 + 8, 2**31 + 9):
        held = torch.empty(far + 20, dtype=torch.float16)
        spread = held.as_strided((2, 20), (far, 1)).copy_(embeddings[0])
        assert torch.equal(implementation.matrix(spread, *embeddings[1:]), expected)


@pytest.mark.large
def test_a_batch_of_more_than_two_to_the_31_elements():
    """The images are one, expanded; their results take 2 GiB."""
    image = torch.randint(0, 256, (1, 1, 1024, 1024), dtype=torch.uint8, device="cuda" if ON_GPU else "cpu")
    batch = 2**11 + 3
    names = [name for name in ("cuda", "triton") if fovblur.available_backends()[name] is None] if ON_GPU else ["cpu"]
    for name in names:
        gain = torch.zeros(batch, device=image.device)
        gain[-2:] = torch.tensor([0.5, 1.0])
        out = fovblur.foveated_blur(image.expand(batch, -1, -1, -1), kernel_size=3, gain=gain, backend=name)
        assert out.numel() > 2**31
        for i in (0, 2**11 - 1, 2**11, batch - 2, batch - 1):
            expected = fovblur.foveated_blur(image, kernel_size=3, gain=gain[i].item(), backend=name)
            assert torch.equal(out[i : i + 1], expected), (name, i)
