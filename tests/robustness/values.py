"""Values that somebody might pass, and for each kind of parameter which of them it must refuse."""

import datetime
import fractions
import math
import numbers
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.sparse
from numpyro.distributions import HalfNormal

import gpntk

_ARRAYS = {
    "array (0,)": np.zeros(0),
    "array (0, 2)": np.zeros((0, 2)),
    "array (3, 0)": np.zeros((3, 0)),
    "array (1,)": np.ones(1),
    "array (3,)": np.ones(3),
    "array (1, 1)": np.ones((1, 1)),
    "array (3, 1)": np.ones((3, 1)),
    "array (3, 2)": np.ones((3, 2)),
    "array (3, 3)": np.ones((3, 3)),
    "array (2, 3, 2)": np.ones((2, 3, 2)),
    "array (3, 3, 3, 3)": np.ones((3, 3, 3, 3)),
    "array of zeros": np.zeros((3, 2)),
    "array of negative numbers": -np.ones((3, 2)),
    "vector of NaN": np.full(3, np.nan),
    "array of NaN": np.full((3, 2), np.nan),
    "array with one infinity": np.where(np.arange(6).reshape(3, 2) == 3, np.inf, 1.0),
    "array of huge numbers": np.full((3, 2), 1e300),
    "array of tiny numbers": np.full((3, 2), 1e-300),
    "complex array": np.ones((3, 2)) + 1j,
    "complex vector": np.ones(3) * 1j,
    "array of objects": np.full((3, 2), None),
    "array of strings": np.full((3, 2), "a"),
    "vector of strings": np.array(["a", "b", "c"]),
    "array of dates": np.zeros((3, 2), "M8[s]"),
    "structured array": np.zeros(3, [("a", float), ("b", float)]),
    "array of integers": np.arange(6).reshape(3, 2),
    "vector of integers": np.arange(3),
    "array of booleans": np.ones((3, 2), bool),
    "array of float16": np.ones((3, 2), np.float16),
    "JAX array": jnp.ones((3, 2)),
    "JAX vector": jnp.ones(3),
    "0-d array": np.asarray(0.5),
    "0-d JAX array": jnp.asarray(2),
    "0-d array of a string": np.asarray("a"),
    "0-d array of an object": np.asarray(None),
}
_SCALARS = {
    "True": True,
    "False": False,
    "np.True_": np.True_,
    "0": 0,
    "1": 1,
    "2": 2,
    "-1": -1,
    "10**30": 10**30,
    "2**63": 2**63,
    "-10**30": -(10**30),
    "0.0": 0.0,
    "0.5": 0.5,
    "1.5": 1.5,
    "-0.5": -0.5,
    "1e-320": 1e-320,
    "1e300": 1e300,
    "-1e300": -1e300,
    "NaN": math.nan,
    "infinity": math.inf,
    "-infinity": -math.inf,
    "1j": 1j,
    "fraction": fractions.Fraction(1, 3),
    "np.float32": np.float32(0.5),
    "np.int64": np.int64(1),
    "np.float64 NaN": np.float64(np.nan),
}
_OTHERS = {
    "None": None,
    "ellipsis": ...,
    "string": "a",
    "empty string": "",
    "digits": "3",
    "bytes": b"a",
    "empty list": [],
    "empty tuple": (),
    "empty dictionary": {},
    "dictionary": {"a": 1.0},
    "set": {1.0, 2.0},
    "list of integers": [1, 2],
    "tuple of floats": (0.5, 1.0),
    "tuple of zeros": (0, 0, 0),
    "list of None": [None, None],
    "list of strings": ["a", "b"],
    "nested list": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]],
    "ragged list": [[1.0, 2.0], [3.0]],
    "list of empty lists": [[], []],
    "sparse matrix": scipy.sparse.csr_matrix(np.ones((3, 2))),
    "range": range(3),
    "iterator": iter("ab"),
    "object": object(),
    "class": int,
    "module": np,
    "function": lambda x: x,
    "function of nothing": lambda: None,
    "path": pathlib.Path("nowhere"),
    "date": datetime.date(2020, 1, 1),
    "random key": jax.random.key(0),
    "random keys": jax.random.split(jax.random.key(0), 2),
    "old random key": jax.random.PRNGKey(0),
    "network": gpntk.MLP(1),
    "network class": gpntk.MLP,
    "convolutional network": gpntk.CNN((4, 4, 1), 1),
    "activation": gpntk.Erf(),
    "activation class": gpntk.Erf,
    "kernel": gpntk.NNGP(gpntk.MLP(1)),
    "kernel class": gpntk.NTK,
    "group": gpntk.groups.FiniteGroup.cyclic(2),
    "optimiser": optax.sgd(0.1),
    "distribution": HalfNormal(),
}
VALUES = {**_SCALARS, **_ARRAYS, **_OTHERS}

Kind = Callable[[Any], bool]
"""Whether a value must be refused. What need not be must be refused by name too, or give finite results."""

LARGEST = 2**31 - 1


def integer(minimum: int) -> Kind:
    return lambda v: (
        not isinstance(v, numbers.Integral) or isinstance(v, bool | np.bool_) or not minimum <= v <= LARGEST
    )


def real(minimum: float, *, strict: bool = False, infinite: bool = False) -> Kind:
    def wrong(value):
        kind = getattr(getattr(value, "dtype", None), "kind", "O")
        if getattr(value, "shape", None) == () and kind in "iuf":
            value = float(value)
        if not isinstance(value, numbers.Real) or isinstance(value, bool | np.bool_) or math.isnan(value):
            return True
        below = value <= minimum if strict else value < minimum
        return below or (math.isinf(value) and not infinite)

    return wrong


def option(*allowed: str) -> Kind:
    return lambda v: not isinstance(v, str) or v not in allowed


def instance(*kinds: type) -> Kind:
    return lambda v: not isinstance(v, kinds)


def optional(kind: Kind) -> Kind:
    return lambda v: v is not None and kind(v)


def either(*kinds: Kind) -> Kind:
    return lambda v: all(kind(v) for kind in kinds)


def boolean(value: Any) -> bool:
    return not isinstance(value, bool | np.bool_)


def anything(value: Any) -> bool:
    del value
    return False


def random_key(value: Any) -> bool:
    is_new = isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
    return not (is_new and value.shape == ()) and not (
        getattr(value, "dtype", None) == np.uint32 and getattr(value, "ndim", 0) == 1
    )


def array(
    *shapes: tuple[int | None, ...], dtype: type = np.float32, minimum: float = -math.inf, whole: bool = False
) -> Kind:
    """Arrays of finite numbers of one of the shapes, where `None` is any length but 0."""

    def fits(shape, wanted):
        return len(shape) == len(wanted) and all(
            n > 0 if w is None else n == w for n, w in zip(shape, wanted, strict=True)
        )

    def wrong(value):
        try:
            value = np.asarray(value)
        except (ValueError, TypeError):
            return True
        if value.dtype.kind not in ("biu" if whole else "biuf"):
            return True
        with np.errstate(over="ignore"):
            finite = np.isfinite(value.astype(dtype)).all()
        if not finite or (value < minimum).any():
            return True
        return bool(shapes) and not any(fits(value.shape, shape) for shape in shapes)

    return wrong
