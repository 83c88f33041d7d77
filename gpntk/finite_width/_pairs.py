r"""The recursion at order 1/n restricted to what mean kernels need: single inputs and pairs.

The shifts $K_1$ and $\Theta_1$ of a pair (a, b) contain only entries of V, D and F whose indices are a and b, and
these propagate among themselves. They are exact here: no integral has more than two inputs.
"""

import math
import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gpntk._checks import is_traced
from gpntk._products import einsum
from gpntk.finite_width._input_moments import InputMoments, input_moments
from gpntk.finite_width._pair_maps import Derivatives, Pairing, pair_maps
from gpntk.finite_width._pair_moments import PairSources, pair_sources
from gpntk.finite_width._schedule import Schedule
from gpntk.networks import MLP

# Share of the slope that its derivative may fail to explain: rounding leaves 1e-20, a kink like ReLU's about 0.1.
_MOST_ROUGHNESS = 1e-8


class InputStatistics(NamedTuple):
    """Statistics of single inputs: the entries of all tensors whose indices are equal."""

    K: Float[Array, " N"]
    theta: Float[Array, " N"]
    K1: Float[Array, " N"]
    theta1: Float[Array, " N"]
    V: Float[Array, " N"]
    D: Float[Array, " N"]
    F: Float[Array, " N"]
    A: Float[Array, " N"]
    B: Float[Array, " N"]


class InputFeatures(NamedTuple):
    """What each input contributes to its pairs: leaves have the input as first axis, the layer as second."""

    layers: InputStatistics
    """Statistics of the preactivations of every layer and of the outputs."""
    moments: InputMoments
    """Gaussian moments of the activation at every layer."""


class PairStatistics(NamedTuple):
    r"""Statistics of pairs (a, b).

    Entries of the random kernel of a pair are, in this order, its excess (see `_pair_maps`) and both variances.
    """

    K: Float[Array, "N1 N2"]
    theta: Float[Array, "N1 N2"]
    K1: Float[Array, "N1 N2"]
    theta1: Float[Array, "N1 N2"]
    V: Float[Array, "3 3 N1 N2"]
    D: Float[Array, "3 N1 N2"]
    """Of the three entries with the NTK of the pair."""
    F: Float[Array, "2 2 N1 N2"]
    r"""`F[p, q]` belongs to $(z_p \dot z_a)$ and $(z_q \dot z_b)$."""


def input_features(net: MLP, variance: Float[Array, " N"]) -> InputFeatures:
    """Statistics of single inputs at every layer, from second moments of the inputs."""
    schedule = Schedule.of(net, variance.dtype)
    first = schedule.weight_variance * variance + schedule.bias_variances[0]
    zero = jnp.zeros_like(variance)
    start = InputStatistics(first, first, *[zero] * 7)

    def step(statistics, layer):
        moments = input_moments(net.activation, statistics.K)
        advanced = next_inputs(statistics, moments, schedule.weight_variance, *layer)
        return advanced, (statistics, moments)

    last, (layers, moments) = jax.lax.scan(step, start, (schedule.bias_variances[1:], schedule.ratios))
    layers = jax.tree.map(lambda leaf, end: jnp.concatenate([leaf, end[None]]), layers, last)
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), InputFeatures(layers, moments))


def next_inputs(statistics: InputStatistics, moments: InputMoments, weight_variance, bias_variance, ratio):
    """Statistics of single inputs in the next layer."""
    _, theta, K1, theta1, V, D, F, A, B = statistics
    m, C = moments, weight_variance
    kernel_map = C * m.second_slope
    ntk_by_kernel = kernel_map + C * theta * m.slope_slope
    ntk_by_ntk = C * m.slope
    tt, tu, uu = m.values_values, m.values_slopes, m.slopes_slopes
    curvature = 0.5 * C * m.second_curvature * V
    return InputStatistics(
        bias_variance + C * m.second,
        bias_variance + C * (m.second + m.slope * theta),
        ratio * (kernel_map * K1 + curvature),
        ratio
        * (
            ntk_by_kernel * K1
            + ntk_by_ntk * theta1
            + curvature
            + C * (0.5 * theta * m.slope_curvature * V + m.slope_slope * (D + 2.0 * F))
        ),
        C**2 * tt + ratio * kernel_map**2 * V,
        C**2 * (tt + tu * theta) + ratio * kernel_map * (V * ntk_by_kernel + D * ntk_by_ntk),
        # E[s^2 s'^2]: the means of the entries vanish. They move by E[s' s'] + E[s s''], the slope of E[s s].
        C**2 * (tu + m.second * m.slope) * theta + ratio * kernel_map**2 * F,
        C**2 * (tt + 2.0 * tu * theta + uu * theta**2)
        + ratio * (ntk_by_kernel**2 * V + 2.0 * ntk_by_kernel * D * ntk_by_ntk + ntk_by_ntk**2 * A),
        C**2 * (uu + m.slope**2) * theta**2 + ratio * ntk_by_ntk**2 * B,
    )


def pair_statistics(
    net: MLP,
    covariance: Float[Array, "N1 N2"],
    features1: InputFeatures,
    features2: InputFeatures,
    *,
    every_layer: bool = False,
) -> PairStatistics:
    """Statistics of the outputs for all pairs of inputs.

    Args:
        net: the architecture.
        covariance: second moments of pairs of raw inputs.
        features1: features of the N1 inputs of rows.
        features2: features of the N2 inputs of columns.
        every_layer: whether to return those of the preactivations of every layer too, along a first axis.
    """
    schedule = Schedule.of(net, covariance.dtype)
    first = schedule.weight_variance * covariance + schedule.bias_variances[0]
    zero = jnp.zeros_like(first)
    nothing = (jnp.zeros((*shape, *zero.shape), zero.dtype) for shape in ((3, 3), (3,), (2, 2)))
    start = PairStatistics(first, first, zero, zero, *nothing)
    rows = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0)[:, :, None], features1)
    columns = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0)[:, None], features2)

    def step(statistics, layer):
        (inputs1, moments1, following1), (inputs2, moments2, following2), bias_variance, ratio = layer
        following = Pairing.of(following1, following2)
        maps = pair_maps(net.activation, statistics.K, moments1, moments2)
        sources = pair_sources(net.activation, statistics.K, moments1, moments2, following)
        constants = schedule.weight_variance, bias_variance, ratio
        pairs = next_pairs(
            statistics, (inputs1, inputs2), (moments1, moments2), maps, sources, following, *constants
        )
        return pairs, pairs if every_layer else None

    def by_layer(features: InputFeatures):
        before = jax.tree.map(lambda leaf: leaf[:-1], features.layers)
        return before, features.moments, features.layers.K[1:]

    layers = (by_layer(rows), by_layer(columns), schedule.bias_variances[1:], schedule.ratios)
    outputs, following = jax.lax.scan(step, start, layers)
    if not every_layer:
        return outputs
    return jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), start, following)


def next_pairs(
    statistics: PairStatistics,
    inputs: tuple[InputStatistics, InputStatistics],
    moments: tuple[InputMoments, InputMoments],
    maps: tuple[Derivatives, Derivatives],
    sources: PairSources,
    following: Pairing,
    weight_variance: Float[Array, ""],
    bias_variance: Float[Array, ""],
    ratio: Float[Array, ""],
) -> PairStatistics:
    """Statistics of pairs in the next layer; arguments are those of `_recursion.next_layer`, for both inputs."""
    _, theta, K1, theta1, V, D, F = statistics
    (T, U), C = maps, weight_variance
    slopes = [m.second_slope for m in moments]

    jacobian = C * excess_map(T, slopes, following)
    ntk_by_kernel = C * (T.gradient + theta * U.gradient)
    ntk_by_ntk = C * U.value
    # Covariances of the three entries with the covariance of the pair itself, which is excess plus mean variance.
    of_pair = lambda rows: rows[0] + 0.5 * (following.ratio * rows[1] + following.inverse_ratio * rows[2])  # noqa: E731

    V_next = C**2 * sources.values + ratio * _both(jacobian, V, jacobian)
    D_next = C**2 * (of_pair(sources.values) + theta * sources.slopes) + ratio * (
        einsum("ij...,jk...,k...->i...", jacobian, V, ntk_by_kernel)
        + ntk_by_ntk * einsum("ij...,j...->i...", jacobian, D)
    )
    tangents1, tangents2 = _tangent_maps(T, U, moments)
    F_next = C**2 * (sources.mixed * theta + ratio * _both(tangents1, F, tangents2))

    shifts = [s.K1 for s in inputs]
    curvature = 0.5 * C * einsum("ij...,ij...->...", T.hessian, V)
    kernel_shift = C * _at_fixed_covariance(T, K1, shifts)
    K1_next = kernel_shift + curvature
    theta1_next = (
        kernel_shift
        + curvature
        + C * theta * (_at_fixed_covariance(U, K1, shifts) + 0.5 * einsum("ij...,ij...->...", U.hessian, V))
        + ntk_by_ntk * theta1
        + C * einsum("i...,i...->...", U.gradient, D)
        + C
        * (U.gradient[0] * (F[0, 1] + F[1, 0]) + 2.0 * (U.by_variances[0] * F[0, 0] + U.by_variances[1] * F[1, 1]))
    )
    return PairStatistics(
        bias_variance + C * T.value,
        bias_variance + C * (T.value + U.value * theta),
        ratio * K1_next,
        ratio * theta1_next,
        V_next,
        D_next,
        F_next,
    )


def excess_map(T: Derivatives, slopes, following: Pairing) -> Float[Array, "3 3 N1 N2"]:
    """How the excess and both variances of the next layer move with those of this one, but for $C_W$."""
    slope1, slope2 = jnp.broadcast_arrays(*slopes, T.value)[:2]
    zero = jnp.zeros_like(T.value)
    excess = jnp.stack(
        [
            T.gradient[0],
            T.gradient[1] - 0.5 * following.ratio * slope1,
            T.gradient[2] - 0.5 * following.inverse_ratio * slope2,
        ]
    )
    return jnp.stack([excess, jnp.stack([zero, slope1, zero]), jnp.stack([zero, zero, slope2])])


def _tangent_maps(T: Derivatives, U: Derivatives, moments):
    r"""How $(z_p, \dot z_a)$, p = a and b, move with themselves, but for $C_W$; the same for $\dot z_b$."""
    (slope1, slope2), zero = (
        jnp.broadcast_arrays(*(m.second_slope for m in moments), U.value)[:2],
        jnp.zeros_like(U.value),
    )
    first = jnp.stack([jnp.stack([slope1, zero]), jnp.stack([2.0 * T.by_variances[0], U.value])])
    second = jnp.stack([jnp.stack([U.value, 2.0 * T.by_variances[1]]), jnp.stack([zero, slope2])])
    return first, second


def _both(map1, tensor, map2):
    return einsum("ij...,jk...,lk...->il...", map1, tensor, map2)


def _at_fixed_covariance(function: Derivatives, covariance_move, variance_moves):
    by_variances = function.by_variances
    return (
        function.gradient[0] * covariance_move
        + by_variances[0] * variance_moves[0]
        + by_variances[1] * variance_moves[1]
    )


def check_inputs(net: MLP, features: InputFeatures) -> None:
    """Refuse inputs for which the statistics do not exist or cannot be computed.

    Raises:
        ValueError: if a fourth moment of the activation diverges, or if it has a kink where a smooth function is
            needed.
    """
    if is_traced(features):
        return
    diverges = ~np.isfinite(np.asarray(features.moments.values_values)).all(axis=1)
    if diverges.any():
        raise ValueError(
            f"The Gaussian moments of {net.activation!r} are not finite for {np.sum(diverges)} of {diverges.size} "
            f"inputs, the first at row {np.argmax(diverges)}: E[s(z)^4] diverges or overflows at the variance of "
            "its preactivations. Scale the inputs down or lower `weight_variance`."
        )
    roughness = float(np.max(np.asarray(features.moments.roughness)))
    if roughness > _MOST_ROUGHNESS:
        raise ValueError(
            f"Statistics at order 1/n need the second derivative of {net.activation!r}, which fails to explain "
            f"{roughness:.1e} of the slope: the function has a kink. Take `ABReLU` for kinks at zero."
        )


def warn_if_narrow(width: float, variance: Float[np.ndarray, " N"], fluctuation: Float[np.ndarray, " N"]) -> None:
    """Warn where the expansion in 1/width cannot hold: kernels that fluctuate by more than half of themselves.

    Args:
        width: of the last hidden layer.
        variance: kernel of every input with itself.
        fluctuation: `V` of that entry, width times its variance.
    """
    relative = relative_fluctuation(variance, fluctuation)
    worst = float(np.max(relative))
    if width < smallest_width(relative):
        warnings.warn(
            f"The width {width:g} is too small for an expansion in 1/width: the kernel of input "
            f"{int(np.argmax(relative))} with itself fluctuates by {math.sqrt(worst / width):.2f} of its mean. "
            f"The smallest usable width is {smallest_width(relative)}.",
            stacklevel=3,
        )


def relative_fluctuation(variance: Float[np.ndarray, " N"], fluctuation: Float[np.ndarray, " N"]):
    """`V / K^2` of every input with itself, 0 where the kernel is 0."""
    # Divided twice: the square of a variance may overflow.
    relative = np.divide(fluctuation, variance, out=np.zeros_like(variance), where=variance > 0)
    return np.divide(relative, variance, out=relative, where=variance > 0)


def smallest_width(relative: Float[np.ndarray, " N"]) -> int:
    """The width at which no kernel of an input with itself fluctuates by more than half of its mean."""
    # Where it is a whole number, rounding errors must not ask for the next one.
    return max(1, math.ceil(4.0 * float(np.max(relative)) * (1.0 - 1e-9)))
