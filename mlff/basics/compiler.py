"""How XLA compiles mlff's programs, and whether what it compiles computes right.

jaxlib 0.10.2 returns wrong numbers on the CPU, without a word, for small matrices times many rows whose squares are then
summed (jax-ml/jax#39103): it fuses sums into programs of its library YNN. mlff does not accept that version as a dependency;
where it is installed all the same, products are all that is handed to YNN, which is right and 5 to 10 % slower
(`docs/MEASURED.md`). Because the next version may be wrong elsewhere, `check` compares a few programs with NumPy, once for
each version and machine.
"""

from __future__ import annotations

import functools
import os
import platform
from importlib.metadata import version

import numpy as np

from mlff.basics.errors import CompilerError
from mlff.basics.runtime import Mark, on_host, set_up_process

FUSIONS = "xla_cpu_experimental_ynn_fusion_type"  #: XLA's option: what is handed to YNN
PRODUCTS = "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"  #: matrix products by themselves
FAULTY = ("0.10.2",)  #: versions of jaxlib that compute wrong with what they hand over by default
_LEVEL = "xla_backend_optimization_level"
_ROWS = {"float32": 40_000, "float64": 20_000}  #: the fault begins at 32,769 and 16,385
_TOLERANCE = {"float32": 2e-5, "float64": 1e-12}  #: relative to the largest value of a result


def quick() -> dict:
    """Compiler options: a third to a half less time to compile than XLA's default, the same speed once compiled.

    XLA_FLAGS that set one of them win.
    """
    return _options({_LEVEL: 2})


def hasty() -> dict:
    """Compiler options for a program that will run a few times: a sixth of the time to compile, then three to seven times slower.

    With an XLA that no longer has the older code generator, half the time. For programs on the CPU (`on_host`). Empty where
    XLA_FLAGS set the level.
    """
    if _in_flags(_LEVEL):
        return {}
    older = {"xla_cpu_use_fusion_emitters": False}
    return _options({_LEVEL: 0} | (older if _known(*older.items()) else {}))


def _options(options: dict) -> dict:
    wanted = options | ({FUSIONS: PRODUCTS} if version("jaxlib") in FAULTY else {})
    return {name: value for name, value in wanted.items() if not _in_flags(name)}


def _in_flags(name: str) -> bool:
    return name in os.environ.get("XLA_FLAGS", "")


@functools.cache
def _known(*options: tuple) -> bool:
    """Whether this version of XLA has these options."""
    import jax

    try:
        with on_host():
            jax.jit(lambda: 0, compiler_options=dict(options)).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


@functools.cache
def check() -> None:
    """Compare compiled programs with NumPy, unless this platform has passed with these options before.

    Raises CompilerError, which names the version and the remedy.
    """
    options = quick()
    text = f"{platform_name()}, {sorted(options.items())}, {os.environ.get('XLA_FLAGS', '')}"
    mark = Mark("compiler", text)
    if mark.there():
        return
    for precision in _ROWS:
        if wrong := faults(precision, options):
            raise CompilerError(
                f"XLA compiles wrong on this machine ({', '.join(wrong)} in {precision}; {platform_name()}): results would be "
                "wrong without a word. Install another version of jax and jaxlib (0.10.1 and 0.12.0.1 are right on the CPUs "
                f"where mlff is tested), or set XLA_FLAGS=--{FUSIONS}= and take other options of the compiler out of XLA_FLAGS"
            )
    mark.set()


def faults(precision: str, options: dict) -> list[str]:
    """What comes out wrong of programs that are compiled with these options: names, none if all is right."""
    import jax

    rng = np.random.default_rng(0)
    rows = rng.normal(size=(_ROWS[precision], 3)).astype(precision)
    matrix = rng.normal(size=(3, 3)).astype(precision)
    weights, values = (rng.normal(size=shape).astype(precision) for shape in ((600, 9, 20), (600, 20, 8)))
    small = np.linspace(-0.95, 0.95, 1001, dtype=precision)
    with jax.enable_x64(precision == "float64"):
        found = jax.jit(_results, compiler_options=options)(matrix, rows, weights, values, small)
    exact = (array.astype(np.float64) for array in (matrix, rows, weights, values, small))
    wrong = []
    for name, expected in _expected(*exact).items():
        off = np.abs(np.asarray(found[name], np.float64) - expected).max()
        if not off <= _TOLERANCE[precision] * np.abs(expected).max():
            wrong.append(name)
    return wrong


def _results(matrix, rows, weights, values, small):
    """What potentials are made of: squares of transformed vectors and their derivative, densities, sums, functions."""
    import jax
    import jax.numpy as jnp

    def squares(matrix, rows):
        return jax.vmap(lambda row: jnp.sum((matrix @ row) ** 2))(rows)

    return {
        "sums of squares": squares(matrix, rows),
        "their derivative": jax.grad(lambda rows: jnp.sum(squares(matrix.T, rows)))(
            rows
        ),  # shares nothing, or nothing is fused
        "batched products": jnp.sum(jnp.einsum("nmk,nkc->nmc", weights, values) ** 2, axis=1),
        "sums over many": jnp.mean(rows**2, axis=0),
        "functions": jnp.stack([getattr(jnp, name)(small) for name in _FUNCTIONS]),
    }


_FUNCTIONS = ("sin", "cos", "arctan", "arccos", "exp", "expm1", "log1p", "tanh")


def _expected(matrix, rows, weights, values, small) -> dict[str, np.ndarray]:
    """The same by NumPy in float64."""
    density = weights @ values
    return {
        "sums of squares": np.sum((rows @ matrix.T) ** 2, axis=1),
        "their derivative": 2 * rows @ matrix @ matrix.T,
        "batched products": np.sum(density**2, axis=1),
        "sums over many": np.mean(rows**2, axis=0),
        "functions": np.stack([getattr(np, name)(small) for name in _FUNCTIONS]),
    }


def platform_name() -> str:
    """System, device, versions of mlff, jax and jaxlib: what decides about the bits of a result."""
    import jax

    set_up_process()
    device = jax.devices()[0]
    versions = ", ".join(f"{name} {version(name)}" for name in ("mlff", "jax", "jaxlib"))
    return f"{platform.platform()}, {device.platform} {device.device_kind}, {versions}"
