"""Image encoders of transformers and timm: tiny random ones, saved offline, give the models' own features."""

import json
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
import safetensors.torch
import timm
import tokenizers
import torch
import transformers
from torch.nn.functional import normalize

from bvsa_core import RunConfig, RunData, UserError, load_vision_encoder, train
from bvsa_core.vision.loading import check_weights, embedding_width_of, image_size_of, weights_are_here
from bvsa_core.vision.tuned import TunedVision

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
SMALL = {
    "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
PAIR = [("text_config", SMALL | {"vocab_size": 9, "max_position_embeddings": 7}), ("vision_config", SMALL)]
CONFIGS = {
    "dinov2": (transformers.Dinov2WithRegistersConfig(**SMALL), 5),
    "vit": (transformers.ViTConfig(**SMALL), 1),
    "internvl": (transformers.InternVLVisionConfig(**SMALL | {"image_size": [32, 32], "patch_size": [8, 8]}), 1),
    "siglip": (transformers.SiglipVisionConfig(**SMALL), 0),
    "convnext": (transformers.ConvNextConfig(hidden_sizes=[8, 8, 12, 16], depths=[1] * 4), 0),
}  # each with the number of tokens before those of patches
PROCESSOR = {
    "do_resize": True, "size": {"shortest_edge": 40}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32},
    "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.3, 0.4], "image_processor_type": "BitImageProcessor",
}  # fmt: skip


def save(config: transformers.PretrainedConfig, folder: Path, **settings) -> torch.nn.Module:
    """Save a random model with an image processor, and return it."""
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config, **settings).eval()
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return model


def save_tokenizer(folder: Path) -> None:
    words = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "a", "photo", "of", "dog", "cat", "<unk>"])}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    model.post_processor = tokenizers.processors.TemplateProcessing("<s> $A </s>", None, [("<s>", 1), ("</s>", 2)])
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=model, **names).save_pretrained(folder)


@pytest.mark.parametrize("kind", CONFIGS)
@torch.no_grad()
def test_parts_are_the_pooled_hidden_states_of_the_model(kind, tmp_path):
    config, prefix = CONFIGS[kind]
    own = save(config, tmp_path)(pixel_values=IMAGES, output_hidden_states=True)
    encoder = load_vision_encoder(f"hf:{tmp_path}")
    assert (encoder.image_size, encoder.mean, encoder.std) == (32, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    assert encoder.name == f"hf:{tmp_path.name}" and not encoder.has_texts
    assert encoder.layer_count == len(own.hidden_states) - 1
    cls = own.last_hidden_state[:, 0] if kind == "internvl" else None
    output = own.pooler_output if cls is None else cls
    torch.testing.assert_close(encoder.encode_images(IMAGES), normalize(output, dim=-1))
    expected = [normalize(output, dim=-1)]
    for state in own.hidden_states[1:]:
        expected.append(state.mean((2, 3)) if state.ndim == 4 else state[:, prefix:].mean(1))
    parts = ["output", *map(str, range(len(expected) - 1))]
    several = encoder.with_layers(parts)
    assert several.widths() == [each.shape[1] for each in expected]
    torch.testing.assert_close(several.encode_images(IMAGES), torch.cat(expected, dim=1))
    if prefix:
        torch.testing.assert_close(encoder.with_layers(["-2.cls"]).encode_images(IMAGES), own.hidden_states[-2][:, 0])
    assert (image_size_of(f"hf:{tmp_path}"), embedding_width_of(f"hf:{tmp_path}")) == (32, output.shape[1])


@pytest.mark.parametrize("kind", [transformers.CLIPConfig, transformers.SiglipConfig])
@torch.no_grad()
def test_a_model_of_images_and_texts_encodes_texts_too(kind, tmp_path):
    model = save(kind(**dict(PAIR), **({"projection_dim": 10} if kind is transformers.CLIPConfig else {})), tmp_path)
    with pytest.raises(UserError, match="cannot be loaded .*; give a repository or folder of a vision model with"):
        load_vision_encoder(f"hf:{tmp_path}")
    save_tokenizer(tmp_path)
    encoder = load_vision_encoder(f"hf:{tmp_path}")
    own = model.get_image_features(pixel_values=IMAGES, output_hidden_states=True)
    torch.testing.assert_close(encoder.encode_images(IMAGES), normalize(own.pooler_output, dim=-1))
    prefix = 1 if kind is transformers.CLIPConfig else 0
    expected = own.hidden_states[2][:, prefix:].mean(1)
    torch.testing.assert_close(encoder.with_layers(["1"]).encode_images(IMAGES), expected)
    tokens = torch.tensor([[1, 3, 4, 5, 6, 2, 0], [1, 7, 2, 0, 0, 0, 0]])
    texts = model.get_text_features(input_ids=tokens, attention_mask=tokens != 0).pooler_output
    assert encoder.has_texts
    torch.testing.assert_close(encoder.encode_texts(["a photo of dog", "cat"], 1), normalize(texts, dim=-1))


@torch.no_grad()
def test_pooling_without_pretrained_weights_is_not_used(tmp_path):
    model = save(transformers.ViTConfig(**SMALL), tmp_path, add_pooling_layer=False)
    expected = normalize(model(pixel_values=IMAGES).last_hidden_state[:, 0], dim=-1)
    torch.testing.assert_close(load_vision_encoder(f"hf:{tmp_path}").encode_images(IMAGES), expected)


def test_files_that_lack_weights_or_would_run_something_are_refused(tmp_path):
    save(transformers.ViTConfig(**SMALL), tmp_path)
    weights = safetensors.torch.load_file(tmp_path / "model.safetensors")
    kept = {name: each for name, each in weights.items() if "layernorm" not in name}
    safetensors.torch.save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="its files lack weights: layernorm.bias"):
        load_vision_encoder(f"hf:{tmp_path}")
    assert load_vision_encoder(f"hf:{tmp_path}", "random").name == f"hf:{tmp_path.name}/random"
    (tmp_path / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"model.safetensors missing in the folder; write model and image processor"):
        load_vision_encoder(f"hf:{tmp_path}")
    code = tmp_path / "code.py"
    code.write_text("raise SystemExit('run')")
    config = {"model_type": "own", "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="cannot be loaded"):
        load_vision_encoder(f"hf:{tmp_path}", "random")


def test_attention_from_elsewhere_is_not_fetched(tmp_path):
    save(transformers.ViTConfig(**SMALL), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for own in ({"_attn_implementation": "somebody/code"}, {"vision_config": {"attn_implementation": "somebody/code"}}):
        (tmp_path / "config.json").write_text(json.dumps(config | own))
        with pytest.raises(UserError, match="attn_implementation 'somebody/code', which may be code"):
            load_vision_encoder(f"hf:{tmp_path}")


def test_weights_and_folders_that_do_not_fit_are_refused(tmp_path):
    save(transformers.ViTConfig(**SMALL), tmp_path)
    with pytest.raises(
        UserError, match="weights are 'openai', but vision encoder hf:.* has its own; leave --weights out"
    ):
        check_weights(f"hf:{tmp_path}", "openai")
    with pytest.raises(UserError, match="hf:no/such/folder: no such folder, and no name OWNER/NAME"):
        check_weights("hf:no/such/folder")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR | {"do_rescale": False}))
    with pytest.raises(UserError, match="scaled by None; only square ones scaled by 1/255 are supported"):
        load_vision_encoder(f"hf:{tmp_path}")
    bert = transformers.BertConfig(**SMALL, vocab_size=9)
    save(bert, tmp_path / "bert")
    with pytest.raises(UserError, match="BertModel takes input_ids, not images alone"):
        load_vision_encoder(f"hf:{tmp_path / 'bert'}")


@pytest.mark.parametrize("name", ["hf:facebook/dinov2-base", "timm:vit_tiny_patch16_224.augreg_in21k"])
def test_without_network_the_message_says_how_to_get_the_weights(name, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert not weights_are_here(name, cache_dir=tmp_path)
    repository = name.removeprefix("hf:").replace("timm:", "timm/")
    remedy = f"not on this machine, and downloads are switched off; run 'hf download {repository} --cache-dir FOLDER'"
    for function in (check_weights, load_vision_encoder):
        with pytest.raises(UserError, match=remedy):
            function(name, cache_dir=tmp_path)


def test_a_repository_in_the_cache_is_loaded_without_network(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--owner--vit"  # as `hf download --cache-dir` leaves it
    save(transformers.ViTConfig(**SMALL), repository / "snapshots/abc")
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("abc")
    encoder = load_vision_encoder("hf:owner/vit", cache_dir=tmp_path)
    assert encoder.name == "hf:owner/vit"
    by_folder = load_vision_encoder(f"hf:{repository / 'snapshots/abc'}")
    torch.testing.assert_close(encoder.encode_images(IMAGES), by_folder.encode_images(IMAGES))


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "test_resnet"])
@torch.no_grad()
def test_timm_gives_the_features_of_the_model(name, tmp_path):
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    encoder = load_vision_encoder(f"timm:{tmp_path}")
    images = torch.randn(2, 3, encoder.image_size, encoder.image_size)
    expected = normalize(model.forward_head(model.forward_features(images), pre_logits=True), dim=-1)
    torch.testing.assert_close(encoder.encode_images(images), expected)
    about = model.pretrained_cfg
    assert (encoder.image_size, encoder.mean, encoder.std) == (about["input_size"][1], about["mean"], about["std"])
    layers = model.forward_intermediates(images, intermediates_only=True)  # (B, width, height, width), without CLS
    layers = layers[1:] if name == "test_resnet" else layers  # the stem comes first
    assert encoder.layer_count == len(layers)
    for number, layer in enumerate(layers):
        features = encoder.with_layers([str(number)]).encode_images(images)
        torch.testing.assert_close(features, layer.mean((2, 3)))
    assert (image_size_of(f"timm:{name}"), embedding_width_of(f"timm:{name}")) == (
        encoder.image_size, expected.shape[1],
    )  # fmt: skip
    file = tmp_path / "model.safetensors"
    by_file = load_vision_encoder(f"timm:{name}", str(shutil.copy(file, tmp_path / "own.safetensors")))
    assert by_file.name == f"timm:{name}/own.safetensors"
    torch.testing.assert_close(by_file.encode_images(images), expected)
    kept = {key: each for key, each in safetensors.torch.load_file(file).items() if not key.endswith("1.weight")}
    safetensors.torch.save_file(kept, file)
    with pytest.raises(UserError, match="cannot be loaded .*; give another file or name"):
        load_vision_encoder(f"timm:{tmp_path}")


@pytest.mark.parametrize("kind", ["dinov2", "siglip", "timm"])
def test_the_blur_and_low_rank_updates_get_gradients(kind, tmp_path):
    if kind == "timm":
        encoder = load_vision_encoder("timm:test_vit", "random")
    else:
        save(CONFIGS[kind][0], tmp_path)
        encoder = load_vision_encoder(f"hf:{tmp_path}")
    images = torch.randn(2, 3, encoder.image_size, encoder.image_size, requires_grad=True)
    gradients = []
    for checkpoint_blocks in (False, True):
        torch.manual_seed(0)
        tuned = TunedVision(encoder, 2, checkpoint_blocks=checkpoint_blocks)
        updates = list(tuned.parameters())
        for weight in updates:
            torch.nn.init.normal_(weight)
        features = tuned.encoder.encode_images(images)
        assert (features - encoder.encode_images(images)).abs().max() > 0.01
        gradients.append(torch.autograd.grad(features[:, 0].sum(), [images, *updates]))
        assert all(each.abs().max() > 0 for each in gradients[-1])
    torch.testing.assert_close(*gradients)


def test_unknown_models_tags_and_files_of_timm_are_refused(tmp_path):
    with pytest.raises(UserError, match="unknown vision encoder timm:restnet18; did you mean 'resnet18'"):
        check_weights("timm:restnet18")
    with pytest.raises(UserError, match=r"Invalid pretrained tag \(foo\).*; its tags are .*augreg_in21k"):
        check_weights("timm:vit_tiny_patch16_224.foo")
    with pytest.raises(UserError, match="'openai', which is no weights file of timm:resnet18; give a .safetensors"):
        check_weights("timm:resnet18", "openai")
    with pytest.raises(UserError, match="config.json and model.safetensors missing in the folder"):
        check_weights(f"timm:{tmp_path}")


def test_a_model_of_transformers_trains_a_method_that_reads_texts(small_data, tmp_path):
    save(transformers.CLIPConfig(**dict(PAIR), projection_dim=10), tmp_path / "clip")
    save_tokenizer(tmp_path / "clip")
    places = {"data": small_data, "vision": f"hf:{tmp_path / 'clip'}", "bank": tmp_path / "bank", "device": "cpu"}
    config = RunConfig.of("bvsa", **places, epochs=1, batch_size=64)
    assert train(config, RunData(config)).shape.embedding == 10
