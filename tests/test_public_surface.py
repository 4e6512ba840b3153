"""The public surface: names, functions, ops, methods, commands and flags. Changes to it belong in CHANGELOG.md.

`EXPECTTEST_ACCEPT=1 pytest tests/test_public_surface.py` rewrites the lists.
"""

import argparse
import importlib
import inspect
import textwrap

import torch
from expecttest import assert_expected_inline

import bvsa_core
import fovblur
from bvsa_core import cli, encoders, methods
from bvsa_core.cli.arguments import Parser


def wrapped(line: str) -> list[str]:
    """Wrap a long line."""
    return textwrap.wrap(line, 120, subsequent_indent="    ", break_on_hyphens=False)


def test_library():
    signatures = [f"{name}{inspect.signature(getattr(fovblur, name))}" for name in sorted(fovblur.__all__)]
    names = (bvsa_core.__all__, methods.names(), encoders.names())
    ops = sorted(name for name in torch._C._dispatch_get_all_op_names() if name.startswith("fovblur::"))
    lines = [*signatures, *map(" ".join, (*names, ops))]
    assert_expected_inline(
        "\n".join(line for long in lines for line in wrapped(long)),
        """\
available_backends() -> 'dict[str, str | None]'
enhanced_similarity(brain_image: 'Tensor', image: 'Tensor', brain_text: 'Tensor', text: 'Tensor', *, row_gate: 'Tensor |
    None' = None, column_gate: 'Tensor | None' = None, backend: 'str | None' = None) -> 'Tensor'
enhanced_topk(brain_image: 'Tensor', image: 'Tensor', brain_text: 'Tensor', text: 'Tensor', k: 'int', *, row_gate:
    'Tensor | None' = None, column_gate: 'Tensor | None' = None, backend: 'str | None' = None) -> 'tuple[Tensor,
    Tensor]'
foveated_blur(images: 'Images', sigma: 'Values | None' = None, *, kernel_size: 'Values | None' = None, gain: 'Values' =
    0.5, decay: 'float' = 3.0, falloff: 'str' = 'exp', fixation: 'Values | None' = None, weight: 'Values |
    Sequence[Values] | None' = None, mean: 'Values | None' = None, std: 'Values | None' = None, border: 'str' =
    'reflect', rule: 'str | None' = None, out_dtype: 'torch.dtype | None' = None, out: 'Tensor | None' = None, backend:
    'str | None' = None) -> 'Images'
gaussian_blur(images: 'Images', sigma: 'Values | None' = None, *, kernel_size: 'Values | None' = None, border: 'str' =
    'reflect', rule: 'str | None' = None, out: 'Tensor | None' = None, backend: 'str | None' = None) -> 'Images'
kernel_size_from_sigma(sigma)
retinal_blur(images: 'Tensor', fixation: 'Values | None' = None, *, pixels_per_degree: 'float', viewing_distance: 'float
    | None' = None, half_resolution: 'float' = 2.3, frequency_decay: 'float' = 0.106, contrast_threshold: 'float' =
    0.015625, levels: 'int' = 12, border: 'str' = 'reflect', out_dtype: 'torch.dtype | None' = None, backend: 'str |
    None' = None) -> 'Tensor'
sigma_from_kernel_size(k)
Batch Contrastive Dataset Decoder EmbeddingMatrix Embeddings Evaluation Gallery InputSpec Level Method Protocol Queries
    Recordings RetrievalResult RunConfig RunData RunDataConfig RunFolder RunResult Scores Scoring Split SyntheticConfig
    TopK Trained UserError VisionEncoder evaluate from_arrays from_mne from_torch load_method load_split
    load_vision_encoder make_dataset ranks register_encoder register_method register_vision_encoder run score search
    similarity symmetric_contrastive to_mne train write_subject
atm bravl bvsa mcdb nice samga ubp vanilla
atm deepnet eeg_project eegnet perceptron shallownet tsconv tsconv_ubp
fovblur::enhanced_similarity fovblur::enhanced_topk fovblur::foveated_blur fovblur::foveated_blur_backward
    fovblur::foveated_blur_list fovblur::foveated_blur_out fovblur::retinal_blur""",
    )


def flags(name: str, parser: argparse.ArgumentParser) -> list[str]:
    """Return lines of a command and its flags, and of its subcommands."""
    names, below = [], []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            below += [line for each, sub in action.choices.items() for line in flags(f"{name} {each}", sub)]
        else:
            names += action.option_strings or [action.dest.upper()]
    common = ("-h", "--help", "--quiet", "--print_config")
    own = sorted(flag for flag in names if flag not in common and flag[-1] != "+")
    return [*wrapped(" ".join([name, *own])), *below]


def test_commands_and_flags():
    lines = []
    for name in cli.COMMANDS:
        parser = Parser(prog=name)
        importlib.import_module(f"bvsa_core.cli.{name}").add_arguments(parser, [])
        lines += flags(name, parser)
    assert_expected_inline(
        "\n".join(lines),
        """\
demo --augment --augment_once --average --bank --batch_size --betas --blur_lr --cache_dir --checkpoint_vision --chunk
    --concepts --data --decay --device --encoder --epochs --falloff --full --initial_std --learn_blur --lr --methods
    --mixup_alpha --no_lock --optimiser --out --overwrite --patience --precision --projector --projector_dim
    --projector_shared --prompt --repetitions --resamples --schedule --seed --seeds --select_epochs --select_layer
    --selection --setting --shuffle_pairs --synthetic --synthetic.channels --synthetic.images_per_concept
    --synthetic.modality --synthetic.samples --synthetic.seed --synthetic.signal_to_noise --synthetic.subjects
    --synthetic.test_concepts --synthetic.test_repetitions --synthetic.train_concepts --synthetic.train_repetitions
    --target --target_layers --target_levels --texts --validation --views --vision --vision_dropout --vision_lora
    --vision_lr --weight_decay --weights
data
data download --mirror --no_lock --subjects FOLDER NAME
data synthetic --channels --images_per_concept --modality --no_lock --samples --seed --signal_to_noise --subjects
    --test_concepts --test_repetitions --train_concepts --train_repetitions FOLDER
data eeg --concepts --images --name --no_lock --sampling_rate --subjects --texts --whitening --whole_epoch FOLDER SOURCE
data meg --concepts --images --name --no_lock --sensors --subjects --texts --whole_epoch FOLDER SOURCE
data export --no_lock FOLDER SOURCE
data check --figures --images --no_lock FOLDER
data images --quality --size FOLDER SOURCE
features --bank --cache_dir --concepts --data --decay --device --falloff --levels --prompt --scheduler --target
    --target_layers --target_levels --texts --threads --vision --weights --workers
train --allow_leak --augment --augment_once --average --bank --batch_size --betas --blur_lr --cache_dir --channels
    --checkpoint_vision --chunk --concepts --config --data --decay --device --encoder --encoder_options
    --encoder_options.dropout --epochs --falloff --features --features_images --features_test --initial_std --learn_blur
    --log --lr --method --method_options --method_options.alpha --method_options.c --method_options.continuous
    --method_options.decouple --method_options.dynamic --method_options.enhancement --method_options.gallery_views
    --method_options.gamma --method_options.heads --method_options.kernel_size --method_options.scale
    --method_options.shift --method_options.unit_norm --mixup_alpha --no_lock --optimiser --out --overwrite --patience
    --precision --preset --projector --projector_dim --projector_shared --prompt --repetitions --schedule --seed
    --select_epochs --select_layer --selection --setting --shuffle_pairs --subject --target --target_layers
    --target_levels --texts --validation --views --vision --vision_dropout --vision_lora --vision_lr --weight_decay
    --weights --window
evaluate --bank --brain --brain_text --class_centres --data --device --full --gate --image --json --reliability
    --rescoring --shuffle_texts --text --texts RUN
reproduce --allow_leak --augment --augment_once --average --bank --batch_size --betas --blur_lr --cache_dir --channels
    --checkpoint_vision --chunk --concepts --config --decay --device --eeg --encoders --epochs --falloff --features
    --features_images --features_test --initial_std --learn_blur --lr --meg --methods --mixup_alpha --no_lock
    --optimiser --out --overwrite --patience --plan --precision --projector --projector_dim --projector_shared --prompt
    --repetitions --resamples --schedule --scheduler --seeds --select_epochs --select_layer --selection --shuffle_pairs
    --subjects --synthetic.channels --synthetic.images_per_concept --synthetic.samples --synthetic.seed
    --synthetic.signal_to_noise --synthetic.subjects --synthetic.test_concepts --synthetic.test_repetitions
    --synthetic.train_concepts --synthetic.train_repetitions --target --target_layers --target_levels --texts --threads
    --validation --views --vision --vision_dropout --vision_lora --vision_lr --weight_decay --weights --window --workers
    GRID
retrieve --bank --candidates --data --device --gallery --gallery_text --gate --index --index_type --out --page --probes
    --recordings --texts --top RUN
report --bank --data --decoding --device --figures --out --resamples --title RUNS""",
    )
