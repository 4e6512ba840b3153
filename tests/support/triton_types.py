"""Check the types in the blur's Triton kernels for every option, which the interpreter does not; print their number.

Run as a script, as the interpreter takes the place of the compiler in the tests' own process.
"""

import functools
import inspect
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from gpu.triton_kernels import MODULES, Launch, record
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend

from fovblur.foveated_blur import triton as blur
from fovblur.foveated_blur import triton_general as general
from fovblur.foveated_blur.params import BlurGradients, BlurParams
from fovblur.foveated_blur.validation import BORDERS, FALLOFFS
from fovblur.retinal_blur import triton as retina
from fovblur.retinal_blur.params import LevelParams

TARGET = GPUTarget("cuda", 86, 32)
DTYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32)
SIDES = ((50, 70), (1, 70), (50, 1))  # a size of 1 becomes a constant of the kernel


def calls() -> Iterator[Callable[[], None]]:
    """Yield blurs, their gradients and blends of levels."""
    sigma, gain, normalisation = torch.ones(2, 2), torch.ones(2), (torch.ones(3), torch.ones(3))
    falloffs, sides, dtypes = map(itertools.cycle, (FALLOFFS, SIDES, DTYPES))
    options = itertools.product(BORDERS, (False, True), (False, True), (False, True))
    for border, tables, mapped, per_axis in (*options, *4 * len(SIDES) * (("reflect", False, False, False),)):
        shape, dtype = next(sides), next(dtypes)
        own = sigma if per_axis else gain
        weight = torch.ones(2, *shape) if mapped else None
        params = BlurParams(own, own.int(), gain, sigma, *normalisation, weight, next(falloffs), 3.0, border, tables)
        images = torch.empty(2, 3, *shape, dtype=dtype)
        out = images.float()
        yield functools.partial(blur.triton_forward, images, out, params)
        grads = BlurGradients(None if dtype == torch.uint8 else images, torch.empty_like(own), torch.empty(2))
        yield functools.partial(blur.triton_backward, out, images, grads, params)
        weights = None if weight is None else list(weight)
        of_list = list(images), list(out), params._replace(weight=None), weights
        yield functools.partial(general.triton_forward_list, *of_list)
    for border, shape in itertools.product(BORDERS, SIDES):
        images, level = torch.empty(1, 1, *shape, dtype=torch.float16), torch.empty(1, *shape)
        yield functools.partial(retina.triton_forward, images, images, LevelParams(level, (0.0, 1.0), (1, 9), border))


def check(launch: Launch) -> None:
    """Translate a kernel into Triton's representation."""
    kernel = getattr({module.__name__: module for module in MODULES}[launch.module], launch.kernel)
    backend, context = make_backend(TARGET), ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    options = backend.parse_options(dict(launch.options))
    source = ASTSource(kernel, dict(launch.signature), dict(launch.constants))
    given = {
        "target": TARGET,
        "options": options,
        "codegen_fns": backend.get_codegen_implementation(options),
        "module_map": backend.get_module_map(),
        "context": context,
    }
    taken = inspect.signature(source.make_ir).parameters  # Triton 3.4 takes no target
    source.make_ir(**{name: value for name, value in given.items() if name in taken})


if __name__ == "__main__":
    launches = record(86, calls())
    for launch in launches:
        check(launch)
    print(len(launches))
