"""What every layout says of a subject it found."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bvsa_core.data import things_meg
from bvsa_core.data.store import SubjectWriter, fingerprint
from bvsa_core.errors import UserError
from bvsa_core.progress import Progress


@dataclass(frozen=True)
class ConversionOptions:
    """How recordings are converted; those that a layout has settled already do not apply to it."""

    subjects: list[str] = field(default_factory=list)
    """Such as sub-01; all where left out."""
    name: str = ""
    """What tables call the data set; THINGS-EEG2 or THINGS-MEG where left out."""
    images: Path | None = None
    """Folder with training_images and test_images, or image_metadata.npy; looked for beside the recordings where left out."""
    whole_epoch: bool = False
    """Keep the samples before the image appears, too; methods take them as input."""
    sampling_rate: float = 250.0
    """Hz, after resampling; only for raw recordings."""
    whitening: Literal["train", "original", "none"] = "train"
    """MVNN of raw recordings: `train` fits each session's covariance on training data alone; `original` as Gifford et al. (2022)
    on training and test data (which lets test recordings shape the features); `none`."""
    sensors: int = things_meg.SENSORS
    """How many MEG sensors a file must have; only for epochs in .fif files."""


@dataclass(frozen=True)
class SubjectSource:
    """One subject in a published layout, found but not read."""

    layout: str
    subject: str  # such as sub-01
    root: Path
    files: list[Path]  # all that conversion reads
    read: Callable[
        [SubjectSource, SubjectWriter, ConversionOptions, Progress], None
    ]  # fills the writer and finishes it
    settled: tuple[str, ...] = ()  # options that this layout leaves no choice in
    modality: str = "EEG"  # or MEG: what is asked for, where the layout can be either

    def plan(self, options: ConversionOptions) -> dict[str, Any]:
        """What is made of what, for the store to compare.

        Raises:
            UserError: an option that the layout has settled already.
        """
        default = ConversionOptions()
        for name in self.settled:
            if getattr(options, name) != getattr(default, name):
                raise UserError(
                    f"{name} is {getattr(options, name)}, but in the layout {self.layout} that is settled; leave it out"
                )
        apart = {"subjects", "name", "images", *self.settled}
        kept = {key: value for key, value in dataclasses.asdict(options).items() if key not in apart}
        return {"layout": self.layout, **kept, "files": fingerprint(self.files, self.root)}

    def convert(self, writer: SubjectWriter, options: ConversionOptions, progress: Progress) -> None:
        self.read(self, writer, options, progress)
