r"""Four-input moments of the error function, without integrals over four inputs.

$\mathrm{erf}(b z) = E[\mathrm{sgn}(z + \epsilon)]$ with $\epsilon \sim N(0, 1/2b^2)$, so that products of error
functions have the moments of signs of Gaussians of covariance $K + 1/2b^2$, every factor with a noise of its own,
also where two belong to one input. By Price's theorem the derivative of such a moment in a correlation fixes two
of the signs' arguments at 0,

$$\partial_{r_{12}} E[\mathrm{sgn}_1\mathrm{sgn}_2\mathrm{sgn}_3\mathrm{sgn}_4] =
  \frac{4}{\pi^2\sqrt{1 - r_{12}^2}} \arcsin r_{34|12},$$

with a partial correlation (Plackett 1954, "A reduction formula for normal multivariate integrals"). Moments with
two slopes are this in closed form; with four slopes they are Gaussian integrals; the covariance of two products of
values is its integral while the correlations between both products grow from 0.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_NODES_AT_ONCE = 16
_DIGITS = 1e-14
_MOST_NODES = 1024


def erf_covariances(
    a: float, b: float, c: float, kernel: Float[Array, "N N"], pairs: tuple[np.ndarray, np.ndarray]
) -> tuple[Float[Array, "M M"], Float[Array, "M M"], Float[Array, "M M"]]:
    r"""Covariances of products of $\sigma = a\,\mathrm{erf}(b z) + c$ and of its slopes, $z \sim N(0, K)$.

    Args:
        a: scale of the values.
        b: scale of the arguments.
        c: offset.
        kernel: covariance of the preactivations; it may be singular.
        pairs: first and second inputs of M pairs.

    Returns:
        Covariances of $\sigma_1\sigma_2$ with $\sigma_3\sigma_4$, of $\sigma_1\sigma_2$ with
        $\sigma_3'\sigma_4'$, and of $\sigma_1'\sigma_2'$ with $\sigma_3'\sigma_4'$, all to rounding.
    """
    noise = 0.5 / b**2
    # Correlations come no closer to 1 than the noise allows, for two factors of one input.
    distance = noise / (noise + float(np.max(np.diagonal(kernel), initial=0.0)))
    places, weights = _nodes(_n_nodes(distance))
    return _covariances(a, c, noise, jnp.asarray(kernel), *pairs, jnp.asarray(places), jnp.asarray(weights))


def _n_nodes(distance: float) -> int:
    """Gauss-Legendre nodes for rounding errors: the integrand is singular half of `distance` beyond the end."""
    # In the angle whose sine is the place on the path, singularities are complex; an ellipse that they allow.
    nearest = 1.0 + (4.0 / math.pi) * math.acosh(1.0 + 0.5 * distance) * 1j
    rate = math.log(abs(nearest + (nearest**2 - 1.0) ** 0.5))
    needed = min(-math.log(_DIGITS) / (2.0 * rate), _MOST_NODES)
    return _NODES_AT_ONCE * math.ceil(needed / _NODES_AT_ONCE)


@functools.lru_cache(maxsize=8)
def _nodes(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Places on the path from 0 to 1 and their weights."""
    points, weights = np.polynomial.legendre.leggauss(n)
    angle = 0.25 * math.pi * (points + 1.0)
    return np.sin(angle), 0.25 * math.pi * weights * np.cos(angle)


@jax.jit
def _covariances(a, c, noise, kernel, first, second, places, weights):
    variance = jnp.diagonal(kernel) + noise
    inverse = 1.0 / jnp.sqrt(variance)
    correlation = kernel * inverse[:, None] * inverse
    # Of the four factors of a pair of pairs: shares of the noise, and correlations, as matrices on pairs.
    shares = [(noise / variance)[i] for i in (first, second)]
    n1, n2, n3, n4 = (*(share[:, None] for share in shares), *(share[None, :] for share in shares))
    within = correlation[first, second]
    r12, r34 = jnp.broadcast_arrays(within[:, None], within[None, :])
    r13, r14, r23, r24 = (correlation[i][:, j] for i in (first, second) for j in (first, second))

    def add(total, node):
        place, weight = node
        s13, s14, s23, s24 = (place * r for r in (r13, r14, r23, r24))
        # One factor of each pair is held at 0; the four choices.
        slopes = (
            r13 * _angle(_given(s13, r12, s14, s23, r34, s24, n1, n3, n2, n4))
            + r14 * _angle(_given(s14, r12, s13, s24, r34, s23, n1, n4, n2, n3))
            + r23 * _angle(_given(s23, r12, s24, s13, r34, s14, n2, n3, n1, n4))
            + r24 * _angle(_given(s24, r12, s23, s14, r34, s13, n2, n4, n1, n3))
        )
        return total + weight * slopes, None

    signs, _ = jax.lax.scan(add, jnp.zeros_like(r12), (places, weights))
    scale = (inverse[first] * inverse[second]) * (2.0 / math.pi)
    offset = sum(jnp.arcsin(r) for r in (r13, r14, r23, r24))
    values = a**4 * (4.0 / math.pi**2) * signs + (a * c) ** 2 * (2.0 / math.pi) * offset
    held = _given(r34, r13, r23, r14, r24, r12, n3, n4, n1, n2)
    apart = 1.0 / jnp.sqrt(held.sine_squared)
    mixed = a**4 * (2.0 / math.pi) * scale * (_angle(held) - apart * jnp.arcsin(r12))
    last = jnp.maximum(held.variance_l - held.covariance**2 / held.variance_k, n2)
    together = apart / jnp.sqrt(held.variance_k * last)
    own = 1.0 / jnp.sqrt(_sine_squared(within, *shares))
    slopes = a**4 * scale[:, None] * scale * (together - own[:, None] * own)
    return values, mixed, slopes


class _Conditional(NamedTuple):
    r"""Covariance of k and l given i and j, and $1 - r_{ij}^2$."""

    covariance: Float[Array, "M M"]
    variance_k: Float[Array, "M M"]
    variance_l: Float[Array, "M M"]
    sine_squared: Float[Array, "M M"]


def _given(rij, rik, ril, rjk, rjl, rkl, ni, nj, nk, nl) -> _Conditional:
    """By elimination, first of i and then of j, which loses the fewest digits where little but noise is left.

    The noise n of a factor is a share of its variance that nothing else explains: rounding must not deny it.
    """
    sine_squared = _sine_squared(rij, ni, nj)
    jk, jl = rjk - rij * rik, rjl - rij * ril
    return _Conditional(
        rkl - rik * ril - jk * jl / sine_squared,
        jnp.maximum(_sine_squared(rik, ni, nk) - jk**2 / sine_squared, nk),
        jnp.maximum(_sine_squared(ril, ni, nl) - jl**2 / sine_squared, nl),
        sine_squared,
    )


def _sine_squared(r, noise1, noise2):
    return jnp.maximum(1.0 - r**2, noise1 + noise2 - noise1 * noise2)


def _angle(given: _Conditional):
    """The angle between k and l given i and j, over the sine between those."""
    correlation = given.covariance / jnp.sqrt(given.variance_k * given.variance_l)
    return jnp.arcsin(jnp.clip(correlation, -1.0, 1.0)) / jnp.sqrt(given.sine_squared)
