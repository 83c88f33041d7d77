r"""Four-input Gaussian moments $\langle\sigma_a\sigma_b\sigma_c\sigma_d\rangle$, the sources of the recursion.

They are the only integrals over more than two inputs. One rank: a fine one-dimensional quadrature. Deep linear
networks: Wick's theorem. The error function: see `_erf_moments`. Otherwise the same points for all quadruples, so
that each tensor is one matrix product: a lattice for smooth functions of few dimensions, where it converges
exponentially, else randomised quasi-Monte Carlo. Shifted lattices, or independent randomisations, tell the error.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gpntk._products import einsum
from gpntk.activations import AbstractActivation, Erf, Identity, Sign
from gpntk.activations._homogeneous import AbstractPiecewiseLinear
from gpntk.activations._series import gaussian_quadrature
from gpntk.finite_width._erf_moments import erf_covariances
from gpntk.finite_width._pair_maps import Pairing
from gpntk.finite_width._sobol import sobol_normals

_REPLICATES = 8
_FIRST_POINTS, _MOST_POINTS = 2**12, 2**18
# Lattices fill a ball, outside of which little of a Gaussian is left.
_RADIUS, _LATTICE_POINTS, _MOST_DIMENSIONS = 9.0, (2**9, 2**11, 2**13, 2**15, 2**17), 3
_ENTRIES_AT_ONCE = 2**22


class FourthMoments(NamedTuple):
    """Covariances of one neuron's contributions to kernel entries and of products of slopes, order (ab)(cd).

    Contributions to kernel entries are to the *excess* of a pair and to variances (a = b), see `_pair_maps`. The
    leading axis holds independent estimates: one where the integral is exact, several whose spread tells the error
    where it is not.
    """

    values_values: Float[Array, "R N N N N"]
    values_slopes: Float[Array, "R N N N N"]
    slopes_slopes: Float[Array, "R N N N N"]


@functools.singledispatch
def fourth_moments(
    activation: AbstractActivation,
    kernel: Float[Array, "N N"],
    values: Float[Array, "N N"],
    slopes: Float[Array, "N N"],
    following: Pairing,
    tolerance: float,
    seed: int,
) -> FourthMoments:
    r"""Covariances of contributions to the next kernel, and of $\sigma'_a\sigma'_b$, under $z \sim N(0, K)$.

    Args:
        activation: the nonlinearity.
        kernel: covariance of the preactivations; it may be singular.
        values: $E[\sigma_a\sigma_b]$, known exactly.
        slopes: $E[\sigma'_a\sigma'_b]$, known exactly.
        following: ratios of standard deviations in the next layer.
        tolerance: relative standard error, in the Frobenius norm, at which sampling stops.
        seed: of the randomisations.
    """
    factor, size = kernel_factor(kernel), len(kernel)
    values, slopes, following = (jax.tree.map(np.asarray, leaf) for leaf in (values, slopes, following))
    first, second = np.triu_indices(size)
    weights = np.sqrt(following.ratio)[first, second], np.sqrt(following.inverse_ratio)[first, second]
    means = _excess(values, following)[first, second], slopes[first, second]
    entries = functools.partial(_entries, activation, (first, second), weights, means)
    if factor.shape[1] <= 1:
        nodes, node_weights, _ = gaussian_quadrature(64)
        scale = factor[:, 0] if factor.shape[1] else np.zeros(size)
        estimates = [s[None] for s in _weighted_products(entries(nodes[:, None] * scale), node_weights)]
    else:
        estimates = None
        if factor.shape[1] <= _MOST_DIMENSIONS and not isinstance(activation, (AbstractPiecewiseLinear, Sign)):
            own = _variances_of_squares(activation, kernel)
            at_once = points_at_once(len(first))
            estimates = _lattice(entries, factor, np.flatnonzero(first == second), own, tolerance, at_once)
        if estimates is None:
            estimates = _quasi_monte_carlo(entries, factor, len(first), tolerance, seed)
    return FourthMoments(*(_unfold(e, size) for e in estimates))


@fourth_moments.register
def _wick(activation: Identity, kernel, values, slopes, following, tolerance, seed) -> FourthMoments:
    del activation, values, slopes, tolerance, seed
    wick = einsum("ac,bd->abcd", kernel, kernel) + einsum("ad,bc->abcd", kernel, kernel)
    wick = to_excess(_swap(to_excess(wick, following)), following)
    return FourthMoments(wick[None], jnp.zeros_like(wick)[None], jnp.zeros_like(wick)[None])


@fourth_moments.register
def _error_function(activation: Erf, kernel, values, slopes, following, tolerance, seed) -> FourthMoments:
    del values, slopes, tolerance, seed
    pairs = np.triu_indices(len(kernel))
    covariances = erf_covariances(activation.a, activation.b, activation.c, kernel, pairs)
    tt, tu, uu = (_unfold(c[None], len(kernel))[0] for c in covariances)
    tt = to_excess(_swap(to_excess(tt, following)), following)
    return FourthMoments(tt[None], to_excess(tu, following)[None], uu[None])


def _swap(tensor):
    return jnp.transpose(tensor, (2, 3, 0, 1))


def to_excess(tensor: Float[Array, "N N ..."], pairing: Pairing) -> Float[Array, "N N ..."]:
    """From entries (ab), covariances, to excesses (and variances where a = b)."""
    return tensor - _mean_variance(tensor, pairing)


def to_covariance(tensor: Float[Array, "N N ..."], pairing: Pairing) -> Float[Array, "N N ..."]:
    """The inverse of `to_excess`."""
    return tensor + _mean_variance(tensor, pairing)


def _mean_variance(tensor, pairing):
    size = len(tensor)
    diagonal = tensor[np.arange(size), np.arange(size)]
    apart = 0.5 * (1.0 - np.eye(size))
    by_first, by_second = (
        (apart * ratio).reshape(size, size, *[1] * (tensor.ndim - 2))
        for ratio in (pairing.ratio, pairing.inverse_ratio)
    )
    return by_first * diagonal[:, None] + by_second * diagonal[None, :]


def _excess(matrix, pairing):
    return matrix - _mean_variance(matrix, pairing)


def kernel_factor(kernel) -> Float[np.ndarray, "N rank"]:
    """A factor L of a covariance, L L^T = K, of as many columns as its rank, the largest first."""
    eigenvalues, vectors = np.linalg.eigh(np.asarray(kernel, np.float64))
    kept = eigenvalues > 1e-13 * max(eigenvalues[-1], 0.0)
    return (vectors * np.sqrt(np.where(kept, eigenvalues, 0.0)))[:, kept][:, ::-1]


def normal_points(factor: Float[np.ndarray, "N rank"], seed: int) -> list[Callable[[int], np.ndarray]]:
    """Independently scrambled Sobol sequences of Gaussian vectors; each is a function that draws the next few."""
    sequences = [sobol_normals(factor.shape[1], s) for s in np.random.SeedSequence(seed).spawn(_REPLICATES)]
    return [lambda n, draw=draw: draw(n) @ factor.T for draw in sequences]


def points_at_once(n_pairs: int) -> int:
    """How many points of a sequence are held at a time: a power of two, which keeps Sobol's nets whole."""
    return 2 ** max(8, (_ENTRIES_AT_ONCE // n_pairs).bit_length() - 1)


def _quasi_monte_carlo(entries, factor, n_pairs, tolerance, seed):
    """Scrambled Sobol points, doubled until the standard errors over replicates are small enough."""
    sequences = normal_points(factor, seed)
    sums, done, points = None, 0, _FIRST_POINTS
    at_once = points_at_once(n_pairs)
    while True:
        draws = [lambda some, draw=sequence: draw(some.stop - some.start) for sequence in sequences]
        new = [_sums(entries, draw, np.ones(points), at_once) for draw in draws]
        stacked = [np.stack(tensors) for tensors in zip(*new, strict=True)]
        sums = stacked if sums is None else [old + s for old, s in zip(sums, stacked, strict=True)]
        done += points
        estimates = [s / done for s in sums]
        if done >= _MOST_POINTS or all(_relative_error(e) <= tolerance for e in estimates):
            return estimates
        points = done  # the next power of two, which completes the net


def _lattice(entries, factor, own, own_values, tolerance, at_once):
    r"""Two lattices, one in the gaps of the other, refined until they agree; `None` where they do not.

    Their spread is the error of either; that of their mean is smaller by far, since errors of analytic functions
    fall exponentially with the step, and the largest cancel. What both lack is seen in `own_values`, the known
    variances of $\sigma_a^2$ at pairs `own` of equal inputs: fast-growing functions need more than the ball.
    """
    rank = factor.shape[1]
    volume = math.pi ** (0.5 * rank) / math.gamma(0.5 * rank + 1.0) * _RADIUS**rank
    for points in _LATTICE_POINTS:
        step = (volume / points) ** (1.0 / rank)
        lattices = [_lattice_points(rank, step, shift) for shift in (0.0, 0.5)]
        copies = [_sums(entries, lambda i, u=u: u[i] @ factor.T, weights, at_once) for u, weights in lattices]
        estimates = [np.stack(tensors) for tensors in zip(*copies, strict=True)]
        beyond = np.linalg.norm(estimates[0].mean(axis=0)[own, own] - own_values)
        agree = all(_relative_error(e) <= tolerance for e in estimates)
        if agree and beyond <= tolerance * np.linalg.norm(own_values):
            return estimates
    return None


@functools.lru_cache(maxsize=16)
def _lattice_points(rank: int, step: float, shift: float) -> tuple[np.ndarray, np.ndarray]:
    """Points of a cubic lattice in the ball, and their weights as normal vectors; filled up to a power of two."""
    ticks = step * (np.arange(-math.ceil(_RADIUS / step) - 1, math.ceil(_RADIUS / step) + 1) + shift)
    squares = functools.reduce(np.add.outer, [ticks**2] * rank)
    kept = np.nonzero(squares <= _RADIUS**2)
    weights = np.exp(-0.5 * squares[kept])
    # A power of two keeps the number of shapes, for which functions are compiled, small.
    filled = 2 ** math.ceil(math.log2(len(weights))) - len(weights)
    points = np.pad(np.stack([ticks[index] for index in kept], axis=1), ((0, filled), (0, 0)))
    return points, np.pad(weights / weights.sum(), (0, filled))


def _variances_of_squares(activation, kernel):
    nodes, weights, _ = gaussian_quadrature(64)
    scales = np.sqrt(np.diagonal(kernel))
    squares = np.asarray(activation(jnp.asarray(scales[:, None] * nodes))) ** 2
    return (squares - (squares @ weights)[:, None]) ** 2 @ weights


def _sums(entries, preactivations, weights, at_once):
    """Weighted sums of products, a few points at a time; `preactivations` gives those of a range of points."""
    totals = None
    for start in range(0, len(weights), at_once):
        some = slice(start, min(start + at_once, len(weights)))
        sums = _weighted_products(entries(preactivations(some)), weights[some])
        totals = sums if totals is None else [t + s for t, s in zip(totals, sums, strict=True)]
    return totals


@functools.partial(jax.jit, static_argnums=0)
def _entries(activation, pairs, weights, means, z):
    """Contributions of neurons to the kernel entries of pairs, then products of slopes, both centred: (2 M, P)."""
    first, second = pairs
    value, slope = jax.jvp(activation, (z.T,), (jnp.ones_like(z.T),))
    excesses = -0.5 * (weights[0][:, None] * value[first] - weights[1][:, None] * value[second]) ** 2
    squares = jnp.where((first == second)[:, None], value[first] ** 2, excesses)
    products = slope[first] * slope[second]
    return jnp.concatenate([squares - means[0][:, None], products - means[1][:, None]])


def _weighted_products(entries, weights):
    """Weighted sums of products, as three matrices on pairs."""
    size = len(entries) // 2
    rooted = np.asarray(entries) * np.sqrt(weights)
    # NumPy sees that this is symmetric and does half of it.
    products = rooted @ rooted.T
    return [products[:size, :size], products[:size, size:], products[size:, size:]]


def _relative_error(estimates):
    error = estimates.std(axis=0, ddof=1) / math.sqrt(len(estimates))
    scale = np.linalg.norm(estimates.mean(axis=0))
    return np.linalg.norm(error) / scale if scale > 0 else 0.0


def _unfold(pairs, size: int) -> Float[Array, "R N N N N"]:
    """From matrices on unordered pairs to tensors with four indices."""
    index = np.zeros((size, size), int)
    index[np.triu_indices(size)] = np.arange(size * (size + 1) // 2)
    index = np.maximum(index, index.T)
    return jnp.asarray(pairs)[:, index[:, :, None, None], index]
