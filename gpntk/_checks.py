"""Rejection of bad input, one sentence pattern for every parameter.

Every message names the parameter, what is allowed and the value received. Checks act on concrete
values only: under `jit`, `grad` or `vmap` a traced value passes through, because its value is not
known; its shape is still checked.
"""

import math
import numbers
from collections.abc import Iterable, Sequence
from types import UnionType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

_LARGEST_INTEGER = 2**31 - 1


def is_traced(*values: Any) -> bool:
    """Whether any leaf of `values` is a tracer, so that its value cannot be looked at."""
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(values))


def real_number(name: str, value: Any, *, minimum: float, strict: bool = False, infinite: bool = False) -> float:
    """`value` as a float, at least `minimum` (above it if `strict`), infinite only if allowed."""
    relation = ">" if strict else ">="
    allowed = f"a {'' if infinite else 'finite '}real number {relation} {minimum:g}"
    is_number = isinstance(value, numbers.Real) or (getattr(value, "shape", None) == () and is_real(value.dtype))
    if not is_number or isinstance(value, bool | np.bool_):
        raise TypeError(f"`{name}` must be {allowed}, got {value!r}.")
    number = float(value)
    below = number <= minimum if strict else number < minimum
    if math.isnan(number) or below or (math.isinf(number) and not infinite):
        raise ValueError(f"`{name}` must be {allowed}, got {number:g}.")
    return number


def integer(name: str, value: Any, *, minimum: int) -> int:
    """`value` as an int, at least `minimum`; above what JAX counts to, arrays could not be made of it."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise TypeError(f"`{name}` must be an integer >= {minimum}, got {value!r}.")
    number = int(value)
    if not minimum <= number <= _LARGEST_INTEGER:
        limit = f" and <= {_LARGEST_INTEGER}" if number > minimum else ""
        raise ValueError(f"`{name}` must be an integer >= {minimum}{limit}, got {number}.")
    return number


def sequence(name: str, value: Any) -> list:
    """`value` as a list, which must be a sequence or a vector: no string, and nothing without an order."""
    is_vector = getattr(value, "ndim", None) == 1
    if isinstance(value, str | bytes) or not (isinstance(value, Sequence) or is_vector):
        raise TypeError(f"`{name}` must be a sequence of numbers, got {value!r}.")
    return list(value)


def boolean(name: str, value: Any) -> bool:
    """`value`, which must be True or False."""
    return bool(instance(name, value, (bool, np.bool_), "True or False"))


def option(name: str, value: Any, allowed: Iterable[str]) -> str:
    """`value`, which must be one of the `allowed` strings."""
    allowed = tuple(allowed)
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, allowed))}, got {value!r}.")
    return value


def instance(name: str, value: Any, kind: type | UnionType | tuple[type, ...], wanted: str) -> Any:
    """`value`, which must be an instance of `kind`, described as `wanted` in the message."""
    if not isinstance(value, kind):
        hint = f" Did you mean {value.__name__}()?" if isinstance(value, type) else ""
        raise TypeError(f"`{name}` must be {wanted}, got {value!r}.{hint}")
    return value


def key(name: str, value: Any) -> Any:
    """`value`, which must be one JAX random key, of the new style or of the old."""
    is_new = isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
    is_old = getattr(value, "dtype", None) == np.uint32 and getattr(value, "ndim", 0) == 1
    if not is_old and not (is_new and value.ndim == 0):
        raise TypeError(f"`{name}` must be a JAX random key such as jax.random.key(0), got {value!r}.")
    return value


def real_array(name: str, value: Any, dtype: Any = None) -> Any:
    """`value` as an array of finite real numbers, NumPy's unless it is JAX's already.

    Converted to `dtype`, if given, in which the numbers must be finite too. A traced value is only converted.

    Raises:
        ValueError: if it is not an array of numbers, or has NaN, infinity or a number too large for `dtype`.
    """
    value = as_array(name, value)
    if not is_real(value.dtype):
        raise ValueError(f"`{name}` must be an array of real numbers, got dtype {value.dtype}.")
    with np.errstate(over="ignore"):
        value = value if dtype is None else value.astype(dtype)
    if not is_traced(value) and not _is_finite(value):
        too_large = f"infinity or a value too large for dtype({str(value.dtype)!r})"
        raise ValueError(f"`{name}` must be finite, got {'NaN' if np.isnan(value).any() else too_large}.")
    return value


def _is_finite(value: Any) -> bool:
    """Whether all entries are finite, found out where they are: the way from an accelerator is slow."""
    if not isinstance(value, jax.Array) or all(device.platform == "cpu" for device in value.devices()):
        return bool(np.isfinite(value).all())
    with jax.ensure_compile_time_eval():  # of a known array while others are traced
        return bool(all_finite(value))


@jax.jit
def all_finite(values: Any) -> Array:
    """Whether all entries of an array of JAX are finite, in one pass on its device."""
    return jnp.isfinite(values).all()


def floating_array(name: str, value: Any) -> Float[Array, "..."]:
    """`value` as an array of finite floating point numbers of JAX, in its own precision where it has one.

    Raises:
        ValueError: as `real_array`.
    """
    value = jax_array(name, value)
    return value if jnp.issubdtype(value.dtype, jnp.floating) else value.astype(float)


def jax_array(name: str, value: Any) -> Array:
    """`value` as an array of finite real numbers of JAX, in the precision that is on.

    Raises:
        ValueError: as `real_array`.
    """
    value = real_array(name, value)
    return jnp.asarray(real_array(name, value, jax.dtypes.canonicalize_dtype(value.dtype)))


def as_array(name: str, value: Any) -> Any:
    """`value` as an array of any kind, NumPy's unless it is JAX's already.

    Raises:
        ValueError: if it is made of sequences of different lengths, or of what NumPy has not, such as random keys.
    """
    try:
        value = value if isinstance(value, jax.Array) else np.asarray(value)
    except ValueError:
        raise ValueError(f"`{name}` must be an array, got rows of different lengths.") from None
    if jnp.issubdtype(value.dtype, jax.dtypes.extended):
        raise ValueError(f"`{name}` must be an array of numbers, got one of dtype {value.dtype}.")
    return value


def is_real(dtype: Any) -> bool:
    """Whether it is a type of real numbers, booleans among them."""
    # NumPy's kinds do not know JAX's bfloat16, jax.numpy's do.
    return any(jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_))


def inputs(name: str, x: Any, n_features: int | None = None, owner: str = "network") -> Float[Array, "N D"]:
    """`x` as a floating point matrix of inputs, one row an input, in scikit-learn's wording.

    Raises:
        ValueError: if `x` is not a non-empty numeric 2-D array of finite values, or has a number of
            columns other than `n_features`.
    """
    x = as_array(name, x)
    if not is_real(x.dtype):
        raise ValueError(f"Input {name} must be an array of real numbers, got dtype {x.dtype}.")
    if x.ndim != 2:
        remedy = "`x[:, None]` for a single feature, `x[None, :]` for a single sample"
        if x.ndim > 2:
            remedy = "flatten images with `x.reshape(len(x), -1)`"
        raise ValueError(
            f"Expected 2D array, got {x.ndim}D array instead for {name}: shape {x.shape}. "
            f"Inputs are (n_samples, n_features); {remedy}."
        )
    for size, kind in zip(x.shape, ("sample(s)", "feature(s)"), strict=True):
        if size == 0:
            raise ValueError(
                f"Found array with 0 {kind} (shape={x.shape}) for {name} while a minimum of 1 is required."
            )
    if n_features is not None and x.shape[1] != n_features:
        raise ValueError(
            f"{name} has {x.shape[1]} features, but the {owner} expects {n_features} features as input."
        )
    if not isinstance(x, jax.Array) and x.dtype == np.longdouble:
        x = x.astype(np.float64)  # JAX has nothing wider
    # Converted first: a number may be too large for the precision that is on.
    with np.errstate(over="ignore"):
        x = jnp.asarray(x, None if jnp.issubdtype(x.dtype, jnp.floating) else float)
    if not is_traced(x) and not _is_finite(x):
        too_large = f"infinity or a value too large for dtype({str(x.dtype)!r})"
        raise ValueError(f"Input {name} contains {'NaN' if np.isnan(x).any() else too_large}.")
    return x


def equal_columns(**arrays: Float[Array | np.ndarray, "_ _"]) -> None:
    """Two matrices of inputs, by name, must have as many columns."""
    (name1, x1), (name2, x2) = arrays.items()
    if x1.shape[1] != x2.shape[1]:
        raise ValueError(f"{name2} has {x2.shape[1]} features, but {name1} has {x1.shape[1]}.")
