"""How far training has come along one eigenvector of the training kernel.

After training, the output is `Theta(x, X) r(B) y` with the Gram matrix `B`. The *response* `r` is a function of
one eigenvalue: `1/b` at convergence, something smaller before.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

# 1/(k+1)!: at |x| <= 1/2 the first term left out is below 1e-19.
_SERIES_RADIUS = 0.5
_SERIES = tuple((-1) ** k / math.factorial(k + 1) for k in range(15))


def phi(x: Float[Array, "..."]) -> Float[Array, "..."]:
    r"""$\varphi(x) = (1 - e^{-x})/x$ with $\varphi(0) = 1$, accurate to rounding, and so is its derivative.

    >>> [float(phi(x)) for x in (0.0, jnp.inf)]
    [1.0, 0.0]
    """
    x = jnp.asarray(x)
    small = jnp.abs(x) < _SERIES_RADIUS
    # Both branches see arguments that suit them: gradients of the branch not taken must be finite.
    series = jnp.polyval(jnp.asarray(_SERIES[::-1], x.dtype), jnp.where(small, x, 0.0))
    away = jnp.where(small, 1.0, x)
    return jnp.where(small, series, -jnp.expm1(-away) / away)


def _log_ratio(x):
    """`-log(1 - x)/x` for x < 1, one at zero, accurate to rounding, and so is its derivative."""
    small = jnp.abs(x) < 0.1
    coefficients = [1.0 / (k + 1) for k in range(18)]
    series = jnp.polyval(jnp.asarray(coefficients[::-1], x.dtype), jnp.where(small, x, 0.0))
    away = jnp.where(small, 0.5, x)
    return jnp.where(small, series, -jnp.log1p(-away) / away)


def flow_response(eigenvalue: Float[Array, "..."], clock: Float[Array, "..."]) -> Float[Array, "..."]:
    r"""$(1 - e^{-b s})/b$ for eigenvalue $b$ and clock $s = \eta t$, infinite $s$ included.

    Zero and slightly negative eigenvalues are fine at finite clock: the response at zero is $s$.
    """
    # At the largest number exp(-b s) is zero already, and derivatives are free of 0 * inf.
    clock = jnp.minimum(clock, jnp.finfo(eigenvalue.dtype).max)
    x = eigenvalue * clock
    late = x > 1.0
    early = jnp.where(late, 0.0, clock) * phi(jnp.where(late, 0.0, x))
    divisor = jnp.where(late, eigenvalue, 1.0)
    return jnp.where(late, -jnp.expm1(-jnp.where(late, x, 1.0)) / divisor, early)


def flow_scale(eigenvalue: Float[Array, "..."], clock: Float[Array, "..."]) -> Float[Array, "..."]:
    """The change of the eigenvalue over which `flow_response` changes by a factor of order one."""
    return jnp.maximum(jnp.abs(eigenvalue), 1.0 / clock)


class Steps(NamedTuple):
    """The clock of gradient descent: how many steps (a whole number or infinity), and their size."""

    count: Float[Array, "..."]
    size: Float[Array, "..."]


def descent_response(eigenvalue: Float[Array, "..."], clock: Steps) -> Float[Array, "..."]:
    r"""$(1 - (1 - \eta b)^k)/b$ for eigenvalue $b$ after $k$ steps of size $\eta$; it is $k\eta$ at zero.

    Infinitely many steps are allowed where $0 < \eta b < 2$.
    """
    steps = jnp.minimum(clock.count, jnp.finfo(eigenvalue.dtype).max)
    x = clock.size * eigenvalue
    # Below one, (1 - x)^k = exp(-rate) and its complement is a phi; above, powers of a negative number alternate.
    below = x < 1.0
    inside = jnp.where(below, x, 0.0)
    rate_per_eigenvalue = steps * _log_ratio(inside)
    rate = rate_per_eigenvalue * inside
    late = rate > 1.0
    early = jnp.where(late, 0.0, rate_per_eigenvalue) * phi(jnp.where(late, 0.0, rate))
    monotone = jnp.where(late, -jnp.expm1(-jnp.where(late, rate, 1.0)) / jnp.where(late, inside, 1.0), early)
    outside = jnp.where(below, 1.0, x)
    sign = jnp.where(steps % 2 == 0, 1.0, -1.0)
    alternating = (1.0 - sign * jnp.power(outside - 1.0, steps)) / outside
    return clock.size * jnp.where(below, monotone, alternating)


def descent_scale(eigenvalue: Float[Array, "..."], clock: Steps) -> Float[Array, "..."]:
    """The change of the eigenvalue over which `descent_response` changes by a factor of order one."""
    x = jnp.abs(clock.size * eigenvalue)
    return (jnp.minimum(x, jnp.abs(2.0 - x)) + 1.0 / clock.count) / clock.size


class Response(NamedTuple):
    """A function of (eigenvalue, clock), elementwise, and the scale in the eigenvalue on which it changes.

    `earlier(clock, fraction)` is the clock when that fraction of the training was done.
    """

    value: Callable
    scale: Callable
    earlier: Callable


FLOW = Response(flow_response, flow_scale, lambda clock, fraction: clock * fraction)
DESCENT = Response(
    descent_response, descent_scale, lambda clock, fraction: Steps(jnp.floor(clock.count * fraction), clock.size)
)
