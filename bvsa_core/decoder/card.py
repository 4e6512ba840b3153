"""The model card of a decoder: what it does, and the protocol under which it was trained and scored."""

from __future__ import annotations

from huggingface_hub import ModelCardData

import bvsa_core
from bvsa_core.data.dataset import SYNTHETIC
from bvsa_core.decoder.memory_data import TrainingSet
from bvsa_core.errors import first_few, printable
from bvsa_core.report.tables import markdown_table
from bvsa_core.retrieval.result import RunResult
from bvsa_core.retrieval.scoring import window_text
from bvsa_core.training.config import SELECTIONS, RunConfig, deviations
from bvsa_core.vision.clip import TINY

MADE = "synthetic data: made on a machine by a forward model, not recorded from people"
TOY = "a toy encoder for synthetic images: do not compare scores with published ones"


def model_card(
    config: RunConfig, training: TrainingSet, epoch: int, result: RunResult | None, metadata: ModelCardData
) -> str:
    """Return the text of README.md.

    Args:
        config: of the training.
        training: what was trained on.
        epoch: whose weights were kept.
        result: of the last evaluation, if there was one.
        metadata: library, tags and so on.
    """
    axes, data = training.axes, training.dataset
    synthetic = SYNTHETIC in data.split(", ")
    toy = training.encoder.partition(" ")[0] == TINY and not synthetic
    rate = f"{axes.sampling_rate:g} Hz" if axes.sampling_rate else "unknown"
    times = window_text(axes.window) if axes.window else f"{len(axes.times)} samples"
    rows = {
        "method, preset": f"{config.method}, {config.preset}",
        "brain encoder": config.encoder,
        "images by": f"{training.encoder} ({TOY})" if toy else training.encoder,
        "data": f"{data} ({MADE})" if synthetic else data,
        "recordings": f"{training.modality}, {training.units}",
        "subjects": first_few(training.subjects, 20),
        "channels": f"{len(axes.channels)}: {first_few(list(axes.channels), 300)}",
        "sampling rate": rate,
        "window after image onset": times,
        "trained on": f"{training.samples} samples, {len(training.images)} images, {len(training.concepts)} concepts",
        "repetitions averaged": str(training.repetitions),
        "weights": f"epoch {epoch} of {config.epochs}, selection {SELECTIONS[config.selection]}, seed {config.seed}",
    }
    lines = [
        f"# {config.method}: the image seen, from {training.modality}",
        "",
        "Ranks images by how well they fit a recording of somebody who looked at one of them.",
        f"Trained with `bvsa_core` of fovblur {bvsa_core.__version__}.",
        "",
        *([f"**{MADE}.**", ""] if synthetic else []),
        "```python",
        "import bvsa_core",
        "",
        'decoder = bvsa_core.Decoder.from_pretrained("OWNER/NAME")  # or the folder',
        f"# recordings: (N, {len(axes.channels)}, {len(axes.times)}) floats, of the channels and times below",
        'print(decoder.retrieve(recordings, images="FOLDER", top=5).images)',
        "```",
        "",
        "## Protocol",
        "",
        markdown_table(("", "value"), [(name, _line(value)) for name, value in rows.items()]),
        "",
        "## Deviations from the published method",
        "",
        *([f"- {_line(each)}" for each in deviations(config)] or ["None is known."]),
        "",
        "## Scores",
        "",
        *_scores(result),
    ]
    return f"---\n{metadata.to_yaml()}\n---\n\n" + "\n".join(lines) + "\n"


def _scores(result: RunResult | None) -> list[str]:
    if result is None:
        return ["Not evaluated before it was saved."]
    scores = result.scores
    values = (
        f"{100 * scores.top1:.1f}",
        f"{100 * scores.top5:.1f}",
        f"{100 * scores.map:.1f}",
        f"{scores.median_rank:g}",
    )
    chance = f"{100 / result.protocol.gallery:.2g}"
    table = markdown_table(
        ("subject", "Top-1 %", "Top-5 %", "mAP %", "median rank", "chance %", "n"),
        [(_line(result.subject), *values, chance, str(scores.n))],
    )
    return [table, "", f"Protocol: {_line(str(result.protocol))}."]


def _line(text: str) -> str:
    """Return text from a data set as one line without markup."""
    return printable(" ".join(text.split())).replace("<", "&lt;").replace("`", "'")
