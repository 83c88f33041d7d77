r"""Four-input Gaussian moments $\langle\sigma_a\sigma_b\sigma_c\sigma_d\rangle$, the sources of the recursion.

They are the only integrals over more than two inputs. One rank: a fine one-dimensional quadrature. Deep linear
networks: Wick's theorem. Otherwise randomised quasi-Monte Carlo, the same points for all quadruples, so that each
tensor is one matrix product; independent randomisations give the standard error.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.special import ndtri
from scipy.stats import qmc

from gpntk.activations import AbstractActivation, Identity
from gpntk.activations._series import gaussian_quadrature

_REPLICATES = 8
_FIRST_POINTS, _MOST_POINTS = 2**12, 2**18
_ENTRIES_AT_ONCE = 2**22


class FourthMoments(NamedTuple):
    """Covariances of products of two activations or slopes, index order (ab)(cd).

    The leading axis holds independent estimates: one where the integral is exact, several whose spread tells the
    error where it is not.
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
    tolerance: float,
    seed: int,
) -> FourthMoments:
    r"""Covariances of $\sigma_a\sigma_b$ and $\sigma'_a\sigma'_b$ under $z \sim N(0, K)$.

    Args:
        activation: the nonlinearity.
        kernel: covariance of the preactivations; it may be singular.
        values: $E[\sigma_a\sigma_b]$, known exactly.
        slopes: $E[\sigma'_a\sigma'_b]$, known exactly.
        tolerance: relative standard error, in the Frobenius norm, at which sampling stops.
        seed: of the randomisations.
    """
    eigenvalues, vectors = np.linalg.eigh(np.asarray(kernel, np.float64))
    kept = eigenvalues > 1e-13 * max(eigenvalues[-1], 0.0)
    factor = (vectors * np.sqrt(np.where(kept, eigenvalues, 0.0)))[:, kept][:, ::-1]
    means = _pairs(np.asarray(values)), _pairs(np.asarray(slopes))
    if factor.shape[1] <= 1:
        nodes, weights, _ = gaussian_quadrature(64)
        scale = factor[:, 0] if factor.shape[1] else np.zeros(len(factor))
        sums = _weighted_products(activation, nodes[:, None] * scale, weights, means)
        return FourthMoments(*(_unfold(s[None], len(kernel)) for s in sums))
    estimates = _quasi_monte_carlo(activation, factor, means, tolerance, seed)
    return FourthMoments(*(_unfold(e, len(kernel)) for e in estimates))


@fourth_moments.register
def _wick(activation: Identity, kernel, values, slopes, tolerance, seed) -> FourthMoments:
    del activation, values, slopes, tolerance, seed
    wick = jnp.einsum("ac,bd->abcd", kernel, kernel) + jnp.einsum("ad,bc->abcd", kernel, kernel)
    return FourthMoments(wick[None], jnp.zeros_like(wick)[None], jnp.zeros_like(wick)[None])


def _quasi_monte_carlo(activation, factor, means, tolerance, seed):
    """Scrambled Sobol points, doubled until the standard errors over replicates are small enough."""
    rank = factor.shape[1]
    seeds = np.random.SeedSequence(seed).spawn(_REPLICATES)
    sequences = [qmc.Sobol(rank, scramble=True, rng=np.random.default_rng(s)) for s in seeds]
    sums, done, points = None, 0, _FIRST_POINTS
    while True:
        new = [_sobol_sums(activation, sequence, factor, means, points) for sequence in sequences]
        stacked = [np.stack(tensors) for tensors in zip(*new, strict=True)]
        sums = stacked if sums is None else [old + s for old, s in zip(sums, stacked, strict=True)]
        done += points
        estimates = [s / done for s in sums]
        if done >= _MOST_POINTS or all(_relative_error(e) <= tolerance for e in estimates):
            return estimates
        points = done  # the next power of two, which completes the net


def _sobol_sums(activation, sequence, factor, means, points):
    """Sums over the next `points` of a sequence, a few at a time."""
    at_once = max(256, _ENTRIES_AT_ONCE // len(means[0]))
    totals = None
    for start in range(0, points, at_once):
        uniform = sequence.random(min(at_once, points - start))
        # A scrambled point can round to 0, whose quantile is infinite.
        normal = ndtri(np.clip(uniform, 2.0**-54, 1.0 - 2.0**-53))
        sums = _weighted_products(activation, normal @ factor.T, np.ones(len(normal)), means)
        totals = sums if totals is None else [t + s for t, s in zip(totals, sums, strict=True)]
    return totals


def _weighted_products(activation, z, weights, means):
    """Weighted sums of products of centred pair products, as three matrices on pairs."""
    value, slope = _value_and_slope(activation, jnp.asarray(z))
    first, second = np.triu_indices(z.shape[1])
    values = np.asarray(value)[:, first] * np.asarray(value)[:, second] - means[0]
    slopes = np.asarray(slope)[:, first] * np.asarray(slope)[:, second] - means[1]
    weighted_values = values.T * weights
    return [weighted_values @ values, weighted_values @ slopes, (slopes.T * weights) @ slopes]


@functools.partial(jax.jit, static_argnums=0)
def _value_and_slope(activation, z):
    return jax.jvp(activation, (z,), (jnp.ones_like(z),))


def _relative_error(estimates):
    error = estimates.std(axis=0, ddof=1) / math.sqrt(len(estimates))
    scale = np.linalg.norm(estimates.mean(axis=0))
    return np.linalg.norm(error) / scale if scale > 0 else 0.0


def _pairs(matrix):
    return matrix[np.triu_indices(len(matrix))]


def _unfold(pairs, size: int) -> Float[Array, "R N N N N"]:
    """From matrices on unordered pairs to tensors with four indices."""
    index = np.zeros((size, size), int)
    index[np.triu_indices(size)] = np.arange(size * (size + 1) // 2)
    index = np.maximum(index, index.T)
    return jnp.asarray(pairs)[:, index[:, :, None, None], index]
