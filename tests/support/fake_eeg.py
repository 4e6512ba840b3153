"""A small data set of known samples, and writers of it in every published EEG layout."""

import json
import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bvsa_core.data.things_eeg import CHANNELS

SESSIONS = 4
TIMES = (np.arange(300) - 50) / 250  # of the whole epoch
ONSET = 50
IMAGES = {"train": (3, 2), "test": (3, 1)}  # concepts, images of each
PARTS = {"train": "training", "test": "test"}


@dataclass(frozen=True)
class Planted:
    """Samples that float16 holds exactly, so that every layout has the same ones."""

    whole: dict[str, np.ndarray]  # (conditions, repetitions, channels, 300) float16
    sessions: dict[str, np.ndarray]  # (conditions, repetitions) from 1
    folders: dict[str, list[str]]
    files: dict[str, list[str]]

    def images(self, split: str) -> list[str]:
        names = zip(self.folders[split], self.files[split])
        return [f"{PARTS[split]}_images/{folder}/{file}" for folder, file in names]

    def concepts(self, split: str) -> list[str]:
        return [folder.split("_", 1)[1] for folder in self.folders[split]]


def plant(seed: int) -> Planted:
    """Make the data set: a training image is in two of four sessions, twice in each; a test image is in all."""
    rng = np.random.default_rng(seed)
    whole, sessions, folders, files = {}, {}, {}, {}
    for split, (concepts, images) in IMAGES.items():
        names = [f"{'seen' if split == 'train' else 'new'}_{i}" for i in range(concepts)]
        folders[split] = [f"{i + 1:05d}_{name}" for i, name in enumerate(names) for _ in range(images)]
        files[split] = [f"{name}_{k + 1:02d}b.jpg" for name in names for k in range(images)]
        conditions = concepts * images
        in_two = [[1, 3] if i % 2 else [2, 4] for i in range(conditions)]
        sessions[split] = np.repeat(in_two if split == "train" else [[1, 2, 3, 4]] * conditions, 2, axis=1)
        shape = conditions, sessions[split].shape[1], len(CHANNELS), len(TIMES)
        whole[split] = rng.standard_normal(shape, dtype=np.float32).astype(np.float16)
    return Planted(whole, sessions, folders, files)


def metadata(root: Path, planted: Planted) -> None:
    """Write image_metadata.npy."""
    content = {}
    for split in PARTS:
        content |= {f"{split}_img_concepts": planted.folders[split], f"{split}_img_files": planted.files[split]}
    np.save(root / "image_metadata.npy", content)


def image_set(folder: Path, planted: Planted) -> None:
    """Make empty files in place of the images."""
    for split in PARTS:
        for image in planted.images(split):
            (folder / image).parent.mkdir(parents=True, exist_ok=True)
            (folder / image).touch()


def _place(root: Path, *parts: str) -> Path:
    place = root.joinpath(*parts)
    place.mkdir(parents=True)
    return place


def ubp(root: Path, planted: Planted, **changes: object) -> None:
    place = _place(root, "Preprocessed_data_250Hz_whiten", "sub-01")
    for split in PARTS:
        data = planted.whole[split][..., ONSET:]
        repeat = lambda values, n=data.shape[1]: np.tile(np.array(values)[:, None], (1, n))  # noqa: E731
        images = [image.replace("training_images", "train_images") for image in planted.images(split)]
        content = {"eeg": data, "label": repeat(np.arange(len(data))), "img": repeat(images)}
        content |= {"text": repeat(planted.concepts(split)), "session": planted.sessions[split] - 1.0}
        content |= {"ch_names": list(CHANNELS), "times": TIMES}
        kept = {key: value for key, value in (content | changes).items() if value is not None}
        torch.save(kept, place / f"{split}.pt", pickle_protocol=5)


def osf(root: Path, planted: Planted, whole: bool = True, pickled: bool = False, folder: str = "sub-1") -> None:
    place = _place(root, folder)
    for split, part in PARTS.items():
        data = planted.whole[split][..., 0 if whole else ONSET :].astype(np.float64)
        content = {"preprocessed_eeg_data": data, "ch_names": list(CHANNELS), "times": TIMES}
        if pickled:
            (place / f"preprocessed_eeg_{part}.npy").write_bytes(pickle.dumps(content, protocol=4))
        else:
            np.save(place / f"preprocessed_eeg_{part}.npy", content)
    metadata(root, planted)


def things_eeg2_dataset(root: Path, planted: Planted) -> None:
    place = _place(root, "processed", "sub-01")
    for split, part in PARTS.items():
        trials, numbers = [], []
        for session in range(1, SESSIONS + 1):
            shown = np.flatnonzero((planted.sessions[split] == session).any(axis=1))
            numbers.append(shown + 1)
            trials.append([planted.whole[split][i][planted.sessions[split][i] == session] for i in shown])
        np.save(place / f"preprocessed_eeg_{part}_sub-01.npy", np.array(trials, dtype=np.float32))
        np.save(place / f"img_conditions_{part}_sub-01.npy", np.array(numbers))
    (place / "meta_sub-01.json").write_text(json.dumps({"ch_names": list(CHANNELS), "times": TIMES.tolist()}))
    image_set(root / "Image_set", planted)


def arrays(root: Path, planted: Planted, info: bool = True, axes: int = 5, as_dict: bool = False) -> None:
    place = _place(root, "preprocessed_eeg", "sub-01")
    about = {"ch_names": list(CHANNELS), "times": np.round(TIMES, 3).tolist()}
    for split, shape in IMAGES.items():
        data = planted.whole[split][..., ONSET:].astype(np.float32)
        data = data.reshape(*shape, *data.shape[1:]) if axes == 5 else data
        if as_dict:
            (place / f"{split}.npy").write_bytes(pickle.dumps({"data": data, **about}, protocol=4))
        else:
            np.save(place / f"{split}.npy", data)
    if info:
        (place.parent / "info.json").write_text(json.dumps(about | {"normalization": "mvnn"}))
    image_set(root / "images_set", planted)
