"""What a layout's `find` and `read` take and return."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bvsa_core.data import things_meg
from bvsa_core.data.store import fingerprint
from bvsa_core.errors import UserError
from bvsa_core.progress import Progress


@dataclass(frozen=True)
class ConversionOptions:
    """How recordings are converted; a layout refuses options that are fixed in it."""

    subjects: list[str] = field(default_factory=list)
    """Such as sub-01; default: all."""
    name: str = ""
    """Name of the data set in tables; default: THINGS-EEG2 or THINGS-MEG."""
    images: Path | None = None
    """Folder or zip file with training_images and test_images, or image_metadata.npy; default: looked for beside the
    recordings."""
    texts: Path | None = None
    """Captions that runs use in place of prompts, by name of image or concept: .csv, .tsv (columns image or concept,
    and text) or .json."""
    concepts: Path | None = None
    """List of objects of THINGS (.tsv or .csv with the columns uniqueID and Word), whose words prompts then use."""
    whole_epoch: bool = False
    """Keep the samples before image onset, too; methods take them as input."""
    sampling_rate: float = 250.0
    """Hz, after resampling; only for raw recordings."""
    whitening: Literal["train", "original", "none"] = "train"
    """MVNN of raw recordings: `train` fits each session's covariance on training data alone; `original` as Gifford et
    al. (2022) on training and test data (which lets test recordings shape the features); `none`."""
    sensors: int = things_meg.SENSORS
    """Number of MEG sensors that a file must have; only for epochs in .fif files."""


@dataclass(frozen=True)
class SubjectSource:
    """One subject in a published layout, found but not read."""

    layout: str
    subject: str  # such as sub-01
    root: Path
    files: list[Path]  # all that conversion reads
    fixed_options: tuple[str, ...] = ("sampling_rate", "whitening")  # refused, as the files were made with them
    modality: str = "EEG"  # or MEG: the modality requested, if the layout holds either

    def recipe(self, options: ConversionOptions) -> dict[str, Any]:
        """Return layout, options and source files, by which the store recognises the conversion."""
        default = ConversionOptions()
        for name in self.fixed_options:
            if (value := getattr(options, name)) != getattr(default, name):
                raise UserError(f"{name} is {value}, but fixed in the layout {self.layout}; leave it out")
        ignored = {"subjects", "name", "images", "texts", "concepts", *self.fixed_options}
        chosen = {key: value for key, value in dataclasses.asdict(options).items() if key not in ignored}
        return {"layout": self.layout, **chosen, "files": fingerprint(self.files, self.root)}

    def file(self, name: str) -> Path:
        """Return the subject's file of that name, which the layout needs."""
        for path in self.files:
            if path.name == name:
                return path
        raise UserError(f"{self.root}: {self.subject} has no {name}; fetch it")


@dataclass(frozen=True)
class ReadContext:
    """What `read` has beside a subject's files."""

    options: ConversionOptions
    cached: Callable[[str, Callable[[], np.ndarray]], np.ndarray]  # see `store.Writer`; kept until the subject is done
    progress: Progress


@dataclass(frozen=True)
class Epochs:
    """One split of a subject as its layout has it, opened but not read. Conditions are in the order of their images.

    `blocks` takes the range of samples to keep and yields pairs: an index into (conditions, repetitions), and the
    samples (..., channels, time) that belong there.
    """

    path: Path  # named in errors
    shape: tuple[int, ...]  # (conditions, repetitions, channels, time)
    blocks: Callable[[slice], Iterator[tuple[Any, np.ndarray]]]
    images: list[str]  # (conditions,)
    concepts: list[str]  # (conditions,)
    channels: Any  # names, as the file has them
    times: Any  # seconds, one per sample; if there are more, the last ones are used
    units: str
    processing: list[str]  # steps so far
    sessions: list[list[int]] | None = None  # (conditions, repetitions) from 1
    sampling_rate: float | None = None  # Hz, of exact times; default: computed from times, rounded to microseconds
    last_step: str = "Samples from {first:g} to {last:g} s kept, as float16."
    whitened_from: list[list[float]] | None = None  # see `store.Header`
    source: str = ""  # see `store.Header`
