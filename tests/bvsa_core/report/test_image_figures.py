"""Figures that show images: which recordings, and their axes."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from bvsa_core.report.content import GalleryImage, Report, RetrievalExample
from bvsa_core.report.image_figures import retrieval_figure, similarity_figure


def retrieval(count: int, shown: int) -> RetrievalExample:
    top = [[i, (i + 1) % count] for i in range(shown)]
    return RetrievalExample("vanilla", "fake", "sub-01", 0, [*range(count)], [1] * count, top, top, np.eye(count))


@pytest.mark.parametrize(
    ("count", "shown", "seen", "text"),
    [
        (3, 3, [0, 1, 2], "3 recordings evenly spaced over the test set"),
        (11, 11, [0, 2, 4, 6, 8, 10], "6 recordings evenly spaced over the test set"),
        (30, 6, [0, 1, 2, 3, 4, 5], "over the first 6 recordings"),
    ],
)
def test_every_row_of_retrieved_images_is_another_recording(count, shown, seen, text):
    images = [GalleryImage(f"{i}.jpg", f"concept {i}") for i in range(count)]
    spec = retrieval_figure(Report("title", [], images, [], [], []), retrieval(count, shown))
    figure = spec.draw()
    rows = [axes.get_title(loc="left") for axes in figure.axes][::4]
    plt.close(figure)
    assert rows == [f"concept {i}" for i in seen] and text in spec.caption


def test_similarity_is_numbered_by_whole_images():
    figure = similarity_figure("fake", [retrieval(3, 3)]).draw()
    ticks = [*figure.axes[0].get_xticks(), *figure.axes[0].get_yticks()]
    plt.close(figure)
    assert ticks and all(tick == int(tick) for tick in ticks)
