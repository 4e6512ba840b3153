"""THINGS-MEG at a small size: five concepts, two of them of the test set, four sensors."""

import csv
from pathlib import Path

import mne
import numpy as np

CONCEPTS = ("aardvark", "air_mattress", "bat1", "coat_rack", "zebra")
TESTED = (1, 3)
SENSORS = 4
TIMES = np.arange(-20, 261) / 200
COLUMNS = ("trial_type", "things_category_nr", "things_image_nr", "image_path", "session_nr")


def images() -> list[tuple[int, str]]:
    """Return concept number and path of every image: 13 of a concept, the last one for the test."""
    files = [f"{image:02d}{letter}.jpg" for image, letter in enumerate("bsnbsnbsnbsnx", start=1)]
    return [(k, f"images/{name}/{name}_{file}") for k, name in enumerate(CONCEPTS, start=1) for file in files]


def attributes(generator: np.random.Generator) -> list[dict]:
    """Return the trials as presented: every image once, test images in every session, and catch trials."""
    rows = []
    for session in range(1, 13):
        for concept, name in enumerate(CONCEPTS):
            number, path = concept * 13 + session, images()[concept * 13 + session - 1][1]
            rows.append(("exp", concept + 1, number, path.replace("images/", "images_meg/"), session))
            if concept in TESTED:
                rows.append(("test", concept + 1, concept * 13 + 13, f"images_test_meg/{name}_13x.jpg", session))
        rows.append(("catch", "n/a", None, "images_catch_meg/black.jpg", session))
    shuffled = sorted(rows, key=lambda row: (row[-1], generator.random()))
    return [dict(zip(COLUMNS, row)) for row in shuffled]


def epochs_of(rows: list[dict], samples: np.ndarray, rate: float = 200.0) -> mne.EpochsArray:
    events = np.zeros((len(rows), 3), int)
    events[:, 0] = np.arange(len(rows)) * 300
    events[:, 2] = [row["things_image_nr"] or 999999 for row in rows]
    names = [f"MLC{i + 11}-1609" for i in range(SENSORS)] + ["EEG1"]
    info = mne.create_info(names, rate, ["mag"] * SENSORS + ["eeg"])
    both = np.concatenate([samples, np.full_like(samples[:, :1], 7)], axis=1)  # the last one is no MEG sensor
    return mne.EpochsArray(both, info, events, tmin=-0.1, verbose="error")


def write_table(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
