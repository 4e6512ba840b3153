"""Where the images of a training are kept, as uint8, for views that are made online."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

MARGIN = 4 * 10**9  # bytes of a GPU's free memory that are left for the training


class Pixels:
    """Images on a device if they fit, else in pinned memory, from where batches are copied, the next one ahead of time.

    They fit on a GPU if MARGIN bytes of its free memory are left; 16,540 images of 224 x 224 take 2.5 GB.

    Args:
        images: (N, 3, size, size) uint8.
        device: where batches are needed.
        resident: keep the images on the device; default: if they fit.
    """

    def __init__(self, images: Tensor, device: torch.device, resident: bool | None = None):
        self.device, on_gpu = device, device.type == "cuda"
        self.resident = fits(images.nbytes, device) if resident is None else resident
        if self.resident:
            images = images.to(device)
        elif on_gpu and images.device.type == "cpu":
            images = images.pin_memory()
        self.images = images
        self._stream = torch.cuda.Stream(device) if on_gpu and not self.resident else None
        self._ahead: tuple[Tensor, Tensor] | None = None  # numbers of the images that were copied ahead, and these

    def __len__(self) -> int:
        return len(self.images)

    def rows(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return images (M, 3, size, size) on the device, and where in it the images (B,) are."""
        if self.resident:
            return self.images, indices.to(self.device)
        indices = indices.cpu()
        if self._ahead is None or not torch.equal(self._ahead[0], indices):
            self.prefetch(indices)
        assert self._ahead is not None
        batch = self._ahead[1]
        if self._stream is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(self._stream)
            batch.record_stream(current)
        return batch, torch.arange(len(indices), device=self.device)

    def prefetch(self, indices: Tensor) -> None:
        """Start to copy images (B,), numbers on the CPU, which `rows` will be asked for; the device goes on working."""
        if self.resident:
            return
        with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            chosen = self.images.new_empty((len(indices), *self.images.shape[1:]), pin_memory=self._stream is not None)
            batch = torch.index_select(self.images, 0, indices, out=chosen).to(self.device, non_blocking=True)
        self._ahead = indices, batch


def fits(size: int, device: torch.device) -> bool:
    """Return whether so many bytes may be kept on a device: always on a CPU, on a GPU if MARGIN bytes are left free."""
    return device.type != "cuda" or size + MARGIN <= torch.cuda.mem_get_info(device)[0]
