r"""All statistics at order 1/n of a dense network, one layer at a time.

Conditioned on a layer, the preactivations $z$ of the next one and two independent tangent fields $\dot z =
\sum_\mu \xi_\mu\,\partial z/\partial\theta_\mu$ and $\grave z$ are Gaussian with a random covariance, an
average over neurons. `Statistics` holds its covariance, block by block; `next_layer` maps it through a layer by
the delta method. (The shift of its mean needs pairs of inputs only: see `_pairs`.) Roberts, Yaida & Hanin, *The
Principles of Deep Learning Theory*, chapters 4 and 8, have the same tensors by diagrams.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from gpntk._products import einsum
from gpntk.finite_width._fourth_moments import FourthMoments, to_covariance
from gpntk.finite_width._input_moments import InputMoments
from gpntk.finite_width._pair_maps import Derivatives, Pairing
from gpntk.finite_width._pairs import excess_map


class Statistics(NamedTuple):
    r"""Tensors of one layer at order 1/(fan-in of the layer).

    With inputs a, b, c, d: `V[a,b,c,d]` is the covariance of the random kernel entries of the pairs (ab) and (cd),
    `D` of the kernel entry of (ab) and $(\dot z_c \dot z_d)$, `F` of $(z_a \dot z_c)$ and $(z_b \dot z_d)$, `A` of
    $(\dot z_a \dot z_b)$ and $(\grave z_c \grave z_d)$, `B` of $(\dot z_a \grave z_c)$ and
    $(\dot z_b \grave z_d)$, times the fan-in. The kernel entry of two different inputs is their excess, see
    `_pair_maps`.
    """

    V: Float[Array, "N N N N"]
    D: Float[Array, "N N N N"]
    F: Float[Array, "N N N N"]
    A: Float[Array, "N N N N"]
    B: Float[Array, "N N N N"]

    @classmethod
    def of_first_layer(cls, size: int) -> "Statistics":
        """The first layer is exactly Gaussian, with a deterministic NTK."""
        return cls(*[jnp.zeros((size,) * 4)] * 5)


def next_layer(
    statistics: Statistics,
    theta: Float[Array, "N N"],
    dual: Derivatives,
    dual_derivative: Derivatives,
    inputs: InputMoments,
    moments: FourthMoments,
    following: Pairing,
    weight_variance: Float[Array, ""],
    fan_in_ratio: float,
) -> Statistics:
    r"""Statistics of the next layer.

    Args:
        statistics: those of this layer, coefficients of 1/(its fan-in).
        theta: NTK of this layer.
        dual: $T = E[\sigma\sigma]$ at this layer's kernel, with derivatives.
        dual_derivative: $U = E[\sigma'\sigma']$ likewise.
        inputs: moments of single inputs.
        moments: covariances of four activations (and slopes) at this layer's kernel.
        following: ratios of standard deviations in the next layer.
        weight_variance: $C_W$ of the next layer.
        fan_in_ratio: width of this layer over the width of the one before, $n_l / n_{l-1}$.
    """
    V, D, F, A, B = statistics
    T, U, C, ratio = dual, dual_derivative, weight_variance, fan_in_ratio

    # First derivatives of the map: of the kernel, and of the NTK with respect to the kernel and to the NTK. Of an
    # input with itself, only its variance moves.
    slope = inputs.second_slope
    kernel_map = C * _own(excess_map(T, (slope[:, None], slope[None, :]), following)[0], slope)
    ntk_by_kernel = C * (_own(T.gradient, slope) + theta * _own(U.gradient, inputs.slope_slope))
    ntk_by_ntk = C * U.value
    # Sources: pairs come as excesses where V and D keep them so, as covariances elsewhere.
    tt_mixed = _swap(to_covariance(_swap(moments.values_values), following))
    tt = to_covariance(tt_mixed, following)
    tu_excess, uu = moments.values_slopes, moments.slopes_slopes
    tu = to_covariance(tu_excess, following)
    left, right = theta[:, :, None, None], theta[None, None, :, :]

    V_next = C**2 * moments.values_values + ratio * _both(kernel_map, V, kernel_map)
    D_next = C**2 * (tt_mixed + tu_excess * right) + ratio * (
        _both(kernel_map, V, ntk_by_kernel) + _first(kernel_map, D) * ntk_by_ntk
    )
    mixed = _first(ntk_by_kernel, D) * ntk_by_ntk
    A_next = C**2 * (tt + tu * right + _swap(tu) * left + uu * left * right) + ratio * (
        _both(ntk_by_kernel, V, ntk_by_kernel)
        + mixed
        + _swap(mixed)
        + ntk_by_ntk[:, :, None, None] * A * ntk_by_ntk
    )

    # Entries (z_a, zdot_c) move by E[s_a' s_c'] of themselves and E[s_a s_c''] of (z_c, zdot_c); the two together
    # make the slope of E[s s] where a = c.
    through = 2.0 * C * T.by_variances[1]
    through = jnp.where(_is_own(through), jnp.diag(C * (slope - inputs.slope)), through)
    # Their means vanish, so that the sources are moments and not covariances: products of means come back.
    values_and_slopes = tu + T.value[:, :, None, None] * U.value
    slopes = uu + U.value[:, :, None, None] * U.value
    F_next = C**2 * values_and_slopes * right + ratio * _tangent_map(ntk_by_ntk, through, F)
    B_next = C**2 * slopes * left * right + ratio * einsum("ac,bd,abcd->abcd", ntk_by_ntk, ntk_by_ntk, B)
    return Statistics(V_next, D_next, F_next, A_next, B_next)


def _own(gradient: Float[Array, "3 N N"], total: Float[Array, " N"]) -> Float[Array, "3 N N"]:
    """A gradient whose diagonal acts on the variance of the input alone, by its total derivative."""
    own = _is_own(gradient[0])
    return jnp.stack(
        [
            jnp.where(own, 0.0, gradient[0]),
            jnp.where(own, total[:, None], gradient[1]),
            jnp.where(own, 0.0, gradient[2]),
        ]
    )


def _is_own(matrix):
    return jnp.eye(len(matrix), dtype=bool)


def _first(gradient, tensor):
    """The linear map on the first pair of indices: moves of (ab), (aa) and (bb)."""
    diagonal = einsum("aacd->acd", tensor)
    by_k, by_a, by_b = (g[:, :, None, None] for g in gradient)
    return by_k * tensor + by_a * diagonal[:, None] + by_b * diagonal[None, :]


def _both(gradient1, tensor, gradient2):
    return _swap(_first(gradient2, _swap(_first(gradient1, tensor))))


def _swap(tensor):
    return jnp.transpose(tensor, (2, 3, 0, 1))


def _tangent_map(direct, through, F):
    """The map on both mixed entries (z_a, zdot_c) and (z_b, zdot_d) of F[a, b, c, d]."""
    moved = einsum("ac,abcd->abcd", direct, F) + einsum("ac,cbcd->abcd", through, F)
    return einsum("bd,abcd->abcd", direct, moved) + einsum("bd,adcd->abcd", through, moved)
