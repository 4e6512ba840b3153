"""Decoder: a method as an estimator with the manners of scikit-learn, and as a model of the Hugging Face Hub."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import sklearn.exceptions
import torch
from huggingface_hub import ModelHubMixin, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from sklearn.base import BaseEstimator
from torch import Tensor

import fovblur
from bvsa_core.data.dataset import SYNTHETIC, Dataset, Recordings, concept_of
from bvsa_core.data.split import make_split
from bvsa_core.data.things_eeg import OCCIPITAL_CHANNELS
from bvsa_core.decoder import files
from bvsa_core.decoder.card import model_card
from bvsa_core.decoder.files import PLACES
from bvsa_core.decoder.inputs import Images, by_subject, gallery_images, gather, temporary_folder, unlabelled
from bvsa_core.decoder.memory_data import FeatureData, MemoryData, TrainingSet
from bvsa_core.errors import UserError, unknown_name
from bvsa_core.methods import method_class
from bvsa_core.progress import Display, no_progress
from bvsa_core.retrieval.gates import INDUCTIVE, INFORMATION, gates
from bvsa_core.retrieval.result import RetrievalResult, RunResult
from bvsa_core.retrieval.scoring import Scoring, window_text
from bvsa_core.training.config import GIVEN, RunConfig, with_layer
from bvsa_core.training.evaluation import Trained, evaluate
from bvsa_core.training.run import result_of, train, with_progress
from bvsa_core.training.run_data import choose_device
from bvsa_core.vision.clip import TINY
from bvsa_core.vision.views import features_at

_ELSEWHERE = {  # settings of a run that a decoder has by another name
    "vision": "target",
    "data": "recordings, as a Dataset",
    "target": "layers",
    **dict.fromkeys(GIVEN, "target, an array"),
}
SETTINGS = [each.name for each in fields(RunConfig) if each.name not in (*_ELSEWHERE, "method")]
_OWN = ("method", "target", "layers", "verbose")  # parameters that are no settings
GALLERY = 200  # images searched when the gate label_free is learnt, as in the published test sets


class NotFittedError(UserError, sklearn.exceptions.NotFittedError):
    """The decoder is used before it was fitted or loaded."""


class Decoder(
    BaseEstimator,
    ModelHubMixin,
    library_name="fovblur",
    tags=["eeg", "meg", "brain-decoding", "image-retrieval"],
    repo_url="https://github.com/fovblur/fovblur",
):
    """Finds the image that a person saw from a recording of their brain.

    `recordings` are an array (N, channels, time), mne.Epochs, a `torch.utils.data.Dataset` of (recording, image id),
    `Recordings`, or a `Dataset`. Several subjects are a dict by name, or a list (sub-01, sub-02, ...; epochs are joined
    by subject_info["his_id"] of their info, if all have it); sessions of one subject are a list inside the dict.

    `images` has one for each recording: paths, uint8 arrays, or numbers of rows if the target is an array. Recordings
    that have ids of images (epochs: the names of events, see `from_mne`) take a folder or a mapping from ids instead,
    or nothing if the ids are paths. Recordings of one image are averaged.

    Args:
        method: vanilla, nice, atm, bravl, ubp, mcdb, bvsa, samga, or one of your own.
        target: image encoder, such as RN50, or tiny, which is shipped; or an array of features (M, D), whose rows
            `images` then names by number.
        layers: of the image encoder, whose features are the target: what `bvsa train --target` takes, such as layer:2;
            default: the method's own, for most the output.
        verbose: show the progress of `fit` on standard error.
        **settings: fields of `RunConfig`, such as epochs or preset; default: the method's published training. Without
            `channels`, the 17 standard ones of EEG are taken if all are there, and else all. `bank` names a folder in
            which features of images are kept; default: until the process ends.

    Attributes:
        method_: the trained `Method`.
        config_: the `RunConfig` of the training.
        epoch_: whose weights were kept, from 1.
        history_: metrics of every epoch; of a loaded decoder none.
        training_: what was trained on.
        layers_: the `LayerSelection` of the target, if select_layer was given.
        reliability_: of the gate label_free, if there are texts.
        result_: the last `RunResult`, of one subject.

    Raises:
        UserError: a setting or argument does not fit; NotFittedError is one.

    Examples:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> features = rng.standard_normal((60, 16))  # of 60 images, by any encoder
        >>> signal = features @ rng.standard_normal((16, 4 * 20))  # recordings that depend on them
        >>> recordings = (signal + rng.standard_normal(signal.shape)).reshape(60, 4, 20)
        >>> decoder = Decoder(method="vanilla", target=features, epochs=30, lr=3e-3, device="cpu")
        >>> _ = decoder.fit(recordings[:40], range(40))
        >>> decoder.score(recordings[40:], range(40, 60)) > 1 / 20  # chance
        True
        >>> decoder.retrieve(recordings[40:], range(40, 60), top=3).rows.shape
        (20, 3)
    """

    def __init__(
        self,
        method: str = "bvsa",
        target: Any = "tiny",
        layers: str | None = None,
        verbose: bool = False,
        **settings: Any,
    ):
        self.method, self.target, self.layers, self.verbose = method, target, layers, verbose
        self._names: list[str] = []
        self._set(settings)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return method, target, layers, verbose and the settings that were given."""
        return {name: getattr(self, name) for name in (*_OWN, *self._names)}

    def set_params(self, **params: Any) -> Decoder:
        """Set method, target, layers, verbose or settings."""
        for name in _OWN:
            setattr(self, name, params.pop(name, getattr(self, name)))
        self._set(params)
        return self

    def _set(self, settings: dict[str, Any]) -> None:
        for name, value in settings.items():
            if name not in SETTINGS:
                remedy = f"; give it as {_ELSEWHERE[name]}" if name in _ELSEWHERE else ""
                raise UserError(f"Decoder: {unknown_name('setting', name, SETTINGS)}{remedy}")
            setattr(self, name, value)
        self._names = list(dict.fromkeys([*self._names, *settings]))

    def __sklearn_is_fitted__(self) -> bool:
        """Return whether the decoder was fitted or loaded."""
        return hasattr(self, "method_")

    def fit(self, recordings: Any, images: Any = None, concepts: Any = None) -> Decoder:
        """Train the method. Returns the decoder.

        Args:
            recordings: see the class. Of a `Dataset`, the training split: of `subject`, or in the setting inter of all
                others.
            images: the images that were seen, see the class.
            concepts: what the images show: a text for each recording, or a mapping from the names of images. Methods
                that read texts learn from it, and it must differ between training and test. Default: the name in the
                path of the image, aardvark for 00001_aardvark/aardvark_01b.jpg.
        """
        config = self._config()
        if config.trains_on_test_features or config.selection == "oracle":
            setting = "selection 'oracle'" if config.selection == "oracle" else f"preset {config.preset!r}"
            raise UserError(f"{setting} reads the test set, which fit does not have; choose another, or use bvsa train")
        in_set, subjects = isinstance(recordings, Dataset), [config.subject]
        if in_set and config.setting == "inter":
            subjects = recordings.others(config.subject)
        data = self._data(config, recordings, images, concepts, "train", subjects)
        if self._features is None and data.clip.name == TINY and data.samples.source != SYNTHETIC:
            toy = f"{TINY} is a toy encoder for synthetic images, and {data.dataset.name} are not called synthetic"
            warnings.warn(f"target: {toy}; take a published one, such as RN50", stacklevel=2)
        self.history_: list[dict[str, Any]] = []
        with Display() if self.verbose else nullcontext(no_progress) as data.progress:
            trained = train(data.config, data, with_progress(self.history_.append, data.config, data.progress))
        data.progress = no_progress
        self.config_, self.epoch_, self.method_, self.shape_ = data.config, trained.epoch, trained.method, trained.shape
        self.layers_ = trained.layers
        if self.layers_:
            self.config_, data = with_layer(data.config, self.layers_.chosen), data.with_target(self.layers_.chosen)
        self.training_ = data.training_set(len(trained.split))
        self.reliability_ = trained.learn_gate(data, GALLERY, config.seed) if trained.learns_gate else None
        self.result_: RunResult | None = None
        self.method_.eval()
        return self

    def score(self, recordings: Any, images: Any = None, concepts: Any = None) -> float:
        """Return the Top-1 accuracy in a gallery of all images of these recordings, the mean over subjects.

        See `evaluate`; chance is 1 / the number of images.
        """
        parts = recordings
        if not isinstance(recordings, Dataset):
            parts = by_subject(recordings, self._subject())
        if isinstance(parts, dict) and len(parts) > 1:
            own = isinstance(images, dict) and images.keys() == parts.keys()
            given = ({name: part} for name, part in parts.items())
            each = ((part, images[next(iter(part))] if own else images) for part in given)
            return float(np.mean([self.evaluate(part, shown, concepts).scores.top1 for part, shown in each]))
        return self.evaluate(recordings, images, concepts).scores.top1

    def evaluate(self, recordings: Any, images: Any = None, concepts: Any = None, gate: str | None = None) -> RunResult:
        """Return the result of one subject: ranks, scores, and the protocol.

        Args:
            recordings: as of `fit`, of one subject, or the test split of `subject` in a `Dataset`. They show other
                concepts than the training did; otherwise the setting allow_leak must say that this is known.
            images: as of `fit`; all of them are the gallery.
            concepts: as of `fit`.
            gate: of the texts; default: the method's own.
        """
        subject = self.config_.subject if isinstance(recordings, Dataset) else self._subject()
        config = replace(self._here(), allow_leak=getattr(self, "allow_leak", False))
        data = self._data(config, recordings, images, concepts, "test", [subject], self.training_)
        if len(data.recordings) != 1:
            raise UserError(f"recordings: {len(data.recordings)} subjects; evaluate one at a time")
        (subject,) = data.recordings
        own = subject in self.training_.subjects
        config = replace(config, subject=subject, setting="intra" if own else "inter")
        trained = Trained(
            self.method_, self.epoch_, self.shape_, self.training_.split().to(data.device), None, self.layers_
        )
        gate = self._gate(gate, self.method_.default_gate)
        scoring = Scoring(gate, self.reliability_, alpha=self.method_.gate_alpha)
        result = result_of(trained, evaluate(trained, config, data, scoring), config)
        self.result_ = replace(result, samples=self.training_.samples)
        return self.result_

    def embed(self, recordings: Any) -> np.ndarray:
        """Return unit-norm embeddings (N, D) float32, one for each recording, without averaging.

        Repetitions in `Recordings` and of a `Dataset`, whose test split is taken, are averaged. Cosine similarities to
        the features of images rank them; with several blur levels in the gallery D is that of all side by side.
        """
        return self._queries(recordings)[0].cpu().numpy()

    def retrieve(self, recordings: Any, images: Any = None, top: int = 5, gate: str = "none") -> RetrievalResult:
        """Return the best images for every recording.

        Args:
            recordings: as of `embed`.
            images: the gallery: a list of images, or a folder; default: all rows of given features, or the test images
                of a `Dataset`.
            top: number of images for each recording.
            gate: of the texts: none, always or label_free.
        """
        brain_image, brain_text = self._queries(recordings)
        if INFORMATION.get(gate) != INDUCTIVE:
            known = [name for name, information in INFORMATION.items() if information == INDUCTIVE]
            raise UserError(unknown_name("gate of a search", gate, known))
        gate = self._gate(gate)
        found, config = self._empty_images(), self._here()
        if isinstance(recordings, Dataset) and images is None and not found.rows:
            test = recordings.load(config.subject, "test")
            found.sources |= {name: recordings.image_path(name) for name in test.images}
            shown, config = dict(zip(test.images, test.concepts)), replace(config, data=recordings.root)
        else:
            shown = {name: concept_of(name) for name in map(found.add, gallery_images(images, found.rows))}
        names = list(shown)
        if not 1 <= top <= len(names):
            raise UserError(f"top is {top}; the gallery has {len(names)} images")
        data = self._with(config, {}, found)
        levels = self.method_.gallery_feature_levels()
        rows = torch.arange(len(names), device=data.device)
        with torch.no_grad():
            views = data.views(names, levels, vision=self.method_.vision)
            image = self.method_.image_embeddings(torch.stack([features_at(level, views, rows) for level in levels]))
            text = self.method_.text_embeddings(data.texts(names, [*shown.values()]))
        row_gate, _ = gates(gate, brain_text, text, self.reliability_)
        values, best = fovblur.enhanced_topk(brain_image, image, brain_text, text, top, row_gate=row_gate)
        return RetrievalResult(names, best.cpu().numpy(), values.float().cpu().numpy())

    def save(self, folder: str | Path) -> Path:
        """Write the decoder to a folder, which `load` and `from_pretrained` read. Recordings are not in it."""
        self.save_pretrained(folder)
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path, **settings: Any) -> Decoder:
        """Read a decoder that `save` wrote; nothing in the folder is executed or unpickled.

        A decoder of given features is loaded without them: `set_params(target=...)` gives those to search.

        Args:
            folder: made by `save`, or downloaded.
            settings: of this machine: device, bank, cache_dir, or files of texts or concepts.

        Raises:
            UserError: a file is missing, damaged, or of another version.
        """
        if wrong := [name for name in settings if name not in PLACES]:
            places = ", ".join(PLACES[1:])
            raise UserError(f"Decoder.load: {wrong[0]} is a setting of the training; give {places} alone")
        state, method = files.read(Path(folder), settings)
        config = state.config
        usual = RunConfig.of(config.method, preset=config.preset)
        changed = {name for name in SETTINGS if getattr(config, name) != getattr(usual, name)} - {*PLACES}
        changed |= {"preset"} if config.preset != RunConfig.preset else set()
        given = {name: getattr(config, name) for name in SETTINGS if name in changed}
        target = None if state.features else config.vision
        layers = None if config.target == usual.target else config.target
        decoder = cls(config.method, target, layers, **given, **settings)
        decoder.config_, decoder.epoch_, decoder.shape_, decoder.layers_ = (
            config,
            state.epoch,
            state.shape,
            state.layers,
        )
        decoder.training_, decoder.reliability_ = state.training, state.reliability
        decoder.method_, decoder.history_, decoder.result_ = method.eval(), [], None
        return decoder

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        **settings: Any,
    ) -> Decoder:
        """Load a decoder from a folder, or from a repository of the Hugging Face Hub as `push_to_hub` makes one.

        Args:
            pretrained_model_name_or_path: a folder, which needs no network, or OWNER/NAME.
            force_download: download files that are there already.
            token: of the Hub; default: that of `hf auth login`.
            cache_dir: where downloaded files are kept.
            local_files_only: use downloaded files alone.
            revision: branch, tag or commit.
            **settings: as of `load`.

        Raises:
            UserError: it cannot be downloaded, or as `load` does.
        """
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            try:
                downloaded = snapshot_download(
                    str(pretrained_model_name_or_path),
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    token=token,
                    local_files_only=local_files_only,
                    allow_patterns=[files.CONFIG, files.WEIGHTS, files.SEEN],
                )
            except (HfHubHTTPError, HFValidationError, OSError) as error:
                detail = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                problem = f"neither a folder nor a repository that can be downloaded ({detail})"
                raise UserError(
                    f"{pretrained_model_name_or_path}: {problem}; check the name and the network"
                ) from error
            folder = Path(downloaded)
        return cls.load(folder, **settings)

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write the files of the decoder; the mixin calls this."""
        features = self._fitted().shape_.embedding if self.training_.encoder == FeatureData.ENCODER else 0
        about = self.config_, features, self.shape_, self.epoch_, self.reliability_, self.training_, self.layers_
        card = model_card(self.config_, self.training_, self.epoch_, self.result_, self._hub_mixin_info.model_card_data)
        files.write(save_directory, files.State(*about), self.method_, card)

    def _config(self) -> RunConfig:
        """Return the configuration of a training with the decoder's settings."""
        config = RunConfig.of(
            self.method,
            **{name: getattr(self, name) for name in self._names if name not in PLACES},
            **self._places(),
            vision=self.target if isinstance(self.target, str) else RunConfig.vision,
            **({} if self.layers is None else {"target": self.layers}),
        )
        if self._features is not None and method_class(self.method).uses_texts:
            reads = f"method {self.method} also reads texts, and the target is an array of features"
            raise UserError(f"{reads}; choose vanilla or nice, or an image encoder such as RN50 as target")
        return config

    def _places(self) -> dict[str, Any]:
        """Return the settings of this machine."""
        places = {name: getattr(self, name) for name in self._names if name in PLACES}
        return {"data": temporary_folder(), "bank": temporary_folder() / "features", **places}

    def _here(self) -> RunConfig:
        """Return the configuration of the training with the settings of this machine, whose device gets the method."""
        config = replace(self._fitted().config_, **self._places())
        self.method_.to(choose_device(config.device))
        return config

    def _fitted(self) -> Decoder:
        if not self.__sklearn_is_fitted__():
            raise NotFittedError("this Decoder is not fitted; call fit, or Decoder.load")
        return self

    def _subject(self) -> str:
        """Return the name of a subject whose name is not given: the only one trained on, or else an unknown one."""
        subjects = self._fitted().training_.subjects
        return subjects[0] if len(subjects) == 1 else "unnamed"

    def _gate(self, gate: str | None, default: str = "none") -> str:
        """Return a gate, which must stay closed where recordings are not compared with texts."""
        if self._features is None and self.method_.compares_texts:
            return gate or default
        if gate not in (None, "none"):
            raise UserError(f"gate {gate!r} reads texts, with which the target cannot be compared; choose none")
        return "none"

    @property
    def _features(self) -> Tensor | None:
        """The given features (M, D); None if the target is an image encoder."""
        if isinstance(self.target, str):
            return None
        if self.target is None:
            raise UserError("target: the decoder was loaded without features; give some by set_params(target=ARRAY)")
        features = torch.as_tensor(self.target)
        width = getattr(self, "shape_", None)
        if (
            features.ndim != 2
            or not features.is_floating_point()
            or not features.numel()
            or not features.isfinite().all()
        ):
            given = f"{features.dtype} of shape {tuple(features.shape)}"
            raise UserError(
                f"target: {given}; give the name of an image encoder, or finite floats (images, dimensions)"
            )
        if width is not None and features.shape[1] != width.embedding:
            raise UserError(f"target: features of {features.shape[1]} dimensions; trained on {width.embedding}")
        return features.detach().cpu()

    def _empty_images(self) -> Images:
        return Images(0 if self._features is None else len(self._features), temporary_folder() / "images")

    def _data(
        self,
        config: RunConfig,
        recordings: Any,
        images: Any,
        concepts: Any,
        split: str,
        subjects: Sequence[str],
        seen: TrainingSet | None = None,
    ) -> MemoryData:
        """Return recordings and images as the data of a training or a test."""
        found = self._empty_images()
        parts = gather(recordings, images, concepts, found, split, subjects)
        unnamed = {
            name for part in parts.values() for name, what in zip(part.images, part.concepts) if what + ".png" == name
        }
        if method_class(config.method).uses_texts and found.pixels & unnamed:
            remedy = "say what they show with concepts=, or choose vanilla, nice or ubp"
            raise UserError(f"images: given as arrays without names, and method {config.method} reads texts; {remedy}")
        if isinstance(recordings, Dataset):  # which may keep texts
            config = replace(config, data=recordings.root)
        first = next(iter(parts.values()))
        if config.window is not None and first.axes.sampling_rate is None:
            window = f"a window of {window_text(config.window)}"
            remedy = "make them by from_arrays(..., times=seconds), or give window=None"
            raise UserError(f"recordings: without times, and the training takes {window}; {remedy}")
        if seen is not None:
            config = replace(config, channels=list(seen.axes.channels))
        elif "channels" not in self._names and first.modality == "EEG" and {*OCCIPITAL_CHANNELS} - {*first.channels}:
            config = replace(config, channels="all")
        return self._with(config, parts, found, seen)

    def _with(
        self, config: RunConfig, parts: dict[str, Recordings], found: Images, seen: TrainingSet | None = None
    ) -> MemoryData:
        if self._features is not None:
            return FeatureData(config, parts, found.sources, self._features, seen)  # type: ignore[arg-type]
        return MemoryData(config, parts, found.sources, seen)  # type: ignore[arg-type]

    def _queries(self, recordings: Any) -> tuple[Tensor, Tensor]:
        """Return embeddings of recordings, to compare with images and with texts."""
        config = self._here()
        if self.method_.transductive_classifier:
            raise UserError(f"method {self.method} classifies test images; it has no embeddings to search with")
        if isinstance(recordings, Dataset):
            parts: dict[str, Any] = {config.subject: recordings.load(config.subject, "test")}
        else:
            parts = by_subject(recordings, self._subject())
        given = [(Path(name), unlabelled(part)) for name, part in parts.items()]
        split = make_split(given, list(parts), window=config.window, axes=self.training_.axes)
        split = split.to(choose_device(config.device))
        with torch.no_grad():
            return self.method_.query_embeddings(split.recordings, split.subject_indices(self.training_.subjects))
