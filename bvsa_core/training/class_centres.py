"""Class centres: the mean features of other images of the test concepts, against which NICE scores recordings."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from bvsa_core.data.dataset import concept_of
from bvsa_core.data.leaks import shared_images
from bvsa_core.data.split import fold_concept
from bvsa_core.errors import UserError, first_few
from bvsa_core.io.image_archive import SUFFIXES, hidden
from bvsa_core.progress import Progress, no_progress
from bvsa_core.training.run_data import RunData
from bvsa_core.vision.layers import OUTPUT
from bvsa_core.vision.tuned import TunedVision
from bvsa_core.vision.views import Level

CLASS_CENTRES = "class centres"  # in protocols


def class_centres(
    folder: Path,
    images: Sequence[str],
    concepts: Sequence[str],
    levels: Sequence[Level],
    run_data: RunData,
    progress: Progress = no_progress,
    vision: TunedVision | None = None,
) -> Tensor:
    """Return mean features (levels, images, D) of the images in `folder` of the concept of each test image.

    The mean of outputs is unit-norm, as outputs are. Test images themselves are left out, by file name and by content.

    Args:
        folder: images in folders of their concepts, such as those of THINGS (object_images).
        images: names of the test images.
        concepts: (images,) what they show.
        levels: blur levels of the features.
        run_data: has the image encoder.
        progress: reports encoding.
        vision: the image encoder of a method that trained it.

    Raises:
        UserError: a concept has no other image in the folder.
    """
    known = dict.fromkeys(map(fold_concept, concepts))
    shown = {Path(image).stem for image in images}
    files = (path for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES and path.is_file())
    paths = [path for path in files if not any(map(hidden, path.relative_to(folder).parts))]
    others = [path for path in paths if fold_concept(concept_of(str(path))) in known and path.stem not in shown]
    same = set(shared_images([run_data.dataset.image_path(image) for image in images], others))
    others = [path for path in others if path not in same]
    found = [fold_concept(concept_of(str(path))) for path in others]
    if missing := [concept for concept in concepts if fold_concept(concept) not in found]:
        lacks = f"no other image of {len(missing)} test concept(s) ({first_few(missing)})"
        raise UserError(f"--class_centres {folder}: {lacks}; give the images of THINGS, in folders of their concepts")
    bank = run_data.bank_for_paths(others, vision)
    bank.fill(levels, progress)
    features = bank.load(levels)
    number = {concept: i for i, concept in enumerate(known)}
    rows = torch.tensor([number[concept] for concept in found])
    sums = torch.zeros(len(features), len(number), features.shape[2]).index_add_(1, rows, features)
    counts = torch.bincount(rows)[:, None]
    parts = zip(run_data.clip.layers, sums.split(run_data.part_widths(), dim=2))
    means = torch.cat([normalize(part, dim=2) if name == OUTPUT else part / counts for name, part in parts], dim=2)
    of_images = torch.tensor([number[fold_concept(concept)] for concept in concepts])
    return means[:, of_images].to(run_data.device)
