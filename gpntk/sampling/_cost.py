"""What a function of arrays costs, in numbers held and in arithmetic, before it is run."""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax

# Numbers (not bytes) that a batch may hold at once: 256 MiB in single precision.
BUDGET = 2**26


def affordable(numbers_per_item: int, items: int) -> int:
    """How many of `items` fit into the budget at the same time, at least one."""
    return max(1, min(items, BUDGET // max(1, numbers_per_item)))


def fits(numbers: int) -> bool:
    """Whether so many numbers may be held at once."""
    return numbers <= BUDGET


def working_set(function: Callable, *arguments) -> int:
    """An upper bound on the numbers that a call holds at once: all of its intermediate values together."""
    jaxpr = eqx.filter_make_jaxpr(function)(*arguments)[0].jaxpr
    return sum(math.prod(v.aval.shape) for equation in jaxpr.eqns for v in equation.outvars)


def flops(function: Callable, *arguments) -> float:
    """Floating point operations of a call, by XLA's count; nothing is compiled or run."""
    arrays, static = eqx.partition(arguments, eqx.is_array)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), arrays)
    lowered = jax.jit(lambda arrays: function(*eqx.combine(arrays, static))).lower(shapes)
    analysis: Any = lowered.cost_analysis()
    return float(analysis["flops"])
