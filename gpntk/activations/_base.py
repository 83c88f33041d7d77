"""What every activation provides, and the numerically safe pieces that closed forms share."""

import abc
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from gpntk._checks import is_traced, real_array, real_number

Features = Any
"""What one input contributes to a dual: a pytree of arrays whose leading axes are those of its variance."""


class AbstractActivation(eqx.Module):
    r"""An elementwise nonlinearity $\sigma$ together with its Gaussian moments.

    For $(u, v)$ jointly Gaussian with mean zero, variances $q_1, q_2$ and covariance $k$,

    - the *dual* is $E[\sigma(u)\sigma(v)]$,
    - the *dual derivative* is $E[\sigma'(u)\sigma'(v)]$, its derivative with respect to $k$.

    A new activation implements `__call__`, `features` and `pair`. The split is what makes Gram matrices
    cheap: `features` holds everything that depends on one input alone and is evaluated $N$ times, `pair`
    is evaluated $N^2$ times. Activations are never rescaled. Daniely, Frostig & Singer (2016),
    arXiv:1602.05897, Section 4, define dual activations.
    """

    @abc.abstractmethod
    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The nonlinearity, elementwise."""

    @abc.abstractmethod
    def features(self, variance: Float[Array, "..."]) -> Features:
        """What an input of preactivation variance `variance` contributes to the duals of all its pairs.

        Leaves have the shape of `variance`, possibly with further axes behind it.
        """

    @abc.abstractmethod
    def pair(
        self, covariance: Float[Array, "..."], features1: Features, features2: Features
    ) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """Dual and dual derivative of pairs, by broadcasting `covariance` against both features."""

    def dual(
        self, k: Float[ArrayLike, "..."], q1: Float[ArrayLike, "..."], q2: Float[ArrayLike, "..."]
    ) -> Float[Array, "..."]:
        r"""$E[\sigma(u)\sigma(v)]$ for covariance `k` and variances `q1`, `q2`, by broadcasting.

        Raises:
            ValueError: if a variance is negative or not finite, `k` larger than the variances allow, or if the
                moments diverge.
        """
        return self._from_moments(k, q1, q2)[0]

    def dual_derivative(
        self, k: Float[ArrayLike, "..."], q1: Float[ArrayLike, "..."], q2: Float[ArrayLike, "..."]
    ) -> Float[Array, "..."]:
        r"""$E[\sigma'(u)\sigma'(v)]$ for covariance `k` and variances `q1`, `q2`, by broadcasting.

        Raises:
            ValueError: if a variance is negative or not finite, `k` larger than the variances allow, or if the
                moments diverge.
        """
        return self._from_moments(k, q1, q2)[1]

    def moments(self, variance: Float[Array, "..."]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        r"""$E[\sigma(u)^2]$ and $E[\sigma'(u)^2]$ for one Gaussian of the given variance."""
        features = self.features(variance)
        return self.pair(variance, features, features)

    def _from_moments(self, k, q1, q2):
        for name, value in (("k", k), ("q1", q1), ("q2", q2)):
            real_array(name, value)
        k, q1, q2 = (np.asarray(a) if isinstance(a, list | tuple) else a for a in (k, q1, q2))
        traced = is_traced(k, q1, q2)
        if not traced:
            _check_covariance(k, q1, q2)
        dtype = jnp.result_type(float, k, q1, q2) if not _floating(k, q1, q2) else jnp.result_type(k, q1, q2)
        k, q1, q2 = jnp.broadcast_arrays(*(jnp.asarray(a, dtype) for a in (k, q1, q2)))
        if k.size == 0:
            return k, k  # reductions over nothing have no values
        moments = self.pair(k, self.features(q1), self.features(q2))
        if not traced and not is_traced(moments) and not all(np.isfinite(m).all() for m in moments):
            raise ValueError(
                f"The Gaussian moments of {self!r} are not finite for these `k`, `q1` and `q2`: they diverge, or "
                f"overflow {dtype}."
            )
        return moments


def _check_covariance(k, q1, q2) -> None:
    k, q1, q2 = (np.asarray(a, np.float64) for a in (k, q1, q2))
    for name, q in (("q1", q1), ("q2", q2)):
        valid = (q >= 0) & np.isfinite(q)
        if not valid.all():
            raise ValueError(f"`{name}` must be a finite variance >= 0, got {q[~valid][0]:g}.")
    # Single precision rounds a covariance by far less than 1e-4 of its limit.
    allowed = np.abs(k) <= (1 + 1e-4) * np.sqrt(q1) * np.sqrt(q2)
    if not allowed.all():
        k, q1, q2 = (a[~allowed][0] for a in np.broadcast_arrays(k, q1, q2))
        raise ValueError(f"`k` must be at most sqrt(q1 * q2) in size, got {k:g} for q1 = {q1:g} and q2 = {q2:g}.")


def coefficient(name: str, value: Any) -> float:
    """`value` as a finite float whose square is finite too.

    Raises:
        ValueError: naming the parameter, if it is not of size 1e150 or below.
        TypeError: if it is not a real number.
    """
    number = real_number(name, value, minimum=-math.inf)
    if abs(number) > 1e150:
        raise ValueError(f"`{name}` must be a real number of size at most 1e150, got {number:g}.")
    return number


def _floating(*values) -> bool:
    return any(hasattr(v, "dtype") and jnp.issubdtype(v.dtype, jnp.floating) for v in values)


def derive_from(value, plain):
    """`value`, differentiated as if it were `plain`.

    The two are equal in exact arithmetic. `value` is the form that survives rounding at coincident
    inputs, `plain` the one whose chain rule does not divide by zero there.
    """
    # Not by `jax.custom_jvp`, whose rule JAX forgets in second derivatives of a loop.
    change = plain - jax.lax.stop_gradient(plain)
    # A zero with a derivative; `plain` may overflow where `value` does not.
    return jax.lax.stop_gradient(value) + jnp.where(jnp.isfinite(plain), change, 0.0)


def root_and_inverse(x: Float[Array, "..."]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """The root of `x`, a variance as a rule, and its reciprocal; where `x` is 0, both are 0 and constant."""
    positive = x > 0
    root = jnp.sqrt(jnp.where(positive, x, 1.0))
    return jnp.where(positive, root, 0.0), jnp.where(positive, 1.0 / root, 0.0)


def coincidence_tolerance(dtype) -> float:
    """`1 - |rho|` below which a pair counts as coincident: `4 sqrt(eps)` in the angle."""
    return 8.0 * float(jnp.finfo(dtype).eps)


def snap(distance: Float[Array, "..."]) -> Float[Array, "..."]:
    """A distance like `1 - rho`, set to exactly 0 where only rounding keeps it from 0; its slope stays 1."""
    exact = jnp.where(distance > coincidence_tolerance(distance.dtype), distance, 0.0)
    return derive_from(exact, distance)


def one_minus_square(rho: Float[Array, "..."]) -> Float[Array, "..."]:
    """`1 - rho^2`, exactly 0 at coincidence, with slope `-2 rho` everywhere."""
    return snap(1.0 - jnp.abs(rho)) * (1.0 + jnp.abs(rho))
