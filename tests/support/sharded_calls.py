"""Calls of two processes with distributed tensors, each compared with the same call with plain tensors."""

from pathlib import Path

import torch
from torch import distributed
from torch.distributed import tensor as dt

import fovblur

BATCH, SIZES = 5, (3, 9, 8)  # which two processes do not share evenly


def run(rank: int, file: str, seed: int) -> None:
    """Run all cases as one process of two, which meet in a file."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    try:
        mesh = distributed.device_mesh.init_device_mesh("cpu", (2,))
        for name, case in CASES.items():
            torch.manual_seed(seed)  # all processes make the same tensors
            try:
                case(mesh)
            except Exception as error:
                raise AssertionError(f"case {name}") from error
        distributed.barrier()
    finally:
        distributed.destroy_process_group()
    Path(f"{file}.{rank}").touch()


def compare(function, mesh, tensors: dict, placements: dict, sharded: bool = True) -> None:
    """Compare results and gradients of `function(**tensors)`, some of which are distributed as `placements` says."""
    plain = {name: value.requires_grad_(value.is_floating_point()) for name, value in tensors.items()}
    given = {
        name: dt.distribute_tensor(value.detach(), mesh, [placements[name]]).requires_grad_(value.requires_grad)
        if name in placements
        else value.detach().clone().requires_grad_(value.requires_grad)
        for name, value in plain.items()
    }
    expected, ours = function(**plain), function(**given)
    assert isinstance(ours, dt.DTensor) and ours.placements == ((dt.Shard(0) if sharded else dt.Replicate()),)
    assert ours.shape == expected.shape and ours.stride() == expected.stride()
    torch.testing.assert_close(ours.full_tensor(), expected)
    leaves = [name for name, value in plain.items() if value.requires_grad]
    weight = torch.rand(expected.shape)
    wanted = torch.autograd.grad((expected * weight).sum(), [plain[name] for name in leaves])
    weight = dt.distribute_tensor(weight, mesh, ours.placements)
    found = torch.autograd.grad((ours * weight).sum(), [given[name] for name in leaves])
    for name, one, other in zip(leaves, found, wanted):
        one = one.full_tensor() if isinstance(one, dt.DTensor) else one
        torch.testing.assert_close(one, other, msg=lambda text, name=name: f"gradient of {name}: {text}")


def arguments_of_the_blur() -> dict:
    return {
        "images": torch.rand(BATCH, *SIZES),
        "sigma": torch.rand(BATCH, 2) + 0.5,
        "gain": torch.rand(BATCH),
        "weight": torch.rand(BATCH, *SIZES[1:]),
        "mean": torch.rand(3),
        "std": torch.rand(3) + 0.5,
    }


def blur(images, sigma, **options):
    return fovblur.foveated_blur(images, sigma, kernel_size=5, border="replicate", **options)


def compare_blur(mesh, images: dt.Placement, others: dt.Placement | None = None, sharded: bool = True) -> None:
    tensors = arguments_of_the_blur()
    placements = {"images": images}
    if others is not None:
        placements |= dict.fromkeys(("sigma", "gain", "weight"), others)
        placements |= dict.fromkeys(("mean", "std"), dt.Replicate())
    compare(blur, mesh, tensors, placements, sharded)


def compare_fixations(mesh) -> None:
    tensors = {"images": torch.rand(BATCH, *SIZES), "fixation": torch.rand(BATCH, 3, 2) * 7}
    compare(
        lambda **given: fovblur.foveated_blur(sigma=1.0, **given),
        mesh,
        tensors,
        dict.fromkeys(tensors, dt.Shard(0)),
    )


def compare_retina(mesh) -> None:
    tensors = {"images": torch.rand(BATCH, *SIZES), "fixation": torch.rand(BATCH, 2) * 7}
    blur = lambda **given: fovblur.retinal_blur(**given, pixels_per_degree=0.5)  # noqa: E731
    compare(blur, mesh, tensors, dict.fromkeys(tensors, dt.Shard(0)))


def compare_clips(mesh) -> None:
    images = torch.rand(4, 2, *SIZES)
    expected = fovblur.foveated_blur(images, 1.5, mean=0.5)
    ours = fovblur.foveated_blur(dt.distribute_tensor(images, mesh, [dt.Shard(0)]), 1.5, mean=0.5)
    torch.testing.assert_close(ours.full_tensor(), expected)


def compare_fewer_images_than_processes(mesh) -> None:
    images = torch.rand(1, *SIZES)
    ours = fovblur.gaussian_blur(dt.distribute_tensor(images, mesh, [dt.Shard(0)]), 1.5)
    torch.testing.assert_close(ours.full_tensor(), fovblur.gaussian_blur(images, 1.5))


def compare_compiled(mesh) -> None:
    images, sigma = torch.rand(4, *SIZES), torch.rand(4) + 0.5
    compiled = torch.compile(lambda *inputs: fovblur.gaussian_blur(*inputs), backend="aot_eager", fullgraph=True)
    ours = compiled(*(dt.distribute_tensor(each, mesh, [dt.Shard(0)]) for each in (images, sigma)))
    torch.testing.assert_close(ours.full_tensor(), fovblur.gaussian_blur(images, sigma))


def embeddings() -> dict:
    rows, columns = {"brain_image": 4, "brain_text": 3}, {"image": 4, "text": 3}
    made = {name: torch.randn(BATCH, width) for name, width in rows.items()}
    made |= {name: torch.randn(7, width) for name, width in columns.items()}
    return {**made, "row_gate": torch.rand(BATCH), "column_gate": torch.rand(7)}


def compare_similarity(mesh) -> None:
    placements = {"brain_image": dt.Shard(0), "brain_text": dt.Shard(0), "image": dt.Replicate(), "text": dt.Shard(0)}
    compare(fovblur.enhanced_similarity, mesh, embeddings(), placements)


def compare_topk(mesh) -> None:
    given = embeddings()
    expected = fovblur.enhanced_topk(**given, k=3)
    rows = {name: dt.distribute_tensor(given[name], mesh, [dt.Shard(0)]) for name in ("brain_image", "brain_text")}
    ours = fovblur.enhanced_topk(**{**given, **rows}, k=3)
    for one, other in zip(ours, expected):
        torch.testing.assert_close(one.full_tensor(), other)


CASES = {
    "sharded alike": lambda mesh: compare_blur(mesh, dt.Shard(0), dt.Shard(0)),
    "replicated parameters": lambda mesh: compare_blur(mesh, dt.Shard(0), dt.Replicate()),
    "plain parameters": lambda mesh: compare_blur(mesh, dt.Shard(0)),
    "replicated images": lambda mesh: compare_blur(mesh, dt.Replicate(), dt.Replicate(), sharded=False),
    "sharded rows": lambda mesh: compare_blur(mesh, dt.Shard(2), dt.Replicate(), sharded=False),
    "several fixations": compare_fixations,
    "retina": compare_retina,
    "clips": compare_clips,
    "fewer images than processes": compare_fewer_images_than_processes,
    "compiled": compare_compiled,
    "similarity": compare_similarity,
    "top k": compare_topk,
}
