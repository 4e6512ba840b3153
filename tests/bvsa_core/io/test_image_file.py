"""Images from outside are decoded, or a UserError that names the file."""

import numpy as np
import pytest
from PIL import Image

from bvsa_core.errors import UserError
from bvsa_core.io.image_file import read_image


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "gif"])
def test_images_are_decoded(tmp_path, suffix):
    Image.new("RGB", (5, 4), (255, 0, 0)).save(tmp_path / f"x.{suffix}")
    pixels = np.asarray(read_image(tmp_path / f"x.{suffix}"))
    assert pixels.shape == (4, 5, 3) and (pixels[..., 0] >= 250).all()


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_are_scaled_by_their_range(tmp_path, suffix):
    ramp = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / f"x.{suffix}")
    pixels = np.asarray(read_image(tmp_path / f"x.{suffix}"))
    assert (pixels == np.arange(256, dtype=np.uint8).reshape(16, 16)[..., None]).all() and pixels.shape == (16, 16, 3)


def test_pixels_of_unknown_range_are_refused(tmp_path):
    for kind in (np.float32, np.int32):
        Image.fromarray(np.linspace(0, 1, 16).reshape(4, 4).astype(kind)).save(tmp_path / "x.tif")
        with pytest.raises(UserError, match=r"x.tif cannot be read .*range is unknown; save it with 8 or 16 bits"):
            read_image(tmp_path / "x.tif")


def test_unreadable_images_are_reported(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "x.png")
    whole = (tmp_path / "x.png").read_bytes()
    Image.new("RGB", (5, 4)).save(tmp_path / "x.eps")  # for which Pillow would start Ghostscript
    wrong = {
        "eps.jpg": (tmp_path / "x.eps").read_bytes(),
        "cut.png": whole[:60],
        "giant.png": whole[:-12] + b"\x7f\xff\xff\xf0iTXt" + whole[-12:],
        "empty.jpg": b"",
    }
    for name, content in wrong.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name} cannot be read .*; fetch or make it again") as caught:
            read_image(tmp_path / name)
        assert not isinstance(caught.value.__cause__, MemoryError) and "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"nowhere.png is missing"):
        read_image(tmp_path / "nowhere.png")
