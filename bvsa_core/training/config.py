"""The configuration of a run: flags over a YAML file over defaults, each key known and typed."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_type_hints

from bvsa_core import encoders, methods
from bvsa_core.data.dataset import DEMO_FOLDER
from bvsa_core.data.store import sha256_of
from bvsa_core.errors import UserError, first_few, unknown_name
from bvsa_core.io.typed import build
from bvsa_core.methods.base import PROJECTORS, Preset
from bvsa_core.training import augmentation
from bvsa_core.vision.layers import OUTPUT, parse_target

SCHEDULES = ("constant", "cosine")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
SETTINGS = {"intra": "intra-subject", "inter": "inter-subject"}  # names in tables
SELECTIONS = {"last": "last", "validation": "validation", "oracle": "oracle (upper bound, selected on test)"}
LEARN_BLUR = ("off", "subject", "similarity")
LAYER_CHOSEN = ", layer chosen on "  # continues the selection in the protocol
LEARNING_RATES = {"intra": 1e-4, "inter": 1e-5}  # as UBP and BVSA publish them
GIVEN = ("features", "features_test", "features_images")  # settings in place of an image encoder
ADDED = {
    *GIVEN,
    "allow_leak",
    "augment",
    "augment_once",
    "blur_lr",
    "checkpoint_vision",
    "chunk",
    "concepts",
    "learn_blur",
    "mixup_alpha",
    "patience",
    "projector",
    "projector_dim",
    "projector_shared",
    "target",
    "schedule",
    "select_epochs",
    "select_layer",
    "texts",
    "vision_dropout",
    "vision_lora",
    "vision_lr",
}  # since 0.1, whose run.yaml is read too
# Parts that any method can be given; its released code has those of its TRAINING alone.
_RECIPE = ("target", "target_levels", "projector", "vision_lora", "augment")
Settings = TypeVar("Settings")
_REMEDY = "delete the folder, and train the run again"


@dataclass
class RunDataConfig:
    """Recordings, images and their features."""

    data: Path = DEMO_FOLDER
    """Folder of recordings and images: one that 'bvsa data' makes, or in the layout of UBP and BVSA."""
    channels: str | list[str] = "standard"
    """'standard' (17 occipital and parietal of EEG, every sensor of MEG), 'all', or a list of names."""
    window: tuple[float, float] | None = None
    """First and last second after image onset to keep; default: all."""
    average: bool = True
    """Average the repetitions of a training image; otherwise each is a sample. Test recordings are always averaged."""
    vision: str = "tiny"
    """Image encoder: 'tiny' (shipped); a model of open_clip, such as RN50, RN101, ViT-B-16; hf:NAME or hf:FOLDER of
    transformers (extra hf), such as hf:facebook/dinov2-base; timm:NAME or timm:FOLDER; or a registered one."""
    weights: str | None = None
    """Pretrained tag of open_clip, a weights file of open_clip or timm, or 'random'; default: the usual ones."""
    cache_dir: Path | None = None
    """Where downloaded weights are kept."""
    features: Path | None = None
    """Features of your own in place of an image encoder, of all images or of those of the training set: .npy, .npz, .pt
    or .safetensors, (N, D) or (N, layers, D), or a vector by name of image; then no image is needed."""
    features_test: Path | None = None
    """The features of the test images, if they are in a file of their own."""
    features_images: Path | None = None
    """Names of the images of the rows of features, .txt or .json; default: those in the files, or the order of the
    data set, which must be that of the names."""
    views: Literal["banked", "online"] = "banked"
    """'banked' computes every blur level once and keeps it; 'online' blurs and encodes inside each training step."""
    chunk: int | None = None
    """Images of a batch whose activations the image encoder keeps at a time if it or the blur is trained: less memory,
    a second forward pass, and the same gradients. Default: the whole batch."""
    bank: Path | None = None
    """Folder of the feature bank; default: Image_feature in the data folder."""
    decay: float = 3.0
    """Rate at which acuity falls with eccentricity."""
    falloff: Literal["exp", "linear", "quadratic", "log", "brachistochrone"] = "exp"
    """Curve of the fall."""
    target_levels: list[tuple[int, float]] = field(default_factory=list)
    """Blur levels (kernel size, gain) whose features are fused with the method's own, by learnt weights."""
    target: str = OUTPUT
    """Features of images that recordings are aligned with: the image encoder's 'output'; 'layer:L', the mean over the
    patch tokens, or over space, of one of its layers, 0 the first and -1 the last, or with 'layer:L.cls' the CLS token;
    'layers:[output,A,B]', fused by learnt weights around the first; or 'learned', the output and all layers fused."""
    target_layers: list[int] = field(default_factory=list)
    """The target of earlier releases: these layers, CLS tokens included, fused with the output; see target."""
    prompt: str = "A photo of a {object}."
    """Text that names an image; {object} is replaced by its concept, {concept} by the concept with _ for spaces."""
    texts: Path | None = None
    """Captions in place of prompts, by name of image or concept: .csv, .tsv (columns image or concept, and text) or
    .json; default: those that the data folder keeps, if any."""
    concepts: Path | None = None
    """List of objects of THINGS (.tsv or .csv with the columns uniqueID and Word), whose words prompts then use."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    def __post_init__(self) -> None:
        self.data = Path(self.data)
        for name in ("bank", "cache_dir", *GIVEN, "texts", "concepts"):
            setattr(self, name, Path(getattr(self, name)) if getattr(self, name) is not None else None)
        if set(re.findall(r"{[^}]*}?", self.prompt)) not in ({"{object}"}, {"{concept}"}):
            raise UserError(f"prompt is {self.prompt!r}; it must contain {{object}} or {{concept}}, and no other field")
        if not 0 <= self.decay < math.inf:
            raise UserError(f"decay is {self.decay}; it must be finite and at least 0")
        if self.vision == "tiny" and self.weights is not None:
            problem = f"weights are {self.weights!r}, but the vision encoder tiny has its own"
            raise UserError(f"{problem}; choose another encoder with --vision")
        if self.features is None and (self.features_test or self.features_images):
            raise UserError("features_test and features_images belong to features; give them, too")
        self._check_features()
        if self.target_layers:
            if self.target != OUTPUT:
                raise UserError(f"target is {self.target!r}, and target_layers are given too; leave target_layers out")
            layers = ",".join(f"{layer}.tokens" for layer in self.target_layers)
            self.target, self.target_layers = f"layers:[{OUTPUT},{layers}]", []
        parse_target(self.target, lambda: 1)
        for size, gain in self.target_levels:
            if size < 1 or size % 2 == 0 or not 0 <= gain <= 1:
                raise UserError(f"target_levels has ({size}, {gain}); give an odd kernel size and a gain in [0, 1]")

    def feature_files(self) -> list[Path]:
        """Return the files of features that are given in place of an image encoder."""
        return [path for path in (self.features, self.features_test) if path is not None]

    def feature_digests(self) -> dict[str, str]:
        """Return the SHA-256 of files that are given in place of an image encoder, by the setting that names them."""
        paths = {name: getattr(self, name) for name in ("features", "features_test", "features_images")}
        return {name: sha256_of(path) for name, path in paths.items() if path is not None and path.is_file()}

    def _check_features(self) -> None:
        if self.features is not None and (self.vision != "tiny" or self.views == "online"):
            problem = f"vision is {self.vision} and views are {self.views}"
            remedy = "leave --vision, --views, --vision_lora and --learn_blur out"
            raise UserError(f"features are given in place of an image encoder, and {problem}; {remedy}")


@dataclass
class RunConfig(RunDataConfig):
    """One run: one method, one tested subject, one seed."""

    method: str = "bvsa"
    """vanilla, nice, atm, bravl, ubp, mcdb, bvsa or samga; each defaults to its authors' training."""
    preset: str = "corrected"
    """Version of the method: 'corrected', 'paper' or 'code', as far as it has them; of vanilla also 'shallow'."""
    method_options: Any = None  # a dict or a dataclass
    encoder: str = "eeg_project"
    """Brain encoder: eeg_project, tsconv (NICE's), tsconv_ubp, atm, shallownet, deepnet, eegnet, perceptron, or
    braindecode:CLASS."""
    encoder_options: Any = None
    projector: Literal["none", "linear", "mlp"] = "none"
    """Learnt maps of recordings, images and texts to a space of their own: 'linear' with bias, or 'mlp' with a hidden
    layer as wide."""
    projector_dim: int = 512
    """Dimensions of that space."""
    projector_shared: bool = False
    """One map for all of them instead of one each; recordings are then encoded as wide as the target."""
    subject: str = "sub-01"
    """The tested subject."""
    setting: Literal["intra", "inter"] = "intra"
    """'intra' trains on that subject, 'inter' on all others."""
    repetitions: int | None = None
    """How many repetitions of a test image are averaged, from the first; default: all."""
    epochs: int = 50
    """Passes over the training recordings."""
    patience: int = 0
    """Stop after this many epochs in a row whose training loss is not 0.001 below the least before; 0 never stops."""
    batch_size: int = 1024
    """Samples whose images are told apart in one step."""
    optimiser: Literal["adamw", "adam"] = "adamw"
    """Update rule of the weights."""
    lr: float | None = None
    """Learning rate; default: 1e-4, or 1e-5 in the setting inter."""
    weight_decay: float = 1e-4
    """Weight decay of the optimiser."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the optimiser's two moments."""
    schedule: Literal["constant", "cosine"] = "constant"
    """'cosine' lets every learning rate fall to 0 over the epochs, as half a cosine."""
    learn_blur: Literal["off", "subject", "similarity"] = "off"
    """Learn the blur's gain and sigma by the loss's gradient, in place of the method's steps: for each training
    'subject', or as a function of the 'similarity' of recording and image; needs --views online."""
    blur_lr: float = 0.02
    """Learning rate of the learnt blur, in logits of its share of the range."""
    initial_std: float | None = None
    """Standard deviation of the brain encoder's initial weights; default: PyTorch's initialisation."""
    vision_lora: int = 0
    """Train the image encoder, a transformer, with the method: rank of low-rank updates of its linear maps (LoRA, extra
    lora); 0 freezes it. Views are then online."""
    vision_lr: float = 5e-5
    """Learning rate of the image encoder."""
    vision_dropout: float = 0.0
    """Dropout before the low-rank updates."""
    checkpoint_vision: bool = False
    """Keep only what enters each block of a trained image encoder, and compute the rest again for the gradient."""
    validation: int = 0
    """Training images held out, by whole concepts, whose loss is reported after every epoch; 0 is one in twenty if the
    selection needs them."""
    selection: Literal["last", "validation", "oracle"] = "last"
    """Which epoch's weights are kept: the last, the best on held-out concepts, or (an upper bound) on the test set."""
    select_layer: bool = False
    """Choose the target: the layer of the image encoder, or its output, with the best Top-1 on concepts held out of the
    training data, of which validation images are shown, by default one in twenty. Then train on all concepts."""
    select_epochs: int | None = None
    """Epochs of the trainings that try a layer; default: those of the run."""
    seed: int = 0
    """Seed of initial weights, batches and held-out concepts."""
    precision: str = "32-true"
    """Precision of the encoder: 32-true, bf16-mixed or, on GPUs, 16-mixed. Weights are always float32."""
    augment: str | list[str] = field(default_factory=list)
    """Augmentation of training recordings, a list such as mixup,noise: mixup (with another recording of the same image,
    of another subject in the setting inter), shift, smooth, noise, channel_dropout; applied in this order."""
    augment_once: bool = False
    """Augment all training recordings once, before the first epoch, instead of anew for every batch."""
    mixup_alpha: float = 1.0
    """Mixup's share of the own recording is drawn from Beta(mixup_alpha, mixup_alpha); 1 is uniform."""
    allow_leak: bool = False
    """Train although concepts or images of the test set are in the training data; every table and page says so."""
    shuffle_pairs: bool = False
    """Control: shuffle the pairs of training recordings and images, so that nothing can be learnt."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method_options is None or isinstance(self.method_options, dict):
            self.method_options = method_options(self.method, self.preset, **(self.method_options or {}))
        if self.encoder_options is None or isinstance(self.encoder_options, dict):
            self.encoder_options = encoders.options_class(self.encoder)(**(self.encoder_options or {}))
        choices = {"setting": SETTINGS, "selection": SELECTIONS, "precision": PRECISIONS}
        choices |= {"schedule": SCHEDULES, "learn_blur": LEARN_BLUR}
        choices["projector"] = PROJECTORS
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise UserError(unknown_name(name, getattr(self, name), known))
        self.lr = LEARNING_RATES[self.setting] if self.lr is None else self.lr
        least = dict.fromkeys(("epochs", "select_epochs", "batch_size", "repetitions", "chunk", "projector_dim"), 1)
        least |= dict.fromkeys(("patience", "validation", "weight_decay", "initial_std", "vision_lora"), 0)
        for name, minimum in least.items():
            if getattr(self, name) is not None and not getattr(self, name) >= minimum:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least {minimum}")
        if isinstance(self.augment, str):
            self.augment = [name.strip() for name in self.augment.split(",") if name.strip()]
        for name in self.augment:
            if name not in augmentation.NAMES:
                raise UserError(unknown_name("augmentation", name, augmentation.NAMES))
            if self.augment.count(name) > 1:
                raise UserError(f"augment names {name} twice; it is applied once, so leave one out")
        if not 0 < self.mixup_alpha < math.inf:
            raise UserError(f"mixup_alpha is {self.mixup_alpha}; it must be positive and finite")
        for name in ("lr", "blur_lr", "vision_lr"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} is {getattr(self, name)}; it must be positive")
        if not 0 <= self.vision_dropout < 1:
            raise UserError(f"vision_dropout is {self.vision_dropout}; it must be at least 0 and below 1")
        if self.vision_lora:
            self.views = "online"
            if not methods.method_class(self.method).learns_blur:
                problem = f"method {self.method} gives images no gradient"
                raise UserError(f"vision_lora: {problem}; choose another method, such as vanilla")
        elif self.checkpoint_vision:
            raise UserError("checkpoint_vision is for an image encoder that is trained; give its rank with vision_lora")
        self._check_features()
        if self.learn_blur != "off":
            self._check_learnt_blur()
        elif self.chunk is not None and not self.vision_lora:
            raise UserError("chunk bounds the memory of gradients of images; give vision_lora or learn_blur")
        if self.select_layer:
            self._check_select_layer()
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"betas are {self.betas}; each must be at least 0 and below 1")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed is {self.seed}; it must be at least 0 and below 2**32")

    def _check_select_layer(self) -> None:
        if self.target != OUTPUT:
            remedy = "give --select_layer false, or leave target out"
            raise UserError(f"target is {self.target}, and select_layer chooses one; {remedy}")
        if methods.method_class(self.method).takes_parts:
            raise UserError(f"select_layer chooses one layer, and method {self.method} takes several; leave it out")
        if self.trains_on_test_features:
            raise UserError("select_layer knows no test images, and the method trains on them; leave it out")
        if self.vision_lora:
            raise UserError("select_layer is for a frozen image encoder; name the layer with target instead")

    def _check_learnt_blur(self) -> None:
        if self.views != "online":
            problem = f"learn_blur is {self.learn_blur}, whose gradient passes the image encoder in every step"
            raise UserError(f"{problem}, and views are {self.views}; add --views online")
        if not methods.method_class(self.method).learns_blur:
            raise UserError(f"learn_blur: method {self.method} gives the blur no gradient; choose another method")

    def check_used(self) -> None:
        """Raise UserError for a setting of a part that is off, which would change nothing; grids may have some."""
        parts = {
            "projector": (self.projector != "none", ("projector_dim", "projector_shared")),
            "learn_blur": (self.learn_blur != "off", ("blur_lr",)),
            "vision_lora": (self.vision_lora > 0, ("vision_lr", "vision_dropout")),
            "augment": (bool(self.augment), ("augment_once",)),
            "augment with mixup": ("mixup" in self.augment, ("mixup_alpha",)),
        }
        usual = training_of(self.method, self.preset, self.setting)
        for part, (is_on, names) in parts.items():
            for name in names:
                value = getattr(self, name)
                if not is_on and value not in (getattr(RunConfig, name), usual.get(name)):
                    raise UserError(f"{name} is {value}, and belongs to {part}, which is off; leave {name} out")

    @property
    def trains_on_test_features(self) -> bool:
        """Whether the method also trains on the features of the test images and their texts."""
        return getattr(self.method_options, "test_features", False)

    @classmethod
    def of(cls, method: str, **changes: Any) -> RunConfig:
        """Return a method's published training, encoder included, as `bvsa train --method` has it, with changes.

        Examples:
            >>> config = RunConfig.of("nice", epochs=3)
            >>> config.encoder, config.batch_size, config.epochs
            ('tsconv', 1000, 3)
        """
        try:
            training = training_of(method, changes.get("preset", cls.preset), changes.get("setting", cls.setting))
            return cls(**{**training, **changes, "method": method})
        except TypeError as error:
            raise UserError(f"RunConfig: {error}") from error


def preset_of(method: str, name: str) -> Preset:
    """Return a preset of a method."""
    presets = methods.method_class(method).PRESETS
    if name not in presets:
        raise UserError(f"method {method} has no preset {name!r}; choose one of {', '.join(presets)}")
    return presets[name]


def training_of(method: str, preset: str = RunConfig.preset, setting: str = RunConfig.setting) -> dict[str, Any]:
    """Return the training that a method's authors chose, as fields of RunConfig."""
    kind = methods.method_class(method)
    of_setting = kind.INTER_TRAINING if setting == "inter" else {}
    return {**kind.TRAINING, **preset_of(method, preset).training, **of_setting}


def method_options(method: str, preset: str, **changes: Any) -> Any:
    """Return the options of a method under a preset, with changes."""
    return methods.method_class(method).Options(**{**preset_of(method, preset).options, **changes})


def deviations(config: RunConfig) -> list[str]:
    """Return how a run deviates from the released code of its method, or from the paper if there is none.

    First the settings, then what is no setting.
    """
    kind, own = methods.method_class(config.method), preset_of(config.method, config.preset)
    blur = f"learns its blur (learn_blur {config.learn_blur}), in place of the method's levels"
    source = next((preset for preset in ("code", "paper") if preset in kind.PRESETS), None)
    if own.deviations is not None:
        source = config.preset
    of_method = kind.DEVIATIONS if own.deviations is None else own.deviations
    others = [*([] if config.learn_blur == "off" else [blur]), *of_method]
    if source is None:
        return others
    usual = RunConfig()
    published = {name: getattr(usual, name) for name in _RECIPE} | training_of(config.method, source, config.setting)
    if published.pop("select_layer", False):
        del published["target"]  # chosen or given: a deviation of its own
    published |= asdict(method_options(config.method, source))
    ours = vars(config) | asdict(config.method_options)
    text = lambda value: json.dumps(value).replace('"', "")  # noqa: E731
    pairs = {name: (text(ours[name]), text(value)) for name, value in published.items()}
    differing = [f"{name} {own} ({reference})" for name, (own, reference) in pairs.items() if own != reference]
    origin = "the released code's" if source == "code" else "the paper's"
    settings = [f"settings, {origin} in brackets: {', '.join(differing)}"] if differing else []
    return [*settings, *others]


def with_layer(config: RunConfig, target: str) -> RunConfig:
    """Return the settings of a run whose layer has been chosen."""
    return replace(config, target=target, select_layer=False)


def relocated(config: RunConfig, data: Path | None = None, bank: Path | None = None) -> RunConfig:
    """Return the settings of a finished run with folders that are given in place of its own.

    Raises:
        UserError: the run, which may come from elsewhere, names a bank outside its data: features are written there.
    """
    config = replace(config, data=data or config.data, bank=bank or config.bank)
    if config.bank and not bank and not config.bank.resolve().is_relative_to(config.data.resolve()):
        problem = f"the run's feature bank {config.bank} is not in its data folder {config.data}"
        raise UserError(f"{problem}; name the bank with --bank if you trust it")
    return config


def with_texts(config: RunConfig, texts: Path | None) -> RunConfig:
    """Return the settings of a run with captions that are given in place of its own texts."""
    return replace(config, texts=texts, concepts=None) if texts else config


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Return a config as plain data for run.yaml: paths as text, tuples as lists."""
    return json.loads(json.dumps(asdict(config), default=str))


def from_dict(values: dict[str, Any]) -> RunConfig:
    """Return the config that `to_dict` turned into plain data, in this release or an earlier one.

    Raises:
        UserError: a setting is missing, unknown or of another kind.
    """
    values = dict(values)
    for name in ("method", "preset", "encoder"):
        if not isinstance(values.get(name), str):
            raise UserError(f"{name} is missing or no name; {_REMEDY}")
    options = {
        "method_options": method_options(values["method"], values["preset"]),
        "encoder_options": encoders.options_class(values["encoder"])(),
    }
    for name, default in options.items():
        given = build(dict[str, Any] | None, values.get(name), name, _REMEDY) or {}
        values[name] = _checked(type(default), vars(default) | given, f"{name}: ")
    return _checked(RunConfig, values, "")


def _checked(kind: type[Settings], values: dict[str, Any], prefix: str) -> Settings:
    """Build a dataclass of settings from plain data that have all of its fields, and no others."""
    known = {each.name for each in fields(kind)}  # type: ignore[arg-type]
    for what, names in (("missing", known - values.keys() - ADDED), ("unknown", values.keys() - known)):
        if names:
            listed = first_few(sorted(map(str, names)))
            raise UserError(f"{prefix}{listed} {what}; damaged, or settings of another version; {_REMEDY}")
    hints = get_type_hints(kind)
    return kind(**{name: build(hints[name], value, f"{prefix}{name}", _REMEDY) for name, value in values.items()})
