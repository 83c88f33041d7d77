r"""Gaussian moments of one input at a time: what each input brings to the statistics of its pairs.

For $z \sim N(0, q)$: the second moments of $\sigma$ and $\sigma'$ with their derivatives in q, the covariances of
$\sigma^2$ and $\sigma'^2$, and for smooth activations Hermite coefficients of the products from which the
four-fold moments of a pair are series.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gpntk._products import matmul
from gpntk.activations import AbstractActivation, Sign
from gpntk.activations._base import root_and_inverse
from gpntk.activations._homogeneous import AbstractPiecewiseLinear
from gpntk.activations._series import ORDER, AbstractSeries, gaussian_quadrature, with_remainder

# Derivatives of an activation that second derivatives of its dual derivative contain, its value included.
_DERIVATIVES = 6
_ROWS_AT_ONCE = 256
# Orders compared in the search for kinks.
_LOW = 16


class InputMoments(NamedTuple):
    """Moments of single inputs, with the shape of their variance; tables have further axes behind it."""

    variance: Float[Array, "..."]
    second: Float[Array, "..."]
    """$T = E[\\sigma^2]$"""
    second_slope: Float[Array, "..."]
    second_curvature: Float[Array, "..."]
    slope: Float[Array, "..."]
    """$U = E[\\sigma'^2]$"""
    slope_slope: Float[Array, "..."]
    slope_curvature: Float[Array, "..."]
    values_values: Float[Array, "..."]
    """$Var(\\sigma^2)$"""
    values_slopes: Float[Array, "..."]
    """$Cov(\\sigma^2, \\sigma'^2)$"""
    slopes_slopes: Float[Array, "..."]
    """$Var(\\sigma'^2)$"""
    products: Float[Array, "... 6 K"] | None
    r"""Hermite coefficients of $\sigma, \sigma^2, \sigma^3, \sigma', \sigma\sigma', \sigma^2\sigma'$."""
    derivatives: Float[Array, "... 6 K"] | None
    """Hermite coefficients of the activation and its first five derivatives (series only)."""
    roughness: Float[Array, "..."]
    """Share of the slope that its derivative does not explain: 0 for smooth activations, large at kinks."""


@functools.singledispatch
def input_moments(activation: AbstractActivation, variance: Float[Array, "..."]) -> InputMoments:
    """Moments of inputs of the given preactivation variance."""
    moments = jax.lax.map(
        functools.partial(_smooth_moments, activation), variance.reshape(-1), batch_size=_ROWS_AT_ONCE
    )
    return jax.tree.map(lambda leaf: leaf.reshape(variance.shape + leaf.shape[1:]), moments)


def _smooth_moments(activation, variance: Float[Array, ""]) -> InputMoments:
    bits = 64 if variance.dtype == jnp.float64 else 32
    nodes, weights, basis = (jnp.asarray(table, variance.dtype) for table in gaussian_quadrature(bits))
    functions = [activation.__call__]
    for _ in range(_DERIVATIVES - 1):
        functions.append(_derivative(functions[-1]))
    scale, _ = root_and_inverse(variance)
    x = scale * nodes
    s, s1, s2, s3, s4, s5 = (f(x) for f in functions)
    mean = lambda function: matmul(function, weights)  # noqa: E731

    if isinstance(activation, AbstractSeries):
        second, slope = mean(s * s), mean(s1 * s1)
        derivatives = matmul(jnp.stack([s, s1, s2, s3, s4, s5]), basis[:, : ORDER[bits]])
        second_slope = mean(s1 * s1 + s * s2)
        second_curvature = 0.5 * mean(3 * s2**2 + 4 * s1 * s3 + s * s4)
        slope_slope = mean(s2**2 + s1 * s3)
        slope_curvature = 0.5 * mean(3 * s3**2 + 4 * s2 * s4 + s1 * s5)
    else:
        derivatives = None
        (second, slope), (second_slope, slope_slope) = _with_derivative(activation.moments)(variance)
        second_curvature, slope_curvature = _with_derivative(_derivative(activation.moments))(variance)[1]

    # An integrand that has not died out at the ends of the range has no moment that can be computed.
    fourth = with_remainder(s * s, matmul(s * s, basis), weights)
    diverges = jnp.isinf(fourth[-1]) | ~jnp.isfinite(fourth[-1])
    centred, centred_slope = s * s - mean(s * s), s1 * s1 - mean(s1 * s1)
    explained = scale * matmul(s2, basis[:, :_LOW])
    slopes = jnp.sqrt(jnp.arange(1, _LOW + 1, dtype=x.dtype)) * matmul(s1, basis[:, 1 : _LOW + 1])
    norm = mean(s1 * s1)
    rough = jnp.sum((slopes - explained) ** 2)
    return InputMoments(
        variance,
        second,
        second_slope,
        second_curvature,
        slope,
        slope_slope,
        slope_curvature,
        jnp.where(diverges, jnp.inf, mean(centred * centred)),
        mean(centred * centred_slope),
        mean(centred_slope * centred_slope),
        matmul(jnp.stack([s, s**2, s**3, s1, s * s1, s**2 * s1]), basis[:, : ORDER[bits]]),
        derivatives,
        jnp.where(norm > 0, rough / jnp.where(norm > 0, norm, 1.0), 0.0),
    )


def _derivative(function):
    return lambda x: jax.jvp(function, (x,), (jnp.ones_like(x),))[1]


def _with_derivative(function):
    return lambda x: jax.jvp(function, (x,), (jnp.ones_like(x),))


@input_moments.register
def _piecewise_linear_moments(activation: AbstractPiecewiseLinear, variance) -> InputMoments:
    left, right = activation.slopes
    second, fourth = 0.5 * (left**2 + right**2), 0.5 * (left**4 + right**4)
    zero, one = jnp.zeros_like(variance), jnp.ones_like(variance)
    return InputMoments(
        variance,
        second * variance,
        second * one,
        zero,
        second * one,
        zero,
        zero,
        (3.0 * fourth - second**2) * variance**2,
        (fourth - second**2) * variance,
        (fourth - second**2) * one,
        None,
        None,
        zero,
    )


@input_moments.register
def _sign_moments(activation: Sign, variance) -> InputMoments:
    zero = jnp.zeros_like(variance)
    second = jnp.where(variance > 0, 1.0, zero)
    zeros = [zero] * 8
    return InputMoments(variance, second, *zeros, products=None, derivatives=None, roughness=zero)
