r"""All statistics at order 1/n of a dense network, one layer at a time.

Conditioned on a layer, the preactivations $z$ of the next one and two independent tangent fields $\dot z =
\sum_\mu \xi_\mu\,\partial z/\partial\theta_\mu$ and $\grave z$ are Gaussian with a random covariance, an
average over neurons. `Statistics` holds its mean, its mean's shift and its covariance, block by block;
`next_layer` maps them through a layer by the delta method. Roberts, Yaida & Hanin, *The Principles of Deep
Learning Theory*, chapters 4 and 8, have the same tensors by diagrams.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from gpntk.finite_width._fourth_moments import FourthMoments
from gpntk.finite_width._pair_maps import Derivatives


class Statistics(NamedTuple):
    r"""Kernels of one layer's preactivations and their statistics at order 1/(fan-in of the layer).

    With inputs a, b, c, d: `V[a,b,c,d]` is the covariance of the random kernel entries $(z_a z_b)$ and
    $(z_c z_d)$, `D` of $(z_a z_b)$ and $(\dot z_c \dot z_d)$, `F` of $(z_a \dot z_c)$ and $(z_b \dot z_d)$,
    `A` of $(\dot z_a \dot z_b)$ and $(\grave z_c \grave z_d)$, `B` of $(\dot z_a \grave z_c)$ and
    $(\dot z_b \grave z_d)$, times the fan-in; `K1` and `theta1` are the shifts of the means of NNGP and NTK,
    times the fan-in.
    """

    K: Float[Array, "N N"]
    theta: Float[Array, "N N"]
    K1: Float[Array, "N N"]
    theta1: Float[Array, "N N"]
    V: Float[Array, "N N N N"]
    D: Float[Array, "N N N N"]
    F: Float[Array, "N N N N"]
    A: Float[Array, "N N N N"]
    B: Float[Array, "N N N N"]


def first_layer(kernel: Float[Array, "N N"]) -> Statistics:
    """Statistics of the first layer: exactly Gaussian, with a deterministic NTK equal to its kernel."""
    matrix, tensor = jnp.zeros_like(kernel), jnp.zeros(kernel.shape * 2, kernel.dtype)
    return Statistics(kernel, kernel, matrix, matrix, tensor, tensor, tensor, tensor, tensor)


def next_layer(
    statistics: Statistics,
    dual: Derivatives,
    dual_derivative: Derivatives,
    moments: FourthMoments,
    weight_variance: Float[Array, ""],
    bias_variance: Float[Array, ""],
    fan_in_ratio: float,
) -> Statistics:
    r"""Statistics of the next layer.

    Args:
        statistics: those of this layer, coefficients of 1/(its fan-in).
        dual: $T = E[\sigma\sigma]$ at this layer's kernel, with derivatives.
        dual_derivative: $U = E[\sigma'\sigma']$ likewise.
        moments: covariances of four activations (and slopes) at this layer's kernel.
        weight_variance: $C_W$ of the next layer.
        bias_variance: $C_b$ of the next layer.
        fan_in_ratio: width of this layer over the width of the one before, $n_l / n_{l-1}$.
    """
    _, theta, K1, theta1, V, D, F, A, B = statistics
    T, U, C, ratio = dual, dual_derivative, weight_variance, fan_in_ratio

    # First derivatives of the map: of the kernel, and of the NTK with respect to the kernel and to the NTK.
    kernel_map = C * T.gradient
    ntk_by_kernel = kernel_map + C * theta * U.gradient
    ntk_by_ntk = C * U.value
    tt, tu, uu = moments.values_values, moments.values_slopes, moments.slopes_slopes
    left, right = theta[:, :, None, None], theta[None, None, :, :]

    V_next = C**2 * tt + ratio * _both(kernel_map, V, kernel_map)
    D_next = C**2 * (tt + tu * right) + ratio * (
        _both(kernel_map, V, ntk_by_kernel) + _first(kernel_map, D) * ntk_by_ntk
    )
    mixed = _first(ntk_by_kernel, D) * ntk_by_ntk
    A_next = C**2 * (tt + tu * right + _swap(tu) * left + uu * left * right) + ratio * (
        _both(ntk_by_kernel, V, ntk_by_kernel)
        + mixed
        + _swap(mixed)
        + ntk_by_ntk[:, :, None, None] * A * ntk_by_ntk
    )

    # Entries (z_a, zdot_c) move by E[s_a' s_c'] of themselves and E[s_a s_c''] of (z_c, zdot_c).
    direct, through = C * U.value, 2.0 * C * T.by_second_variance
    # Their means vanish, so that the sources are moments and not covariances: products of means come back.
    values_and_slopes = tu + T.value[:, :, None, None] * U.value
    slopes = uu + U.value[:, :, None, None] * U.value
    F_next = C**2 * values_and_slopes * right + ratio * _tangent_map(direct, through, F)
    B_next = C**2 * slopes * left * right + ratio * jnp.einsum("ac,bd,abcd->abcd", ntk_by_ntk, ntk_by_ntk, B)

    K1_next = _apply(kernel_map, K1) + 0.5 * C * _contract(T.hessian, V)
    theta1_next = (
        _apply(ntk_by_kernel, K1)
        + ntk_by_ntk * theta1
        + 0.5 * C * (_contract(T.hessian, V) + theta * _contract(U.hessian, V))
        + C * _contract_with_ntk(U.gradient, D)
        + C * _contract_tangents(U.gradient, F)
    )
    return Statistics(
        bias_variance + C * T.value,
        bias_variance + C * (T.value + U.value * theta),
        ratio * K1_next,
        ratio * theta1_next,
        V_next,
        D_next,
        F_next,
        A_next,
        B_next,
    )


def _first(gradient, tensor):
    """The linear map on the first pair of indices: moves of (ab), (aa) and (bb)."""
    diagonal = jnp.einsum("aacd->acd", tensor)
    by_k, by_a, by_b = (g[:, :, None, None] for g in gradient)
    return by_k * tensor + by_a * diagonal[:, None] + by_b * diagonal[None, :]


def _both(gradient1, tensor, gradient2):
    return _swap(_first(gradient2, _swap(_first(gradient1, tensor))))


def _swap(tensor):
    return jnp.transpose(tensor, (2, 3, 0, 1))


def _apply(gradient, matrix):
    diagonal = jnp.diagonal(matrix)
    return gradient[0] * matrix + gradient[1] * diagonal[:, None] + gradient[2] * diagonal[None, :]


def _entries(tensor):
    """Covariances of the three moves (ab), (aa), (bb) of each pair with each other, shape (3, 3, N, N)."""
    pair = jnp.einsum("abab->ab", tensor)
    ab_aa, ab_bb = jnp.einsum("abaa->ab", tensor), jnp.einsum("abbb->ab", tensor)
    aa_ab, bb_ab = jnp.einsum("aaab->ab", tensor), jnp.einsum("bbab->ab", tensor)
    aa_bb = jnp.einsum("aabb->ab", tensor)
    own = jnp.einsum("aaaa->a", tensor)
    aa, bb = jnp.broadcast_arrays(own[:, None], own[None, :])
    return jnp.array([[pair, ab_aa, ab_bb], [aa_ab, aa, aa_bb], [bb_ab, aa_bb.T, bb]])


def _contract(hessian, V):
    return jnp.sum(hessian * _entries(V), axis=(0, 1))


def _contract_with_ntk(gradient, D):
    """Moves of the kernel correlated with the move of the pair's own NTK."""
    moves = (jnp.einsum("abab->ab", D), jnp.einsum("aaab->ab", D), jnp.einsum("bbab->ab", D))
    return sum(g * m for g, m in zip(gradient, moves, strict=True))


def _contract_tangents(gradient, F):
    """Second derivatives of s'_a s'_b with the correlations of (z_c, zdot_a) and (z_d, zdot_b), c, d in {a, b}."""
    both = jnp.einsum("abab->ab", F) + jnp.einsum("baab->ab", F)
    first, second = jnp.einsum("aaab->ab", F), jnp.einsum("bbab->ab", F)
    return gradient[0] * both + 2.0 * gradient[1] * first + 2.0 * gradient[2] * second


def _tangent_map(direct, through, F):
    """The map on both mixed entries (z_a, zdot_c) and (z_b, zdot_d) of F[a, b, c, d]."""
    moved = jnp.einsum("ac,abcd->abcd", direct, F) + jnp.einsum("ac,cbcd->abcd", through, F)
    return jnp.einsum("bd,abcd->abcd", direct, moved) + jnp.einsum("bd,adcd->abcd", through, moved)
