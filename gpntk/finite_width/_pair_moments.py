r"""Four-fold Gaussian moments of pairs of inputs: the sources of everything that mean kernels need.

A layer moves three random kernel entries of a pair: the excess $e = -\tfrac12 (w_a \sigma_a - w_b \sigma_b)^2$
(see `_pair_maps`; $w_a^2 = 1/w_b^2$ is the ratio of the standard deviations in the next layer) and both variances
$\sigma_a^2, \sigma_b^2$. Their covariances are moments of two Gaussians, exact for piecewise linear activations,
and Hermite series of products of functions of one input, $E[g(z_a) h(z_b)] = \sum_k g_k h_k \rho^k$, for smooth
ones.
"""

import functools
import math
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gpntk._products import einsum
from gpntk.activations import AbstractActivation, Sign
from gpntk.activations._base import one_minus_square, root_and_inverse
from gpntk.activations._homogeneous import AbstractPiecewiseLinear
from gpntk.activations._series import power_sum
from gpntk.finite_width._input_moments import InputMoments
from gpntk.finite_width._pair_maps import Pairing

# Exact for the trigonometric polynomials below, of degree 4 over at most half a circle.
_POINTS, _WEIGHTS = np.polynomial.legendre.leggauss(16)


class PairSources(NamedTuple):
    """Covariances of one neuron's contributions for pairs (a, b), in the order excess, variance a, variance b."""

    values: Float[Array, "3 3 N1 N2"]
    """Of the three entries with each other."""
    slopes: Float[Array, "3 N1 N2"]
    r"""Of the three entries with $\sigma_a'\sigma_b'$."""
    mixed: Float[Array, "2 2 N1 N2"]
    r"""Moments $E[\sigma_p\sigma_q\,\sigma_a'\sigma_b']$, p and q each a or b."""


@functools.singledispatch
def pair_sources(
    activation: AbstractActivation,
    covariance: Float[Array, "N1 N2"],
    inputs1: InputMoments,
    inputs2: InputMoments,
    following: Pairing,
) -> PairSources:
    """Moments of pairs, by broadcasting.

    Args:
        activation: the nonlinearity.
        covariance: of the preactivations of pairs of inputs.
        inputs1: moments of the first input of each pair.
        inputs2: moments of the second.
        following: ratios of standard deviations in the next layer.
    """
    rho = covariance * (root_and_inverse(inputs1.variance)[1] * root_and_inverse(inputs2.variance)[1])
    rho = jnp.clip(rho, -1.0, 1.0)
    value, square, cube, slope, value_slope, square_slope = range(6)

    products1, products2 = cast(tuple[Array, Array], (inputs1.products, inputs2.products))

    def mean(function1, function2):
        return power_sum(products1[..., function1, :], products2[..., function2, :], rho)

    product, slopes = mean(value, value), mean(slope, slope)
    second1, second2 = inputs1.second, inputs2.second
    aa = jnp.broadcast_to(inputs1.values_values, rho.shape)
    bb = jnp.broadcast_to(inputs2.values_values, rho.shape)
    ab = mean(square, square)
    kk, ab = ab - product**2, ab - second1 * second2
    ka, kb = mean(cube, value) - product * second1, mean(value, cube) - product * second2
    values = jnp.stack([jnp.stack(row) for row in ([kk, ka, kb], [ka, aa, ab], [kb, ab, bb])])
    mixed_aa, mixed_ab, mixed_bb = (
        mean(square_slope, slope),
        mean(value_slope, value_slope),
        mean(slope, square_slope),
    )
    covariances = jnp.stack(
        [mixed_ab - product * slopes, mixed_aa - second1 * slopes, mixed_bb - second2 * slopes]
    )
    to_excess = _excess_from_covariance(following, rho)
    return PairSources(
        einsum("ij...,jk...,lk...->il...", to_excess, values, to_excess),
        einsum("ij...,j...->i...", to_excess, covariances),
        jnp.stack([jnp.stack([mixed_aa, mixed_ab]), jnp.stack([mixed_ab, mixed_bb])]),
    )


def _excess_from_covariance(following: Pairing, like):
    one, zero = jnp.ones_like(like), jnp.zeros_like(like)
    rows = ([one, -0.5 * following.ratio, -0.5 * following.inverse_ratio], [zero, one, zero], [zero, zero, one])
    return jnp.stack([jnp.stack([jnp.broadcast_to(x, like.shape) for x in row]) for row in rows])


@pair_sources.register
def _piecewise_linear_sources(activation: AbstractPiecewiseLinear, covariance, inputs1, inputs2, following):
    left, right = activation.slopes
    return _polar_sources(1, (-left, right), (left, right), covariance, inputs1, inputs2, following)


@pair_sources.register
def _sign_sources(activation: Sign, covariance, inputs1, inputs2, following):
    del activation
    return _polar_sources(0, (-1.0, 1.0), (0.0, 0.0), covariance, inputs1, inputs2, following)


def _polar_sources(degree, factors, slopes, covariance, inputs1, inputs2, following: Pairing) -> PairSources:
    r"""Sources for $\sigma(x) = f\,|x|^d$, d = 0 or 1, with a factor f (and a slope) on either side of 0.

    With $z_a = \sqrt{q_a}\, r \cos t$ and $z_b = \sqrt{q_b}\, r \cos(t - \phi)$ a moment is one of r times
    integrals over the sectors in which the signs are equal, of width $\pi - \phi$, and opposite, of width $\phi$:
    each comes twice, with the signs of both inputs changed.
    """
    scales = [root_and_inverse(inputs.variance) for inputs in (inputs1, inputs2)]
    rho = covariance * (scales[0][1] * scales[1][1])
    sine, _ = root_and_inverse(one_minus_square(rho))
    angle = jnp.arctan2(sine, jnp.clip(rho, -1.0, 1.0))
    # E[r^2] and E[r^4] of a two-dimensional standard Gaussian, for the moments of orders 2 and 4 in sigma.
    radial2, radial4 = (2.0, 8.0) if degree else (1.0, 1.0)
    weights = [root_and_inverse(ratio)[0] for ratio in following]

    # One row for each point of each sector: signs equal or not, place and weight in the sector, the factors of
    # both inputs, and the product of their slopes.
    rows = [
        (
            first == second,
            0.5 * (1.0 + point),
            weight,
            factors[first],
            factors[second],
            slopes[first] * slopes[second],
        )
        for first in (0, 1)
        for second in (0, 1)
        if factors[first] or factors[second]
        for point, weight in zip(_POINTS, _WEIGHTS, strict=True)
    ]

    @jax.checkpoint
    def add(sums, row):
        equal, place, weight, factor1, factor2, slope = row
        width = jnp.where(equal, math.pi - angle, angle)
        t = jnp.where(equal, angle - 0.5 * math.pi, -0.5 * math.pi) + place * width
        s1, s2 = jnp.full_like(t, factor1), jnp.full_like(t, factor2)
        if degree:
            s1 = factor1 * scales[0][0] * jnp.abs(jnp.cos(t))
            s2 = factor2 * scales[1][0] * jnp.abs(jnp.cos(t - angle))
        entries = jnp.stack([-0.5 * (weights[0] * s1 - weights[1] * s2) ** 2, s1 * s1, s2 * s2])
        measure = weight * width / (4.0 * math.pi)
        second = measure * jnp.concatenate([entries, (s1 * s2)[None]])
        fourth = measure * entries[:, None] * entries
        return jax.tree.map(jnp.add, sums, (second, slope * second, fourth, slope * measure)), None

    start = tuple(jnp.zeros((*shape, *rho.shape), rho.dtype) for shape in ((4,), (4,), (3, 3), ()))
    columns = [jnp.asarray(column) for column in zip(*rows, strict=True)]
    columns = [column if column.dtype == bool else column.astype(rho.dtype) for column in columns]
    (second, with_slopes, fourth, slope_mean), _ = jax.lax.scan(add, start, columns)
    mean, mixed = radial2 * second, radial2 * with_slopes
    return PairSources(
        radial4 * fourth - mean[:3, None] * mean[:3],
        mixed[:3] - mean[:3] * slope_mean,
        jnp.stack([mixed[jnp.array([1, 3])], mixed[jnp.array([3, 2])]]),
    )
