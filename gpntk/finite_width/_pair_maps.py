r"""The infinite-width kernel map of one activation and its derivatives, pair by pair.

The recursion at order 1/n is the delta method: it needs $T = E[\sigma_a\sigma_b]$ and $U =
E[\sigma_a'\sigma_b'] = \partial T/\partial k$ as functions of $(k, q_a, q_b)$, with first and second derivatives.
By Price's theorem the Gaussian moments of higher derivatives of $\sigma$ that the diagrams contain are among them:
$E[\sigma_a\sigma_b''] = 2\,\partial T/\partial q_b$, $E[\sigma_a''\sigma_b''] = \partial U/\partial k$.

Derivatives are taken in the coordinates $(e, q_a, q_b)$ with the *excess*

$$e = k - \tfrac12 (r q_a + q_b / r), \qquad r = \sqrt{q_b / q_a} \text{ held fixed.}$$

For a kinked activation derivatives with respect to k diverge as the inputs become parallel, like the inverse of
their angle and its cube, while fluctuations of the excess vanish like its square. In these coordinates small times
large stays small in floating point; with k itself, differences of almost equal numbers would be blown up. At
coincidence the excess does not fluctuate at all, and its infinite derivatives are taken as 0.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gpntk._products import einsum
from gpntk.activations import AbstractActivation, Sign
from gpntk.activations._base import one_minus_square, root_and_inverse
from gpntk.activations._homogeneous import AbstractPiecewiseLinear
from gpntk.activations._series import AbstractSeries, power_sum
from gpntk.finite_width._input_moments import InputMoments, input_moments
from gpntk.networks._domains import rows_and_columns


class Derivatives(NamedTuple):
    """A function of `(k, q_a, q_b)` with its first and second derivatives, over pairs of inputs."""

    value: Float[Array, "N1 N2"]
    gradient: Float[Array, "3 N1 N2"]
    """With respect to the excess and both variances."""
    hessian: Float[Array, "3 3 N1 N2"]
    by_variances: Float[Array, "2 N1 N2"]
    """With respect to the variances at fixed covariance."""


class Pairing(NamedTuple):
    """Geometry of pairs of inputs, from their variances: what converts covariances into excesses."""

    ratio: Float[Array, "N1 N2"]
    inverse_ratio: Float[Array, "N1 N2"]

    @classmethod
    def of(cls, variance1: Float[Array, "..."], variance2: Float[Array, "..."]) -> "Pairing":
        """Both ratios are 0 where a variance is 0: then the covariance is 0 and is its own excess."""
        (scale1, inverse1), (scale2, inverse2) = root_and_inverse(variance1), root_and_inverse(variance2)
        return cls(scale2 * inverse1, scale1 * inverse2)


def pair_maps(
    activation: AbstractActivation,
    covariance: Float[Array, "N1 N2"],
    inputs1: InputMoments,
    inputs2: InputMoments,
) -> tuple[Derivatives, Derivatives]:
    r"""The dual $T$ and the dual derivative $U$ with their derivatives, by broadcasting.

    Args:
        activation: the nonlinearity.
        covariance: of the preactivations of pairs of inputs.
        inputs1: moments of the first input of each pair.
        inputs2: moments of the second.
    """
    return _pair_maps(activation, covariance, inputs1, inputs2)


@functools.singledispatch
def _pair_maps(activation: AbstractActivation, covariance, inputs1, inputs2):
    """Automatic differentiation of a closed form."""
    variances = inputs1.variance, inputs2.variance

    def function(*arguments):
        k, q1, q2 = arguments
        return activation.pair(k, activation.features(q1), activation.features(q2))

    point = jnp.broadcast_arrays(covariance, *variances)
    directions = [tuple(jnp.full_like(x, i == j) for j, x in enumerate(point)) for i in range(3)]

    def along(function, direction):
        return lambda *arguments: jax.jvp(function, arguments, direction)[1]

    values = function(*point)
    first = [along(function, d) for d in directions]
    gradients = [f(*point) for f in first]
    hessians = [[along(f, d)(*point) for d in directions[: i + 1]] for i, f in enumerate(first)]
    dual, dual_derivative = (
        _in_excess(
            values[which],
            jnp.stack([g[which] for g in gradients]),
            jnp.stack([jnp.stack([hessians[max(i, j)][min(i, j)][which] for j in range(3)]) for i in range(3)]),
            Pairing.of(*variances),
        )
        for which in range(2)
    )
    return dual, dual_derivative


@_pair_maps.register
def _pair_maps_series(activation: AbstractSeries, covariance, inputs1, inputs2):
    r"""Hermite series of derivatives of the activation: $\partial_k$ and $2\,\partial_q$ differentiate twice."""
    rho = covariance * (root_and_inverse(inputs1.variance)[1] * root_and_inverse(inputs2.variance)[1])
    rho = jnp.clip(rho, -1.0, 1.0)

    def mean(order1, order2):
        return power_sum(inputs1.derivatives[..., order1, :], inputs2.derivatives[..., order2, :], rho)

    pairing = Pairing.of(inputs1.variance, inputs2.variance)

    def derivatives(m, value):
        kk, ka, kb = mean(m + 2, m + 2), 0.5 * mean(m + 3, m + 1), 0.5 * mean(m + 1, m + 3)
        aa, ab, bb = 0.25 * mean(m + 4, m), 0.25 * mean(m + 2, m + 2), 0.25 * mean(m, m + 4)
        gradient = jnp.stack([mean(m + 1, m + 1), 0.5 * mean(m + 2, m), 0.5 * mean(m, m + 2)])
        hessian = jnp.stack([jnp.stack(row) for row in ([kk, ka, kb], [ka, aa, ab], [kb, ab, bb])])
        return _in_excess(value, gradient, hessian, pairing)

    features = [activation.features(inputs.variance) for inputs in (inputs1, inputs2)]
    value, slope = activation.pair(covariance, *features)
    return derivatives(0, value), derivatives(1, slope)


def _in_excess(value, gradient, hessian, pairing: Pairing) -> Derivatives:
    """From derivatives with respect to the covariance to those with respect to the excess."""
    by_a, by_b = 0.5 * pairing.ratio, 0.5 * pairing.inverse_ratio
    one, zero = jnp.ones_like(by_a), jnp.zeros_like(by_a)
    jacobian = jnp.stack([jnp.stack(row) for row in ([one, by_a, by_b], [zero, one, zero], [zero, zero, one])])
    return Derivatives(
        value,
        einsum("ij...,i...->j...", jacobian, gradient),
        einsum("ik...,ij...,jl...->kl...", jacobian, hessian, jacobian),
        gradient[1:],
    )


def dual_by_covariances(activation: AbstractActivation, kernel: Float[Array, "N N"]) -> Derivatives:
    """The dual at a kernel matrix, with derivatives with respect to the covariance itself and both variances."""
    inputs = input_moments(activation, jnp.diagonal(kernel))
    rows, columns = rows_and_columns(inputs, inputs)
    dual, _ = pair_maps(activation, kernel, rows, columns)
    to_excess = Pairing.of(rows.variance, columns.variance)
    # The change to excesses with the opposite ratios undoes it.
    back = _in_excess(dual.value, dual.gradient, dual.hessian, Pairing(*(-ratio for ratio in to_excess)))
    return back._replace(by_variances=dual.by_variances)


@_pair_maps.register
def _pair_maps_piecewise_linear(activation: AbstractPiecewiseLinear, covariance, inputs1, inputs2):
    r"""$T = \sqrt{q_a q_b}\, t(\rho)$ and $U = t'(\rho)$, in a form without cancellation near $\rho = 1$."""
    geometry = _Geometry.of(covariance, inputs1.variance, inputs2.variance)
    left, right = activation.slopes
    unit = jnp.ones_like(geometry.rho)
    t, u = activation.pair(geometry.rho, (unit, unit), (unit, unit))
    slope, curvature = (0.5 * (left - right) ** 2 / math.pi * d for d in _arccosine_derivatives(geometry.rho))
    scale, lack = geometry.scale, t - geometry.rho * u
    by_variances = 0.5 * lack * jnp.stack([geometry.ratio, geometry.inverse_ratio])
    by_sum = 0.5 * (t + u * (1.0 - geometry.rho))
    dual = Derivatives(
        scale * t,
        jnp.stack([u, by_sum * geometry.ratio, by_sum * geometry.inverse_ratio]),
        scale * (slope * _outer(geometry.correlation) - 0.25 * lack * _outer(geometry.difference)),
        by_variances,
    )
    return dual, _function_of_correlation(u, slope, curvature, geometry)


@_pair_maps.register
def _pair_maps_sign(activation: Sign, covariance, inputs1, inputs2):
    geometry = _Geometry.of(covariance, inputs1.variance, inputs2.variance)
    unit = jnp.ones_like(geometry.rho)
    t, _ = activation.pair(geometry.rho, (unit, unit), (unit, unit))
    slope, curvature = (2.0 / math.pi * d for d in _arccosine_derivatives(geometry.rho))
    dual = _function_of_correlation(t, slope, curvature, geometry)
    return dual, jax.tree.map(jnp.zeros_like, dual)


class _Geometry(NamedTuple):
    """Correlation of pairs and its derivatives in the coordinates (excess, q_a, q_b)."""

    rho: Float[Array, "N1 N2"]
    scale: Float[Array, "N1 N2"]
    ratio: Float[Array, "N1 N2"]
    inverse_ratio: Float[Array, "N1 N2"]
    excess: Float[Array, "3 N1 N2"]
    """Relative move of the excess, as a linear function of the coordinates."""
    total: Float[Array, "3 N1 N2"]
    """Sum of the relative moves of both variances."""
    difference: Float[Array, "3 N1 N2"]
    """Difference of the relative moves of both variances."""

    @classmethod
    def of(cls, covariance, variance1, variance2) -> "_Geometry":
        (scale1, inverse1), (scale2, inverse2) = root_and_inverse(variance1), root_and_inverse(variance2)
        rho = covariance * (inverse1 * inverse2)
        first, second = jnp.broadcast_arrays(inverse1 * inverse1, inverse2 * inverse2)
        zero = jnp.zeros_like(rho)
        return cls(
            rho,
            scale1 * scale2,
            scale2 * inverse1,
            scale1 * inverse2,
            jnp.stack([inverse1 * inverse2, zero, zero]),
            jnp.stack([zero, first, second]),
            jnp.stack([zero, first, -second]),
        )

    @property
    def correlation(self):
        """Gradient of the correlation."""
        return self.excess + 0.5 * (1.0 - self.rho) * self.total


def _function_of_correlation(value, slope, curvature, geometry: _Geometry) -> Derivatives:
    """The derivatives of a function of the correlation alone, from those with respect to the correlation."""
    rho = geometry.rho
    crossed = 0.5 * (_outer(geometry.excess, geometry.total) + _outer(geometry.total, geometry.excess))
    second = 0.25 * rho * _outer(geometry.difference) - crossed - 0.5 * (1.0 - rho) * _outer(geometry.total)
    return Derivatives(
        value,
        slope * geometry.correlation,
        curvature * _outer(geometry.correlation) + slope * second,
        -0.5 * rho * slope * jnp.stack([geometry.total[1], geometry.total[2]]),
    )


def _arccosine_derivatives(rho):
    r"""First and second derivative of $-\arccos\rho$; 0 at coincidence, where they are infinite."""
    _, slope = root_and_inverse(one_minus_square(rho))
    return slope, rho * slope**3


def _outer(vector1, vector2=None):
    return vector1[:, None] * (vector1 if vector2 is None else vector2)[None, :]
