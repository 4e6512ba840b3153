"""Figures of linear decoding and of confidence, and that no legend covers axes however many rows there are."""

from dataclasses import replace

import matplotlib
import numpy as np
import pytest
from results import report_row

from bvsa_core.report.content import Accuracy, LinearDecoding, Report, RetrievalExample
from bvsa_core.report.decoding_figures import confidence, confidence_figure, decoding_figures
from bvsa_core.report.result_figures import report_figures
from bvsa_core.report.style import STYLE

LOW, HIGH = Accuracy(0.0, 0.0, 0.01), Accuracy(0.4, 0.3, 0.5)
PARTS = {"O1": HIGH, "Oz": HIGH, "O2": LOW, "PO3": LOW, "PO4": LOW}


def decoding(**changes) -> LinearDecoding:
    content = {
        "data": "fake", "subject": "sub-01", "images": 200, "target": "tiny", "window": 0.1, "everything": HIGH,
        "windows": {0.05: LOW, 0.15: HIGH}, "regions": {"frontal": LOW, "occipital": HIGH}, "channels": PARTS,
        "layers": {"layer 2": HIGH, "output": LOW},
    }  # fmt: skip
    return LinearDecoding(**{**content, **changes})


def drawn(spec):
    with matplotlib.rc_context(STYLE):
        figure = spec.draw()
        figure.draw_without_rendering()
    return figure


def test_figures_name_the_best_window_place_and_layer():
    figures = decoding_figures(decoding())
    texts = [figure.alt for figure in figures]
    assert len(figures) == 3
    assert "40.0 percent at 150 ms" in texts[0] and ": occipital." in texts[1] and ": layer 2." in texts[2]
    assert "sub-01" in figures[0].title and "100 ms" in figures[0].caption
    for each in figures:
        drawn(each)


@pytest.mark.parametrize("changes", [{"channels": {}}, {"regions": {}}, {"channels": {"E1": HIGH}}])
def test_figures_without_positions_or_regions(changes):
    for each in decoding_figures(decoding(layers={}, **changes)):
        drawn(each)
    assert len(decoding_figures(decoding(layers={}, regions={}, channels={}))) == 1


def retrieval(similarity: np.ndarray, label: str = "bvsa") -> RetrievalExample:
    return RetrievalExample(label, "fake", "sub-01", 0, [], [], [], [], similarity)


def test_confidence_orders_recordings_by_the_margin_of_the_best():
    similarity = np.zeros((16, 16))
    for i in range(16):  # the later half is right, by a larger margin
        similarity[i, i if i >= 8 else (i + 1) % 8] = 0.1 + i
    values = confidence([retrieval(similarity), retrieval(similarity)])
    assert values[:, 0].tolist() == [0.0] * 4 + [100.0] * 4
    assert "from 0 to 100 percent" in confidence_figure("fake", [retrieval(similarity)]).alt


def test_confidence_of_fewer_recordings_than_groups():
    assert confidence([retrieval(np.eye(3))])[:, 0].tolist() == [100.0] * 3


@pytest.mark.parametrize("images", [1, 2])
def test_a_gallery_of_one_image_has_no_similarities_to_compare(images):
    row = report_row("bvsa")
    shown = replace(retrieval(np.eye(images), row.label), data=row.comparison.data)
    names = [each.name.partition("-")[0] for each in report_figures(Report("title", [row], retrievals=[shown]))]
    assert ("similarity" in names, "confidence" in names) == (images > 1,) * 2


@pytest.mark.parametrize("rows", [1, 3, 14])
def test_no_legend_covers_axes_and_no_panel_is_blank(rows):
    report_rows = [report_row(f"a system with a long name, number {i}") for i in range(rows)]
    data = report_rows[0].comparison.data
    retrievals = [retrieval(np.eye(16), row.label) for row in report_rows]
    retrievals = [each.__class__(**{**each.__dict__, "data": data}) for each in retrievals]
    for spec in [*report_figures(Report("title", report_rows)), confidence_figure(data, retrievals)]:
        figure = drawn(spec)
        boxes = [axes.get_tightbbox() for axes in figure.axes if axes.get_visible()]
        for legend in figure.legends:
            covered = legend.get_window_extent()
            assert not any(covered.overlaps(box) for box in boxes), spec.name
        assert all(axes.has_data() for axes in figure.axes if axes.get_visible()), spec.name
        for axes in figure.axes:  # panels stay readable
            assert axes.get_window_extent().height > 40 or not axes.get_visible(), spec.name


def test_a_loss_of_another_scale_has_axes_of_its_own():
    small, large = report_row("small"), report_row("large")
    for epoch in large.runs[0].metrics:  # which all runs share
        epoch.update(loss=1000 * epoch["loss"], validation_loss=1000 * epoch["validation_loss"])
    (spec,) = (each for each in report_figures(Report("title", [small, large])) if each.name == "training")
    figure = drawn(spec)
    assert len(figure.axes) == 2 and "another scale" in spec.caption
    assert [max(line.get_ydata().max() for line in axes.lines) for axes in figure.axes] == pytest.approx([4, 4000])
