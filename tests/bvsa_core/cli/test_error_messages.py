"""Mistakes in the use of the command, each with its whole message: one line, exit code 2, nothing written."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from command_output import error_of

from bvsa_core import synthetic
from bvsa_core.cli import COMMANDS, main
from bvsa_core.io.safe_readers import read_arrays

SHARED = Path("Preprocessed_data_250Hz_whiten")
MISSING = "training_images/00019_penguin/penguin_01b.jpg"
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="says how many GPUs there are")
VISION = (
    "choose one of tiny, RN50, RN101, ViT-B-16, ViT-B-32, ViT-L-14, ViT-H-14, ViT-g-14, ViT-bigG-14,"
    " or any other model of open_clip, hf:NAME, timm:NAME, or register your own first"
)
BRAIN = (
    "choose one of atm, deepnet, eeg_project, eegnet, perceptron, shallownet, tsconv, tsconv_ubp, braindecode:CLASS, "
    "or register your own first"
)
METHODS = "choose one of atm, bravl, bvsa, mcdb, nice, samga, ubp, vanilla, or register your own first"
GATES = "choose one of none, always, label_free, paper, code"
FILES = "unknown kind of file; give one of .pt, .pth, .npy, .npz, .safetensors"
GRIDS = (
    "no such file, nor built in; choose one of main, records, ablation, c-sweep, fidelity, demo, demo-full, or give a"
    " YAML file"
)
GRID_KEYS = (
    "methods, title, encoders, vision, vision_of_recorded, modalities, settings, subjects, seeds, resamples, run,"
    " synthetic, baseline, list_others"
)
GIVE = "no such folder; give the folder of your recordings"
TRAIN = "train one with 'bvsa train --out'"
LEVEL = "write an odd kernel size and a gain in [0, 1], such as 51:0.5"
RELIABILITY = "write margin:THRESHOLD or max:THRESHOLD, such as margin:0.05"

# {t} is a folder of damaged and misplaced files, {d} a good data set, {b} a bad one, {r} a good run on it, {s} the
# recordings' folder. Dots stand for what a library says.
MISTAKES = {
    # names
    "Train": f"unknown command 'Train'; did you mean 'train'? choose one of {', '.join(COMMANDS)}",
    "--data {d}": f"unknown command '--data'; did you mean 'data'? choose one of {', '.join(COMMANDS)}",
    "train --method BVSAA": f"unknown method 'BVSAA'; did you mean 'bvsa'? {METHODS}",
    "train --config {t}/method.yaml": f"unknown method 'bsva'; did you mean 'bvsa'? {METHODS}",
    "train --encoder tsconf": f"unknown encoder 'tsconf'; did you mean 'tsconv'? {BRAIN}",
    "train --encoder EEGproject": f"unknown encoder 'EEGproject'; did you mean 'eeg_project'? {BRAIN}",
    "train --encoder braindecode": f"unknown encoder 'braindecode'; did you mean 'braindecode:CLASS'? {BRAIN}",
    "train --preset Paper": "method bvsa has no preset 'Paper'; choose one of corrected, paper, code",
    "train --method nice --preset paper": "method nice has no preset 'paper'; choose one of corrected, code",
    "train --setting iner": "unknown setting 'iner'; did you mean 'inter'? choose one of intra, inter (see --help)",
    "train --selection best": "unknown selection 'best'; choose one of last, validation, oracle (see --help)",
    "train --views bank": "unknown views 'bank'; did you mean 'banked'? choose one of banked, online (see --help)",
    "train --falloff lin": "unknown falloff 'lin'; did you mean 'linear'? choose one of exp, linear, quadratic, log,"
    " brachistochrone (see --help)",
    "train --augment noise,mixupp": "unknown augmentation 'mixupp'; did you mean 'mixup'? choose ...",
    "train --optimiser sgd": "unknown optimiser 'sgd'; choose one of adamw, adam (see --help)",
    "features --data {d} --vision rn-50": f"unknown vision encoder 'rn-50'; did you mean 'RN50'? {VISION}",
    "features --data {d} --vision tiny2": f"unknown vision encoder 'tiny2'; did you mean 'tiny'? {VISION}",
    "evaluate {r} --gate papr": f"unknown gate 'papr'; did you mean 'paper'? {GATES}",
    "evaluate {r} --rescoring cls": "unknown rescoring 'cls'; did you mean 'csls'? choose one of none, whitening,"
    " procrustes, csls, adaptive_csls, sinkhorn, mutual, hungarian",
    "evaluate {r} --rescoring csls,whitening": "rescoring csls,whitening: whitening changes embeddings, and"
    " csls the scores made of them; name whitening first",
    "retrieve {r} --gate allways": f"unknown gate 'allways'; did you mean 'always'? {GATES}",
    "reproduce mian": f"grid mian: {GRIDS}",
    "reproduce {t}": f"grid {{t}}: {GRIDS}",
    "reproduce {t}/grid.yaml --eeg {d} --methods vanila": "unknown method of the grid 'vanila'; did you mean"
    " 'vanilla'? choose one of vanilla",
    "reproduce {t}/grid.yaml --eeg {d} --encoders tsconf": f"unknown encoder 'tsconf'; did you mean 'tsconv'? {BRAIN}",
    "demo --methods [bsva]": f"unknown method 'bsva'; did you mean 'bvsa'? {METHODS}",
    # flags and keys
    "train --epochs": "argument --epochs: expected one argument (see --help)",
    "train {d}": "bvsa train takes no argument '{d}' (see --help)",
    "train --learning_rate 1": "bvsa train has no flag --learning_rate; did you mean --lr? (see --help)",
    "train --methd nice": "bvsa train has no flag --methd; did you mean --method? (see --help)",
    "train --batch-sise 64": "bvsa train has no flag --batch-sise; did you mean --batch_size? (see --help)",
    "train --epoch=64": "bvsa train has no flag --epoch; did you mean --epochs? (see --help)",
    "train --zzz": "bvsa train has no flag --zzz (see --help)",
    "data check --figure {t}/new {d}": "bvsa data check has no flag --figure; did you mean --figures? (see bvsa data"
    " check --help)",
    "data metods {d}": "unknown command of bvsa data 'metods'; choose one of ...",
    "data": "bvsa data needs a command; choose one of ...",
    "help trian": f"unknown command 'trian'; did you mean 'train'? choose one of {', '.join(COMMANDS)}",
    "train --method vanilla --method_options.gain 1": "bvsa train has no flag --method_options.gain; did you mean"
    " --method_options.scale? (see --help)",
    "train --encoder_options.depth 3": "bvsa train has no flag --encoder_options.depth; did you mean"
    " --encoder_options.dropout? (see --help)",
    "train --config {t}/unknown.yaml": "bvsa train has no setting epochz; did you mean epochs? (see --help)",
    "train --config {t}/nested.yaml": "{t}/nested.yaml: config cannot name another file; write the settings themselves",
    "train --config {t}/file_options.yaml": "{t}/file_options.yaml: method_options cannot name another file; write"
    " the settings themselves",
    "train --encoder tsc\x1b[2J": r"unknown encoder 'tsc\x1b[2J'...",
    "train --config {t}/options.yaml": "bvsa train has no setting method_options.gian; did you mean"
    " method_options.gamma? (see --help)",
    "train --config {t}/open.yaml": "{t}/open.yaml: not a YAML file (while parsing a flow sequence); give another file"
    " with --config",
    "train --config {t}": "{t}: cannot be read (Is a directory); give another file with --config",
    "features --method bvsa": "bvsa features has no flag --method (see --help)",
    "evaluate {r} --topp 3": "bvsa evaluate has no flag --topp (see --help)",
    "retrieve": "the following arguments are required: run (see --help)",
    "reproduce": "the following arguments are required: grid (see --help)",
    "data eeg": "the following arguments are required: source, folder (see --help)",
    "reproduce {t}/open.yaml": "{t}/open.yaml: not a YAML file (while parsing a flow sequence); a grid has the settings"
    f" {GRID_KEYS}",
    "reproduce {t}/options.yaml": "{t}/options.yaml: unknown key 'method_options'; did you mean 'methods'? choose one"
    f" of {GRID_KEYS}",
    # numbers and kinds
    "train --epochs 1.5": "epochs is '1.5'; it must be a whole number (see --help)",
    "train --config {t}/many.yaml": "epochs is 'many'; it must be a whole number (see --help)",
    "train --lr fast": "lr is 'fast'; it must be a number (see --help)",
    "train --lr nan": "lr is 'nan'; it must be a number (see --help)",
    "train --lr 0": "lr is 0.0; it must be positive",
    "train --window 0": "window is '0'; it must be two numbers, such as 0 0.5 (see --help)",
    "train --average maybe": "average is 'maybe'; it must be true or false (see --help)",
    "train --target_levels 51": "target_levels is '51'; it must be a list, such as [one,other] (see --help)",
    "train --target_levels [[50,0.5]]": "target_levels has (50, 0.5); give an odd kernel size and a gain in [0, 1]",
    "train --target_levels [[51,2]]": "target_levels has (51, 2.0); give an odd kernel size and a gain in [0, 1]",
    "train --epochs -3": "epochs is -3; it must be at least 1",
    "train --batch_size -1": "batch_size is -1; it must be at least 1",
    "train --repetitions 0": "repetitions is 0; it must be at least 1",
    "train --validation -1": "validation is -1; it must be at least 0",
    "train --weight_decay -1": "weight_decay is -1.0; it must be at least 0",
    "train --initial_std -1": "initial_std is -1.0; it must be at least 0",
    "train --betas [1,2]": "betas are (1.0, 2.0); each must be at least 0 and below 1",
    "train --decay -1": "decay is -1.0; it must be finite and at least 0",
    "train --prompt photo": "prompt is 'photo'; it must contain {{object}} or {{concept}}, and no other field",
    "train --prompt {{object:>500000000}}": "prompt is '{{object:>500000000}}'; it must contain {{object}} or ...",
    "train --prompt {{object}}{{object.x}}": "prompt is '{{object}}{{object.x}}'; it must contain {{object}} or ...",
    "train --mixup_alpha 0": "mixup_alpha is 0.0; it must be positive and finite",
    "train --augment noise,shift,noise": "augment names noise twice; it is applied once, so leave one out",
    "train --projector_shared true": "projector_shared is True, and belongs to projector, which is off; leave"
    " projector_shared out",
    "train --projector_dim 64": "projector_dim is 64, and belongs to projector, which is off; leave projector_dim out",
    "train --blur_lr 0.1": "blur_lr is 0.1, and belongs to learn_blur, which is off; leave blur_lr out",
    "train --vision_lr 1e-3": "vision_lr is 0.001, and belongs to vision_lora, which is off; leave vision_lr out",
    "train --vision_dropout 0.1": "vision_dropout is 0.1, and belongs to vision_lora, which is off; leave ...",
    "train --augment_once true": "augment_once is True, and belongs to augment, which is off; leave augment_once out",
    "train --mixup_alpha 0.5 --augment noise": "mixup_alpha is 0.5, and belongs to augment with mixup, ...",
    "train --seed -1": "seed is -1; it must be at least 0 and below 2**32",
    "train --method_options.c -1": "c is -1.0; it must be within [0, 0.5]",
    "train --method_options.shift 7": "kernel_size is 51 and shift 7; give an odd one and a smaller even one",
    "retrieve {r} --top 0": "--top is 0; it must be at least 1",
    "retrieve {r} --top all": "top is 'all'; it must be a whole number (see --help)",
    "retrieve {r} --index {t}/i --probes 0": "--probes is 0; it must be at least 1",
    "features --data {d} --levels 51": f"level '51'; {LEVEL}",
    "features --data {d} --levels 50:0.5": f"level '50:0.5'; {LEVEL}",
    "features --data {d} --levels 51:0..5": f"level '51:0..5'; {LEVEL}",
    "features --data {d} --levels 51:2": f"level '51:2'; {LEVEL}",
    "evaluate {r} --reliability margn:0.5": f"reliability 'margn:0.5'; {RELIABILITY}",
    "evaluate {r} --reliability margin:high": f"reliability 'margin:high'; {RELIABILITY}",
    "reproduce {t}/grid.yaml --eeg {d} --workers 0": "--workers is 0; it must be at least 1",
    "reproduce {t}/grid.yaml --eeg {d} --epochs 0": "epochs is 0; it must be at least 1",
    "demo --seeds 0": "seeds is 0; it must be at least 1",
    "demo --data {t}/new --synthetic.samples -5": "samples is -5; an epoch needs at least 50 (0.2 s of EEG)",
    "data synthetic {t}/new --signal_to_noise -1": "signal_to_noise is -1.0; it must be positive",
    "data synthetic {t}/new --subjects 0": "subjects is 0; it must be at least 1",
    "data synthetic {t}/new --train_concepts 9999": "9999 training and 200 test concepts are requested; there are 848",
    "data images {d} {d} --size -1": "size is -1 and quality 95; size must be 0 or more pixels, quality 1 to 100",
    # what does not fit together
    "train --data {d} --subject sub-1": "{d}/{s}: no subject 'sub-1'; there are sub-01, sub-02",
    "train --data {d} --channels [O1,XX]": "{d}/{s}/sub-01/train.pt: no channel XX; there are P7, P5, P3, P1, Pz, P2,"
    " P4, P6, P8, PO7, PO3, POz, PO4, PO8, O1, Oz, O2",
    "train --data {d} --window 2 3": "{d}/{s}/sub-01/train.pt: no sample between 2.0 and 3.0 s; times run 0 to 0.396",
    "train --data {d} --window [2,3]": "{d}/{s}/sub-01/train.pt: no sample between 2.0 and 3.0 s; times run 0 to 0.396",
    "train --data {d} --log tensorboard --validation 999": "validation is 999; that leaves none of ...",
    "train --data {d} --subject all --validation 999": "validation is 999; that leaves none of ...",
    "train --data {d} --validation 999": "validation is 999; that leaves none of 90 training images, hold out fewer",
    "train --data {d} --augment mixup": "augment has mixup, and no training image has several recordings to mix; ...",
    "train --data {d} --encoder deepnet": "encoder deepnet: needs at least 151 time points, not 100; choose a longer"
    " window",
    "train --data {d} --target_layers [99]": "vision encoder tiny has no layer 99; it has 3, from 0 or from -3 to -1",
    "train --data {d} --target layers:[1,-2]": "target names layer 1 of tiny twice, once from the end; leave one out",
    "train --data {d} --vision_lora 129": "vision_lora is 129; linear maps of tiny have ranks of at most 128",
    "train --data {d} --vision hf:a--b/c": "vision encoder hf:a--b/c: no such folder, and no name OWNER/NAME ...",
    "train --weights openai": "weights are 'openai', but the vision encoder tiny has its own; choose another encoder"
    " with --vision",
    "train --data {d} --out {r} --seed 5 --method-options.c 0.1 --epochs 2 --batch-size 64": "{r}: holds a run with"
    " other settings: method_options.c 0.5 -> 0.1, seed 0 -> 5; choose another folder with --out, or replace the run"
    " with --overwrite",
    "train --data {d} --out {t}/notes --overwrite": "{t}/notes: not empty and not a run; choose another folder with"
    " --out",
    "train --epochs 3": f"bvsa_data/demo: {GIVE}, or make synthetic data there with 'bvsa demo'",
    "features": f"bvsa_data/demo: {GIVE}, or make synthetic data there with 'bvsa demo'",
    "train --data {d} --out {t}/no_lr": "{t}/no_lr/run.yaml: method is missing or no name; delete the folder, and train"
    " the run again",
    "train --data {d} --out {t}/half": "{t}/half/run.yaml: precision, seed, shuffle_pairs missing; damaged, or settings"
    " of another version; delete the folder, and train the run again",
    "train --data {d} --out {t}/notes": "{t}/notes: not empty and not a run; choose another folder with --out",
    "evaluate": "give either the folder of a run, or --brain and --image",
    "evaluate {r} --brain {t}/matrix.npy": "give either the folder of a run, or --brain and --image",
    "evaluate --brain {t}/matrix.npy --image {t}/row.npy": "--image {t}/row.npy: is (4,); embeddings are (rows,"
    " dimensions), or (rows, 1, dimensions) as NICE publishes them",
    "evaluate {t}/other_shape --full": "{t}/other_shape/weights.safetensors: not the weights of this run (size"
    " mismatch for logit_scale: copying a param with shape torch.Size([2]) from checkpoint,"
    " the shape in current model is torch.Size([]).); train it again",
    "retrieve {r} --index {t}/new --top 99 --candidates 100": "99 images are requested; the gallery has 12",
    "retrieve {r} --gallery {t}/matrix.npy --top 9": "9 images are requested; the gallery has 4",
    "reproduce {t}/grid.yaml --meg {d}": "EEG is skipped: no folder was given with --eeg",
    "reproduce {t}/grid.yaml --eeg {d} --subjects sub-09": "{d}: no subject sub-09; there are sub-01, sub-02",
    "data download things-eg2 {t}/new": "unknown data set 'things-eg2'; did you mean 'things-eeg2'? choose one of"
    " things-eeg2, things-eeg2-raw, things-eeg2-ubp, things-eeg2-atm, things-meg, things-meg-ubp",
    "data download things-meg {t}/new --subjects 1-5": "subjects are '1-5'; give numbers from 1 to 4, such as 1-4 or"
    " 1,3",
    "data download things-meg {t}/new --mirror x": "--mirror x: give HOST=URL, such as"
    " huggingface.co=https://hf-mirror.com",
    "data eeg {d} {t}/new --subjects sub-44": "{d}: no subject sub-44; there are sub-01, sub-02",
    "data eeg {d} {t}/new --texts {t}/row.npy": "{t}/row.npy: unknown kind of file; give .csv, .tsv or,"
    " for captions, .json",
    "evaluate --brain {t}/row.npy --texts {t}/row.npy": "--texts is for a run; files of embeddings have --text and"
    " --image",
    "evaluate {r} --class_centres {t}": "--class_centres {t}: no other image of ... give the images of THINGS,"
    " in folders of their concepts",
    "evaluate {r} --texts {t}/nowhere.csv": "{t}/nowhere.csv: no such file; give another file with --texts or"
    " --concepts",
    "train --data {d} --texts {t}/a.csv --concepts {t}/b.csv": "--texts and --concepts are both given; captions need no"
    " words of concepts, give one of them",
    "data eeg {d} {d}/new": "{d}/new: is in {d}, whose recordings are only read; give a folder outside",
    "data export {d} {d}": "{d}: is in {d}, whose recordings are only read; give a folder outside",
    "data eeg {d} {t}/new --name THINGS-EEG2": "name is 'THINGS-EEG2': the recordings in {d} are synthetic, and"
    " keep that name",
    "data eeg {d} {t}/new --sampling_rate 100": "sampling_rate is 100.0, but fixed in the layout ubp; leave it out",
    # files and folders
    "train --data {t}/nowhere": f"{{t}}/nowhere: {GIVE}",
    "train --data {d} --out {t}/file": "{t}/file: Not a directory",
    "features --data {t}/file": f"{{t}}/file: {GIVE}",
    "evaluate {t}/nowhere": f"{{t}}/nowhere: no finished run there (result.json is missing); {TRAIN}",
    "retrieve {t}": "{t}: no finished run there (result.json is missing); give one of the runs in it, such as {t}/...",
    "evaluate {t}/cut": "{t}/cut/embeddings.safetensors: damaged or incomplete (Error while deserializing header:"
    " incomplete metadata, file not fully covered); fetch or make it again",
    "evaluate {t}/untold --full": f"{{t}}/untold: no run there (run.yaml is missing); {TRAIN}",
    "evaluate {r} --full --data {t}/nowhere": f"{{t}}/nowhere: {GIVE}",
    "evaluate --brain {t}/cut.npy --image {t}/matrix.npy": "{t}/cut.npy: damaged or incomplete (39 bytes of data where"
    " its header says 48); fetch or make it again",
    "evaluate --brain {t} --image {t}/matrix.npy": f"{{t}}: {FILES}",
    "retrieve {r} --recordings {t}/file": f"{{t}}/file: {FILES}",
    "retrieve {r} --recordings {t}/matrix.npy": "--recordings {t}/matrix.npy: is (4, 3); it must be one array (N,"
    " channels, time)",
    "retrieve {r} --gallery {t}/notes": "--gallery {t}/notes: no image inside (.jpg, .jpeg, .png, .webp, .bmp, .tif,"
    " .tiff), nor is it a feature bank",
    "data eeg {t}/nowhere {t}/new": "{t}/nowhere: no such folder",
    "data images {t}/nowhere {d}": "{t}/nowhere: no such folder or zip file",
    "data export {t}/nowhere {t}/new": f"{{t}}/nowhere: {GIVE}",
    "data check {t}/nowhere": f"{{t}}/nowhere: {GIVE}",
    "data synthetic {t}/notes": "{t}/notes: not empty and not a synthetic data set; choose another folder",
    "demo --data {t}/notes": "{t}/notes: not empty and not a synthetic data set; choose another folder",
    "demo --data {b}": "{b}: holds a data set made with other settings: ...",
    "train --data {t}/notes": "{t}/notes: no recordings inside; expected {s}/sub-XX/train.pt as UBP and BVSA publish"
    " it, or sub-XX/header.json as 'bvsa data' makes it; convert other layouts by 'bvsa data eeg' or 'meg'",
    "train --data {b}": "{b}/{s}/sub-01/train.pt: damaged or incomplete (not a zip archive, as torch.save has written"
    " since version 1.6); fetch or make it again",
    "train --data {b} --subject sub-02 --method vanilla": f"image {MISSING} is missing: not in"
    " {b}/Image_set_Resize for {b}/{s}; copy the image set there",
    "train --data {d} --vision RN50 --weights {t}/noise.bin": "weights '{t}/noise.bin' of RN50 cannot be loaded (...",
    "train --data {d} --vision RN50 --weights opanai": "weights 'opanai' of RN50: neither a file nor one of openai,"
    " yfcc15m, cc12m, random",
    "train --config {t}/nothing.yaml": "{t}/nothing.yaml: no such file; give another file with --config",
    "train --config {t}/list.yaml": "{t}/list.yaml: must hold settings as 'name: value'; give another file with"
    " --config",
    # devices
    "train --data {d} --device cuda:99": "device 'cuda:99' is not there (...",
    "train --data {d} --device gpu": "unknown device 'gpu'; choose auto, cpu, cuda or cuda:N",
    "train --data {d} --device cuda": "device 'cuda' is not there (0 GPUs are visible); use --device cpu",
    "features --data {d} --device cuda:1": "device 'cuda:1' is not there (0 GPUs are visible); use --device cpu",
    "evaluate {r} --full --device cuda": "device 'cuda' is not there (0 GPUs are visible); use --device cpu",
    "retrieve {r} --device cuda": "device 'cuda' is not there (0 GPUs are visible); use --device cpu",
}


@pytest.fixture(scope="module")
def wrong(finished, tmp_path_factory) -> Path:
    """A folder of damaged, misplaced and mistyped files."""
    folder = tmp_path_factory.mktemp("wrong")
    for name in ("cut", "untold", "other_shape"):
        shutil.copytree(finished, folder / name)
    embeddings = folder / "cut" / "embeddings.safetensors"
    embeddings.write_bytes(embeddings.read_bytes()[:-9])
    (folder / "untold" / "run.yaml").unlink()
    weights = folder / "other_shape" / "weights.safetensors"
    safetensors.torch.save_file({**safetensors.torch.load_file(weights), "logit_scale": torch.ones(2)}, weights)
    result = json.loads((folder / "other_shape" / "result.json").read_text())
    earlier = {name: value for name, value in result.items() if name not in ("files", "checksum")}
    (folder / "other_shape" / "result.json").write_text(json.dumps(earlier))
    for name, text in {"no_lr": "epochs: 2", "half": (finished / "run.yaml").read_text().partition("seed:")[0]}.items():
        (folder / name).mkdir()
        (folder / name / "run.yaml").write_text(text)
    np.save(folder / "matrix.npy", np.ones((4, 3), np.float32))
    np.save(folder / "row.npy", np.ones(4, np.float32))
    (folder / "cut.npy").write_bytes((folder / "matrix.npy").read_bytes()[:-9])
    (folder / "notes").mkdir()
    settings = {"method": "method: bsva", "options": "method_options: {gian: 1}", "many": "epochs: many"}
    settings |= {"open": "a: [1", "grid": "methods: [vanilla]", "list": "- 1", "unknown": "epochz: 3"}
    settings |= {"nested": "config: /etc/passwd", "file_options": "method_options: /etc/passwd"}
    for name, text in settings.items():
        (folder / f"{name}.yaml").write_text(text)
    for name in ("file", "notes/a.txt"):
        (folder / name).touch()
    (folder / "noise.bin").write_bytes(bytes(range(256)))
    return folder


@pytest.fixture(scope="module")
def broken(small_data, tmp_path_factory) -> Path:
    """A data set with a train.pt cut short and a NaN in test.pt for sub-01, and without an image."""
    folder = shutil.copytree(small_data, tmp_path_factory.mktemp("wrong") / "broken")
    train, test = (folder / SHARED / "sub-01" / f"{split}.pt" for split in ("train", "test"))
    train.write_bytes(train.read_bytes()[:-5000])
    content = read_arrays(test)
    content["eeg"][7, 2, 3, 4] = np.nan
    torch.save(content, test)
    (folder / "Image_set_Resize" / MISSING).unlink()
    return folder


def test_a_check_that_finds_problems_names_them_and_ends_with_1(broken, capsys):
    assert main(["data", "check", str(broken)]) == 1
    shown = capsys.readouterr()
    assert "sub-01/test.pt: condition 7" in shown.out
    assert error_of(shown.err) == f"bvsa: error: {broken}: 3 problem(s), listed above\n"


LINES = [pytest.param(line, marks=[NO_GPU] if "0 GPUs" in message else []) for line, message in MISTAKES.items()]


def files(*folders: Path) -> dict[Path, tuple[int, int]]:
    """Return size and time of every file in folders."""
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for folder in folders for path in folder.rglob("*")}


@pytest.mark.parametrize("line", LINES)
def test_a_mistake_is_reported_in_one_line(line, wrong, broken, finished, small_data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # the default of --out is below it
    places = {
        "t": wrong,
        "b": broken,
        "d": small_data,
        "r": finished,
        "s": SHARED,
    }
    before = files(small_data, finished, wrong, broken)
    assert main([word.format(**places) for word in line.split()]) == 2
    command = " ".join(line.split()[: 2 if line.startswith("data ") else 1])
    message = MISTAKES[line].format(**places).replace("(see --", f"(see bvsa {command} --")
    error, (start, dots, _) = error_of(capsys.readouterr().err), f"bvsa: error: {message}\n".partition("...")
    assert error == start or (dots and error.startswith(start) and error.count("\n") == 1)
    assert not list(tmp_path.iterdir()) and files(small_data, finished, wrong, broken) == before


def test_drawing_images_without_resvg_names_the_extra(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    monkeypatch.delitem(sys.modules, "bvsa_core.synthetic.openmoji", raising=False)
    monkeypatch.delattr(synthetic, "openmoji", raising=False)
    assert main(["data", "synthetic", str(tmp_path / "new")]) == 2
    message = "bvsa: error: images need resvg_py, which is missing; pip install 'fovblur[demo]'\n"
    assert capsys.readouterr().err == message
