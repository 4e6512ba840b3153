"""Derivatives of the blur of any order, in reverse and forward mode, and its rules for `torch.func.vmap`.

Derivatives in images are calls of the two ops, as the blur is linear in them, and so are first derivatives in sigma and
gain. All others go through the reference.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fovblur.foveated_blur import reference
from fovblur.foveated_blur.op import foveated_blur_backward_op, foveated_blur_op
from fovblur.foveated_blur.params import BlurParams
from fovblur.tracing import is_transformed

# The tensors of the op, by name; all but the kernel size are differentiable. Its options follow: falloff, decay, border
# and tables.
_TENSORS = ("images", "sigma", "kernel_size", "gain", "fixation", "mean", "std", "weight")
_OPTIONS = 4


def setup_context(ctx, inputs, output) -> None:
    """Keep what the gradients need."""
    *tensors, ctx.out_dtype, ctx.backend = inputs
    ctx.options = tuple(tensors[-_OPTIONS:])
    kept = output if ctx.needs_input_grad[_TENSORS.index("std")] else None
    _keep(ctx, *tensors[:-_OPTIONS], kept)


def _keep(ctx, *tensors: Tensor | None) -> None:
    """Keep tensors for the gradients; vmap's rule takes no None among them."""
    ctx.present = [each is not None for each in tensors]
    given = [each for each in tensors if each is not None]
    ctx.save_for_backward(*given)
    if hasattr(ctx, "save_for_forward"):
        ctx.save_for_forward(*given)


def _kept(ctx) -> list[Tensor | None]:
    """Return the tensors that were kept, with their None."""
    saved = iter(ctx.saved_tensors)
    return [next(saved) if there else None for there in ctx.present]


def backward(ctx, grad):
    """Return the gradients of all arguments of the op."""
    *saved, output = _kept(ctx)
    images, sigma, kernel_size, gain, fixation, _, std, weight = saved
    needed = dict(zip(_TENSORS, ctx.needs_input_grad))
    of_op = [needed[name] for name in ("images", "sigma", "gain")]
    grads = dict.fromkeys(_TENSORS)
    computed = _differentiable_backward(grad, *saved, *ctx.options, ctx.backend, of_op)
    for name, value in zip(("images", "sigma", "gain"), computed):
        grads[name] = value if needed[name] else None
    scaled = grad.to(sigma.dtype) if std is None else grad / std[:, None, None]
    if needed["mean"]:
        grads["mean"] = -scaled.sum((0, 2, 3))
    if needed["std"]:
        grads["std"] = -(scaled * output).sum((0, 2, 3))
    if needed["fixation"] or needed["weight"]:
        x = images.to(sigma.dtype)
        options = None, None, None, *ctx.options, sigma.dtype, ctx.backend
        blurred = differentiable_blur(x, sigma, kernel_size, torch.zeros_like(gain), fixation, *options)
        scale = 255 if std is not None and images.dtype == torch.uint8 else 1
        of_map = gain[:, None, None] * (scaled * (x - blurred) / scale).sum(1)
        if needed["weight"]:
            grads["weight"] = of_map
        elif weight is None:
            grads["fixation"] = _gradient_of_fixation(of_map, fixation, *ctx.options[:2])
    return *grads.values(), *[None] * (_OPTIONS + 2)


def _gradient_of_fixation(grad: Tensor, fixation: Tensor, falloff: str, decay: float) -> Tensor:
    """Return the gradient (B, 2) of a fixation, from that of acuity (B, H, W)."""
    of_higher_order = torch.is_grad_enabled()
    with torch.enable_grad():
        leaf = fixation if of_higher_order and fixation.requires_grad else fixation.detach().requires_grad_()
        acuity = reference.acuity(falloff, decay, leaf, *grad.shape[1:])
        (gradient,) = torch.autograd.grad(acuity, leaf, grad, create_graph=of_higher_order)
    return gradient


foveated_blur_op.register_autograd(backward, setup_context=setup_context)


def _setup_second_context(ctx, inputs, output) -> None:
    *tensors, ctx.backend, ctx.needs = inputs
    ctx.options = tuple(tensors[-_OPTIONS:])
    _keep(ctx, *tensors[:-_OPTIONS])


def _second_backward(ctx, *directions):
    """Return the gradients of the backward op, whose outputs' gradients are directions of images, sigma and gain.

    The gradient of images is linear in that of the result and does not depend on images, so that its own gradients are
    calls of both ops; all others go through the reference.
    """
    grad, images, sigma, kernel_size, gain, fixation, mean, std, weight = _kept(ctx)
    zero_mean = None if mean is None else torch.zeros_like(mean)
    needed = dict(zip(("grad", *_TENSORS), ctx.needs_input_grad))
    grads = dict.fromkeys(needed)
    if any(ctx.needs[1:]) or needed["fixation"] or needed["std"] or needed["weight"]:
        at = _inputs(grad, images, sigma, gain, fixation, std, weight, needed)
        along = {
            name: value
            for name, value, need in zip(("images", "sigma", "gain"), directions, ctx.needs)
            if need and value is not None
        }
        params = BlurParams(sigma, kernel_size, gain, fixation, zero_mean, std, weight, *ctx.options)

        def product(at):
            given = {"images": images, "sigma": sigma, "gain": gain}
            start = {name: at.get(name, given[name]) for name in along}
            tangent = derivative_along(lambda moved: _by_reference({**at, **moved}, images, params), start, along)
            return (at.get("grad", grad) * tangent).sum()

        grads |= torch.func.grad(product)(at) if along and at else {}
    elif directions[0] is not None:
        options = fixation, zero_mean, std, weight, *ctx.options
        if needed["grad"]:
            blur = (*options, directions[0].dtype, ctx.backend)
            grads["grad"] = differentiable_blur(directions[0], sigma, kernel_size, gain, *blur)
        if needed["sigma"] or needed["gain"]:
            needs = [False, needed["sigma"], needed["gain"]]
            blur = (*options, ctx.backend, needs)
            _, *of = _differentiable_backward(grad, directions[0], sigma, kernel_size, gain, *blur)
            grads["sigma"], grads["gain"] = (value if need else None for value, need in zip(of, needs[1:]))
    return *grads.values(), *[None] * (_OPTIONS + 2)


def _inputs(grad, images, sigma, gain, fixation, std, weight, chosen) -> dict[str, Tensor]:
    """Return the inputs of the backward op that are chosen, by name; integers have no derivatives."""
    known = {"grad": grad, "images": images, "sigma": sigma, "gain": gain, "fixation": fixation, "std": std}
    known["weight"] = weight
    return {name: value for name, value in known.items() if chosen[name] and value.is_floating_point()}


def _by_reference(changed: dict[str, Any], images: Tensor, params: BlurParams) -> Tensor:
    """Return the result of the reference with some inputs changed."""
    others = {name: value for name, value in changed.items() if name not in ("grad", "images")}
    return reference.foveated_blur(changed.get("images", images), params._replace(**others), params.sigma.dtype)


def _merged(count: int, value: Tensor | None, dim: int | None) -> Tensor | None:
    """Return a batched tensor (count, B, ...) as (count B, ...); one without that dimension is repeated."""
    if value is None:
        return None
    batched = value.expand(count, *value.shape) if dim is None else value.movedim(dim, 0)
    return batched.flatten(0, 1)


def _split(value: Tensor, count: int, images: Tensor, dim: int | None) -> Tensor:
    """Return a value (count * B, ...) as (count, B, ...). `dim` is the dimension of images that vmap maps over."""
    return value.unflatten(0, (count, images.shape[1 if dim == 0 else 0]))


@foveated_blur_op.register_vmap
def _(info, dims, images, sigma, kernel_size, gain, fixation, mean, std, weight, *options):
    *options, out_dtype, backend = options
    per_sample = (images, sigma, kernel_size, gain, fixation)
    merged = [_merged(info.batch_size, *each) for each in zip(per_sample, dims)]
    weight = _merged(info.batch_size, weight, dims[7])
    if dims[5] is None and dims[6] is None:
        blurred = foveated_blur_op(*merged, mean, std, weight, *options, out_dtype, backend)
        return _split(blurred, info.batch_size, images, dims[0]), 0
    computed = merged[1].dtype
    blurred = foveated_blur_op(*merged, None, None, weight, *options, computed, backend)
    blurred = _split(blurred, info.batch_size, images, dims[0]) / (255 if images.dtype == torch.uint8 else 1)
    mean, std = (
        (value.expand(info.batch_size, -1) if dim is None else value.movedim(dim, 0))[:, None, :, None, None]
        for value, dim in zip((mean, std), dims[5:7])
    )
    return ((blurred - mean) / std).to(out_dtype), 0


@foveated_blur_backward_op.register_vmap
def _(info, dims, grad, images, sigma, kernel_size, gain, fixation, mean, std, weight, *options):
    *options, backend, needs = options
    per_sample = (grad, images, sigma, kernel_size, gain, fixation)
    merged = [_merged(info.batch_size, *each) for each in zip(per_sample, dims)]
    if std is not None and dims[7] is not None:  # a std of each: the gradient is divided by it beforehand
        own = std.movedim(dims[7], 0)
        divisors = own[:, None, :, None, None]
        merged[0] = (_split(merged[0], info.batch_size, images, dims[1]) / divisors).flatten(0, 1)
        std = own.new_ones(own.shape[1])
    mean = None if std is None else torch.zeros_like(std)
    weight = _merged(info.batch_size, weight, dims[8])
    grads = foveated_blur_backward_op(*merged, mean, std, weight, *options, backend, needs)
    shaped = (
        _split(each, info.batch_size, images, dims[1]) if need else each.expand(info.batch_size, 0)
        for each, need in zip(grads, needs)
    )
    return tuple(shaped), (0, 0, 0)


class Blur(torch.autograd.Function):
    """The op for transforms of torch.func and forward mode, which pass by the derivatives of torch.library's ops."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*arguments):
        """Call the op."""
        return foveated_blur_op(*arguments)

    setup_context = staticmethod(setup_context)
    backward = staticmethod(backward)

    @staticmethod
    def jvp(ctx, of_images, of_sigma, _of_size, of_gain, *rest):
        """Return the blurred tangent of the images, and the derivatives along the parameters by the reference."""
        images, sigma, kernel_size, gain, fixation, mean, std, weight, _ = _kept(ctx)
        tangent = None
        if of_images is not None:
            zero = None if mean is None else torch.zeros_like(mean)
            options = fixation, zero, std, weight, *ctx.options, of_images.dtype, ctx.backend
            tangent = differentiable_blur(of_images, sigma, kernel_size, gain, *options)
        parameters = {"sigma": sigma, "gain": gain, "fixation": fixation, "mean": mean, "std": std, "weight": weight}
        along = dict(zip(parameters, (of_sigma, of_gain, *rest[:4])))
        along = {name: value for name, value in along.items() if value is not None}
        if along:

            def blur(changed):
                params = BlurParams(sigma, kernel_size, gain, fixation, mean, std, weight, *ctx.options)
                return reference.foveated_blur(images, params._replace(**changed), sigma.dtype)

            change = derivative_along(blur, {name: parameters[name] for name in along}, along)
            tangent = change if tangent is None else tangent.to(change.dtype) + change
        return tangent.to(ctx.out_dtype)


class BlurBackward(torch.autograd.Function):
    """The backward op for transforms of torch.func."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*arguments):
        """Call the op; its list of needs is the last three arguments here, as transforms take no lists."""
        return foveated_blur_backward_op(*arguments[:-3], list(arguments[-3:]))

    @staticmethod
    def setup_context(ctx, inputs, output):
        """Keep what the gradients need."""
        _setup_second_context(ctx, (*inputs[:-3], list(inputs[-3:])), output)

    @staticmethod
    def backward(ctx, *grads):
        """Return the gradients of all arguments."""
        return *_second_backward(ctx, *grads), None, None

    @staticmethod
    def jvp(ctx, *of_inputs):
        """Return the derivatives of the gradients, by the reference."""
        grad, images, sigma, kernel_size, gain, fixation, mean, std, weight = _kept(ctx)
        tangents = dict(zip(("grad", *_TENSORS), of_inputs))
        given = {name: tangent is not None for name, tangent in tangents.items()}
        at = _inputs(grad, images, sigma, gain, fixation, std, weight, given)
        zero_mean = None if mean is None else torch.zeros_like(mean)
        params = BlurParams(sigma, kernel_size, gain, fixation, zero_mean, std, weight, *ctx.options)

        def gradients(at):
            start = {"images": images, "sigma": sigma, "gain": gain}
            start = {name: at.get(name, value) for name, value in start.items() if value.is_floating_point()}
            result, pull_back = torch.func.vjp(lambda moved: _by_reference({**at, **moved}, images, params), start)
            (pulled,) = pull_back(at.get("grad", grad).to(result.dtype))
            return tuple(pulled.get(name, result.new_zeros(images.shape)) for name in ("images", "sigma", "gain"))

        changes = derivative_along(gradients, at, {name: tangents[name] for name in at})
        return tuple(change if need else change.new_zeros(0) for change, need in zip(changes, ctx.needs))


def differentiable_blur(*arguments) -> Tensor:
    """Call the op in a way that can be differentiated wherever the call is made."""
    return Blur.apply(*arguments) if is_transformed() else foveated_blur_op(*arguments)


def transposed_gaussian(grad: Tensor, sigma: float, kernel_size: int, border: str, backend: str) -> Tensor:
    """Apply the transpose of one Gaussian blur to (B, C, H, W): the gradient of images, for that of the result."""
    batch, at = len(grad), grad.device
    sigmas = torch.full((), sigma, dtype=grad.dtype, device=at).expand(batch)
    sizes = torch.full((), kernel_size, dtype=torch.int32, device=at).expand(batch)
    gain, fixation = torch.zeros_like(sigmas), torch.zeros(1, 2, dtype=grad.dtype, device=at).expand(batch, 2)
    options = None, None, None, "exp", 0.0, border, False, backend, [True, False, False]
    return _differentiable_backward(grad, grad, sigmas, sizes, gain, fixation, *options)[0]


def _differentiable_backward(*arguments) -> tuple[Tensor, Tensor, Tensor]:
    if is_transformed():
        return BlurBackward.apply(*arguments[:-1], *arguments[-1])
    return foveated_blur_backward_op(*arguments)


def derivative_along(function, at, direction):
    """Return the derivative of a function of tensors along a direction; forward mode cannot be nested, this can."""
    value, pull_back = torch.func.vjp(function, at)
    zeros = tuple(map(torch.zeros_like, value)) if isinstance(value, tuple) else torch.zeros_like(value)
    _, push_forward = torch.func.vjp(lambda cotangent: pull_back(cotangent)[0], zeros)
    return push_forward(direction)[0]


foveated_blur_backward_op.register_autograd(_second_backward, setup_context=_setup_second_context)
