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
    # Correlations of the four factors of each pair of pairs, as matrices on pairs.
    within = correlation[first, second]
    r12, r34 = jnp.broadcast_arrays(within[:, None], within[None, :])
    r13, r14, r23, r24 = (correlation[i][:, j] for i in (first, second) for j in (first, second))

    def add(total, node):
        place, weight = node
        s13, s14, s23, s24 = (place * r for r in (r13, r14, r23, r24))
        # Of each pair one factor is held at 0; the four choices.
        slopes = (
            r13 * _angle(s13, s24, r12, s14, s23, r34)
            + r14 * _angle(s14, s23, r12, s13, s24, r34)
            + r23 * _angle(s23, s14, r12, s24, s13, r34)
            + r24 * _angle(s24, s13, r12, s23, s14, r34)
        )
        return total + weight * slopes, None

    signs, _ = jax.lax.scan(add, jnp.zeros_like(r12), (places, weights))
    scale = (inverse[first] * inverse[second]) * (2.0 / math.pi)
    offset = sum(jnp.arcsin(r) for r in (r13, r14, r23, r24))
    values = a**4 * (4.0 / math.pi**2) * signs + (a * c) ** 2 * (2.0 / math.pi) * offset
    held = 1.0 - r34**2
    covariance, variances = _conditional(r34, r12, r13, r14, r23, r24)
    angles = jnp.arcsin(covariance / jnp.sqrt(variances)) - jnp.arcsin(r12)
    mixed = a**4 * (2.0 / math.pi) * scale * angles / jnp.sqrt(held)
    determinant = (variances - covariance**2) / held
    apart = 1.0 / jnp.sqrt((1.0 - r12**2) * held)
    slopes = a**4 * scale[:, None] * scale * (1.0 / jnp.sqrt(determinant) - apart)
    return values, mixed, slopes


def _angle(rij, rkl, rki, ril, rkj, rjl):
    """The angle between k and l given i and j, over the sine between those."""
    covariance, variances = _conditional(rij, rkl, rki, rkj, ril, rjl)
    return jnp.arcsin(covariance / jnp.sqrt(variances)) / jnp.sqrt(1.0 - rij**2)


def _conditional(rij, rkl, rki, rkj, rli, rlj):
    r"""Covariance and product of the variances of k and l given i and j, all times $1 - r_{ij}^2$."""
    held = 1.0 - rij**2
    covariance = held * rkl - (rki * rli + rkj * rlj) + rij * (rki * rlj + rkj * rli)
    variance_k = held - rki**2 - rkj**2 + 2.0 * rij * rki * rkj
    variance_l = held - rli**2 - rlj**2 + 2.0 * rij * rli * rlj
    return covariance, variance_k * variance_l
