"""Brain-to-image retrieval with blur-aligned image features, built on fovblur.

The names below are what the command `bvsa` is made of; each is imported when it is first asked for.

    import bvsa_core

    config = bvsa_core.RunConfig.of("bvsa", data="FOLDER", subject="sub-01")
    materials = bvsa_core.Materials(config)
    trained = bvsa_core.train(config, materials)
    print(bvsa_core.evaluate(trained, config, materials).scores.top1)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from bvsa_core.errors import UserError

if TYPE_CHECKING:  # for whoever checks types, the same as _PLACES
    from bvsa_core.data.dataset import Dataset as Dataset
    from bvsa_core.data.dataset import Recordings as Recordings
    from bvsa_core.data.from_arrays import write_subject as write_subject
    from bvsa_core.data.mne_export import to_mne as to_mne
    from bvsa_core.data.split import Split as Split
    from bvsa_core.data.split import load_split as load_split
    from bvsa_core.encoders import InputSpec as InputSpec
    from bvsa_core.encoders import register as register_encoder  # noqa: F401
    from bvsa_core.methods import register as register_method  # noqa: F401
    from bvsa_core.methods.base import Batch as Batch
    from bvsa_core.methods.base import Contrastive as Contrastive
    from bvsa_core.methods.base import Method as Method
    from bvsa_core.methods.base import symmetric_contrastive as symmetric_contrastive
    from bvsa_core.retrieval.gallery import EmbeddingMatrix as EmbeddingMatrix
    from bvsa_core.retrieval.gallery import Gallery as Gallery
    from bvsa_core.retrieval.result import RunResult as RunResult
    from bvsa_core.retrieval.scoring import Embeddings as Embeddings
    from bvsa_core.retrieval.scoring import Protocol as Protocol
    from bvsa_core.retrieval.scoring import Scores as Scores
    from bvsa_core.retrieval.scoring import Scoring as Scoring
    from bvsa_core.retrieval.scoring import ranks as ranks
    from bvsa_core.retrieval.scoring import score as score
    from bvsa_core.retrieval.scoring import similarity as similarity
    from bvsa_core.retrieval.search import Queries as Queries
    from bvsa_core.retrieval.search import TopK as TopK
    from bvsa_core.retrieval.search import search as search
    from bvsa_core.synthetic.dataset import SyntheticConfig as SyntheticConfig
    from bvsa_core.synthetic.dataset import make_dataset as make_dataset
    from bvsa_core.training.checkpoint import RunFolder as RunFolder
    from bvsa_core.training.config import RunConfig as RunConfig
    from bvsa_core.training.config import RunDataConfig as RunDataConfig
    from bvsa_core.training.evaluation import Evaluation as Evaluation
    from bvsa_core.training.evaluation import Trained as Trained
    from bvsa_core.training.evaluation import evaluate as evaluate
    from bvsa_core.training.run import load_method as load_method
    from bvsa_core.training.run import run as run
    from bvsa_core.training.run import train as train
    from bvsa_core.training.run_data import RunData as RunData
    from bvsa_core.vision.views import Level as Level

_PLACES = {
    "data.dataset": ("Dataset", "Recordings"),
    "data.split": ("Split", "load_split"),
    "data.from_arrays": ("write_subject",),
    "synthetic.dataset": ("SyntheticConfig", "make_dataset"),
    "data.mne_export": ("to_mne",),
    "training.config": ("RunDataConfig", "RunConfig"),
    "training.run_data": ("RunData",),
    "training.run": ("train", "run", "load_method"),
    "training.evaluation": ("Trained", "Evaluation", "evaluate"),
    "training.checkpoint": ("RunFolder",),
    "retrieval.scoring": ("Embeddings", "Scoring", "Scores", "Protocol", "similarity", "ranks", "score"),
    "retrieval.result": ("RunResult",),
    "retrieval.gallery": ("Gallery", "EmbeddingMatrix"),
    "retrieval.search": ("Queries", "TopK", "search"),
    "methods.base": ("Method", "Contrastive", "Batch", "symmetric_contrastive"),
    "methods": ("register_method",),
    "encoders": ("InputSpec", "register_encoder"),
    "vision.views": ("Level",),
}
_PLACE = {name: place for place, names in _PLACES.items() for name in names}
__all__ = ["UserError", *_PLACE]


def __getattr__(name: str) -> Any:
    if name not in _PLACE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"{__name__}.{_PLACE[name]}")
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] in ("bvsa_core", "fovblur"):
            raise
        raise UserError(f"bvsa_core.{name} needs {error.name}; pip install 'fovblur[train]'") from error
    found = getattr(module, "register" if name.startswith("register_") else name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
