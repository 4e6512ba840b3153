"""Test recordings for a report: read from the data folders of its runs, and reduced to what the page shows."""

from pathlib import Path

import numpy as np

from bvsa_core.data.dataset import Dataset
from bvsa_core.data.split import load_split
from bvsa_core.data.store import read_header
from bvsa_core.errors import UserError
from bvsa_core.report.content import RecordingExamples
from bvsa_core.retrieval.result import RunResult
from bvsa_core.training.config import RunConfig

CHANNELS = 32  # shown of each recording, evenly spaced
TIMES = 50  # shown of each recording: means over as many equal parts
VALUES = 600_000  # of all recordings of a page, each a byte


class RecordingCache:
    """The recordings that a report shows, each subject's once.

    Args:
        data: data folder of all recordings; default: the one named by each run.
    """

    def __init__(self, data: Path | None = None):
        self.data = data
        self.examples: list[RecordingExamples] = []
        self.messages: list[str] = []  # about recordings that are not shown
        self._indices: dict[tuple, int | None] = {}
        self._size = 0

    def index_of(self, config: RunConfig, result: RunResult, queries: int) -> int | None:
        """Return the index of the first recordings that a run was tested on, None if they are not shown."""
        data = self.data or config.data
        chosen = str(config.channels), config.window, config.repetitions, result.axes
        key = str(data), config.subject, chosen, tuple(result.images[:queries])
        if key not in self._indices:
            self._indices[key] = self._add(data, config, result, queries)
        return self._indices[key]

    def _add(self, data: Path, config: RunConfig, result: RunResult, queries: int) -> int | None:
        if self._size >= VALUES:
            self._say("Recordings of some runs are not shown, to keep the page small.")
            return None
        try:
            examples = read_examples(data, config, result, queries)
        except UserError as error:
            self._say(f"Recordings cannot be read ({error}); name their folder with 'bvsa report RUN --data FOLDER'.")
            return None
        self._size += examples.values.size
        self.examples.append(examples)
        return len(self.examples) - 1

    def _say(self, message: str) -> None:
        if message not in self.messages:
            self.messages.append(message)


def read_examples(data: Path, config: RunConfig, result: RunResult, queries: int) -> RecordingExamples:
    """Read the recordings of the first test images of a run, and reduce them.

    Raises:
        UserError: the data are missing, damaged, or those of other images than the run's.
    """
    dataset = Dataset(data)
    chosen = config.channels, config.window, True, config.repetitions, result.axes
    split = load_split(dataset, [config.subject], "test", *chosen)
    if split.images != result.images:
        raise UserError(f"{data}: the test images of {config.subject} are not those of the run")
    order = split.image_of.argsort()[:queries].numpy()
    kept = np.unique(np.linspace(0, len(split.channels) - 1, min(CHANNELS, len(split.channels))).round().astype(int))
    values = split.recordings.numpy()[np.ix_(order, kept)]
    starts = np.linspace(0, values.shape[2], min(TIMES, values.shape[2]), endpoint=False).astype(int)
    widths = np.diff([*starts, values.shape[2]])
    means = lambda array: np.add.reduceat(array, starts, axis=-1) / widths  # noqa: E731
    folder = dataset.recordings_folder / config.subject
    return RecordingExamples(
        subject=config.subject,
        values=means(values).astype(np.float32),
        times=means(np.asarray(split.times, float)).tolist(),
        channels=[split.channels[i] for i in kept],
        recorded_channels=len(split.channels),
        units=read_header(folder).units if dataset.in_store(config.subject) else "",
    )
