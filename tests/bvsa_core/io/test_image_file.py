"""Images from outside are decoded, or a UserError that names the file."""

import numpy as np
import pytest
from PIL import Image

from bvsa_core.errors import UserError
from bvsa_core.io.image_file import read_image


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "gif"])
def test_images_are_decoded(tmp_path, suffix):
    Image.new("RGB", (5, 4), (255, 0, 0)).save(tmp_path / f"x.{suffix}")
    pixels = np.asarray(read_image(tmp_path / f"x.{suffix}").convert("RGB"))
    assert pixels.shape == (4, 5, 3) and (pixels[..., 0] >= 250).all()


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
