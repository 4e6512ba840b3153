"""Low-rank updates of image encoders, and gradients of chunks, beside those of merged weights and whole batches."""

import copy
import weakref
from collections.abc import Callable

import open_clip
import pytest
import timm
import torch
from timm.models.eva import Eva
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import SiglipVisionConfig, SiglipVisionModel

from bvsa_core.errors import UserError
from bvsa_core.methods.base import symmetric_contrastive
from bvsa_core.vision.clip import load_clip
from bvsa_core.vision.encoder import VisionEncoder
from bvsa_core.vision.from_transformers import TransformersEncoder
from bvsa_core.vision.tuned import TunedVision
from bvsa_core.vision.views import OnlineViews

RANK = 3


def eva() -> nn.Module:  # whose attention takes the weight of its map
    return Eva(img_size=32, patch_size=16, embed_dim=24, depth=2, num_heads=4, num_classes=8)


def vit() -> nn.Module:
    sizes = {"width": 24, "layers": 2, "heads": 4, "mlp_ratio": 2, "output_dim": 8}
    return open_clip.transformer.VisionTransformer(image_size=32, patch_size=16, **sizes)


def timm_vit() -> nn.Module:
    return timm.models.VisionTransformer(img_size=32, patch_size=16, embed_dim=24, depth=2, num_heads=4, num_classes=8)


def siglip() -> VisionEncoder:  # which pools by nn.MultiheadAttention
    sizes = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = SiglipVisionModel(SiglipVisionConfig(**sizes, image_size=32, patch_size=16))
    return TransformersEncoder(model, 32, (0.5,) * 3, (0.5,) * 3, "own").frozen()


def encoder_of(model: nn.Module) -> VisionEncoder:
    about = {"image_size": 32, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    return VisionEncoder(name="own", model=model, **about).frozen()


ENCODERS: dict[str, Callable[[], VisionEncoder]] = {
    "tiny": lambda: load_clip("tiny"),
    "siglip": siglip,
    **{make.__name__: lambda make=make: encoder_of(make()) for make in (vit, timm_vit, eva)},
}


def randomise(tuned: TunedVision) -> None:
    for weight in tuned.parameters():
        nn.init.normal_(weight.data, std=0.1)


def merged(encoder: VisionEncoder, tuned: TunedVision) -> nn.Module:
    """Return a copy of the frozen model with B A added to its weights."""
    model, updates = copy.deepcopy(encoder.model), dict(tuned.named_parameters())
    for key in [name for name in updates if name.endswith("lora_A")]:
        name = key.removesuffix("/lora_A").replace("/", ".")
        delta = updates[key.replace("lora_A", "lora_B")] @ updates[key]
        parent, _, own = name.rpartition(".")
        attention = model.get_submodule(parent)
        if isinstance(attention, nn.MultiheadAttention):
            rows = {"q": 0, "k": 1, "v": 2}
            target = attention.in_proj_weight.chunk(3)[rows[own]] if own in rows else attention.out_proj.weight
        else:
            target = model.get_submodule(name).weight
        target.data += delta.detach()
    return model


@pytest.mark.parametrize("name", ENCODERS)
def test_updates_are_added_to_every_linear_map(name, seed):
    encoder = ENCODERS[name]()
    images = torch.randn(3, 3, encoder.image_size, encoder.image_size)
    before, state = encoder.encode_images(images), copy.deepcopy(encoder.model.state_dict())
    tuned = TunedVision(encoder, RANK)
    torch.testing.assert_close(tuned.encoder.encode_images(images), before, rtol=0, atol=1e-5)  # B is 0
    randomise(tuned)
    after = tuned.encoder.encode_images(images)
    assert (after - before).abs().max() > 0.01
    expected = copy.copy(encoder)
    object.__setattr__(expected, "model", merged(encoder, tuned))
    torch.testing.assert_close(after, expected.encode_images(images), rtol=0, atol=2e-5)
    linear = sum(4 * isinstance(m, nn.MultiheadAttention) + isinstance(m, nn.Linear) for m in encoder.tower.modules())
    packed = sum(isinstance(m, nn.MultiheadAttention) for m in encoder.tower.modules())  # its out_proj is an nn.Linear
    assert len(list(tuned.parameters())) == 2 * (linear - packed)
    after.sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().max() > 0 for weight in tuned.parameters())
    frozen = encoder.model.state_dict()
    assert state.keys() == frozen.keys() and all(torch.equal(frozen[key], state[key]) for key in state)
    assert not any(weight.requires_grad or weight.grad is not None for weight in encoder.model.parameters())
    assert torch.equal(encoder.encode_images(images), before)


def test_a_tuned_encoder_has_a_fingerprint_of_its_weights(clip):
    torch.manual_seed(0)
    tuned = TunedVision(clip, RANK)
    first = tuned.fingerprinted().fingerprint
    assert first != clip.fingerprint and first == tuned.fingerprinted().fingerprint
    randomise(tuned)
    assert tuned.fingerprinted().fingerprint not in (first, clip.fingerprint)


def test_encoders_without_linear_maps_that_are_called_are_refused():
    with pytest.raises(UserError, match=r"RN50/random takes the weights of visual.attnpool.* choose a ViT"):
        TunedVision(load_clip("RN50", "random"), RANK)
    with pytest.raises(UserError, match="own has none; choose a ViT"):
        TunedVision(encoder_of(nn.Sequential(nn.Conv2d(3, 4, 32), nn.Flatten())), RANK)


def test_only_the_dropout_of_updates_is_switched():
    tuned = TunedVision(encoder_of(nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3072, 4))), RANK, 0.5)
    randomise(tuned)
    images = torch.randn(2, 3, 32, 32)
    encode = tuned.encoder.encode_images
    assert not torch.equal(encode(images), encode(images))
    tuned.eval()
    assert torch.equal(encode(images), encode(images))
    assert not tuned.train().encoder.model[1].training


def gradients(tuned: TunedVision, features: Callable[[], Tensor], gain: Tensor | None = None) -> list[Tensor]:
    """Return the gradients of a contrastive loss of features (B, D)."""
    torch.manual_seed(1)
    brain = torch.randn(len(features()), features().shape[1])
    torch.manual_seed(2)
    loss, _ = symmetric_contrastive(nn.functional.normalize(brain, dim=1), features(), torch.tensor(14.0))
    wanted = [*tuned.parameters(), *([] if gain is None else [gain])]
    for weight in wanted:
        weight.grad = None
    loss.backward()
    return [weight.grad.clone() for weight in wanted]


@pytest.fixture
def batch(seed):
    """Images, and index, gain and kernel size of ten of them."""
    images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8)
    return images, torch.tensor([0, 3, 3, 1, 5, 4, 2, 2, 0, 1]), torch.rand(10), torch.randint(1, 5, (10,)) * 2 + 1


@pytest.mark.parametrize("name", [name for name in ENCODERS if name != "tiny"])
def test_blocks_that_are_computed_again_give_the_same_gradients(name, batch):
    images, *rows = batch
    encoder, results, calls = ENCODERS[name](), [], []
    for blocks in (False, True):
        tuned = TunedVision(encoder, RANK, checkpoint_blocks=blocks)
        torch.manual_seed(0)
        randomise(tuned)
        count = []
        tuned.encoder.model.get_submodule(linear_of_a_block(tuned)).register_forward_hook(lambda *_: count.append(1))  # noqa: B023
        views = OnlineViews(tuned.encoder, images, chunk=5)
        results.append(gradients(tuned, lambda: views(*rows)))  # noqa: B023
        calls.append(len(count))
    assert calls[1] > calls[0]
    for one, other in zip(*results):
        torch.testing.assert_close(one, other)


def linear_of_a_block(tuned: TunedVision) -> str:
    return next(iter(dict(tuned.named_parameters()))).removesuffix("/lora_A").replace("/", ".")


def test_chunks_give_the_gradients_of_the_whole_batch(batch):
    images, indices, gain, kernel_size = batch
    gain.requires_grad_(True)
    tuned = TunedVision(encoder_of(vit()), RANK)
    randomise(tuned)
    whole = OnlineViews(tuned.encoder, images)
    expected = gradients(tuned, lambda: whole(indices, gain, kernel_size), gain)
    for chunk in (1, 3, 4, 5, 10, 64):
        views = OnlineViews(tuned.encoder, images, chunk=chunk)
        for one, other in zip(gradients(tuned, lambda: views(indices, gain, kernel_size), gain), expected):  # noqa: B023
            assert (one - other).abs().max() <= 1e-5 * other.abs().max()
    with torch.no_grad():
        assert not views(indices, gain, kernel_size).requires_grad


def test_a_chunk_drops_the_same_numbers_in_both_passes(batch):
    images, *rows = batch
    tuned = TunedVision(encoder_of(vit()), RANK, dropout=0.3)
    randomise(tuned)
    views, whole = OnlineViews(tuned.encoder, images, chunk=4), OnlineViews(tuned.encoder, images)
    kept = gradients(tuned, lambda: torch.cat([whole(*part) for part in zip(*(each.split(4) for each in rows))]))
    for one, other in zip(gradients(tuned, lambda: views(*rows)), kept):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * other.abs().max().item())


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that are made inside and still there; `peak` is the most at a time."""

    def __init__(self):
        super().__init__()
        self.live, self.peak = 0, 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for each in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(each, Tensor) and each.untyped_storage().data_ptr() not in self.known:
                storage = each.untyped_storage()
                size, address = storage.nbytes(), storage.data_ptr()
                self.known.add(address)
                self.live += size
                weakref.finalize(storage, self._freed, size, address)
        self.peak = max(self.peak, self.live)
        return result

    def _freed(self, size: int, address: int) -> None:
        self.live -= size
        self.known.discard(address)


def test_chunks_keep_the_activations_of_one(seed):
    tuned = TunedVision(encoder_of(vit()), RANK)
    images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8)

    def peak(batch: int, chunk: int | None) -> int:
        indices, gain = torch.arange(batch) % 6, torch.rand(batch)
        views = OnlineViews(tuned.encoder, images, chunk=chunk)
        with LiveBytes() as counted:
            features = views(indices, gain, torch.full((batch,), 5))
            (features @ features.T).logsumexp(1).sum().backward()
        for weight in tuned.parameters():
            weight.grad = None
        return counted.peak

    one, many, whole = peak(4, None), peak(64, 4), peak(64, None)
    embeddings = 64 * 8 * 4  # bytes
    assert whole > 8 * one  # so that the bound means something
    # Beside a chunk: embeddings, their parts, their gradient and its parts; similarities and what their gradient takes.
    assert many <= one + 8 * embeddings + 4 * 64 * 64 * 4
