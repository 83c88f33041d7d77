r"""V of many inputs, without its N^4 entries: $V \approx \sum_r \phi_r \otimes \phi_r$, factors on pairs.

One layer adds the covariance of $\sigma_a\sigma_b$ and moves what was there linearly, so that factors propagate
one by one. The activations of N inputs mostly move in few directions, $\sigma \approx Q y$ with the leading
eigenvectors Q of their covariance and their mean: the covariance of the products $y_i y_j$ is a small matrix,
sampled by quasi-Monte Carlo, and its eigenvectors u are new factors $Q u Q^T$.
Whatever is left out is positive semidefinite, and the variance of every single entry is known exactly from the
recursion on pairs: what the factors lack of it is the residual.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Float

from gpntk.activations import AbstractActivation, Identity
from gpntk.activations._series import gaussian_quadrature
from gpntk.finite_width._fourth_moments import kernel_factor, normal_points, points_at_once

# Leading directions of the activations: their pairs make matrices of at most 4186 rows.
_MOST_DIRECTIONS = 91
_FIRST_POINTS = 2**12
# Multiplications spent on one layer at most; half a minute on two cores.
_MOST_WORK = 1.5e12
_PROBES = 16


class Factors(NamedTuple):
    """Factors of a covariance of symmetric matrices, and Frobenius norms of its errors."""

    factors: Float[np.ndarray, "R N N"]
    standard_error: float
    truncated: float
    """What was left out on purpose."""


def source_factors(
    activation: AbstractActivation,
    kernel: Float[np.ndarray, "N N"],
    second_moments: Float[np.ndarray, "N N"],
    rank: int,
    tolerance: float,
    seed: int,
) -> Factors:
    r"""The leading factors of the covariance of $\sigma_a\sigma_b$ under $z \sim N(0, K)$.

    Args:
        activation: the nonlinearity.
        kernel: covariance of the preactivations; it may be singular.
        second_moments: $E[\sigma_a\sigma_b]$, known exactly.
        rank: number of factors.
        tolerance: relative standard error, in the Frobenius norm, at which sampling stops.
        seed: of the randomisation.
    """
    basis, tail = _basis(second_moments, _means(activation, np.diagonal(kernel)), 0.3 * tolerance)
    kept = basis.shape[1]
    first, second = np.triu_indices(kept)
    # Off-diagonal entries stand for two, so that lengths of vectors are Frobenius norms of matrices.
    weight = np.where(first == second, 1.0, math.sqrt(2.0))
    moments = basis.T @ second_moments @ basis
    if isinstance(activation, Identity):
        wick = (
            moments[first][:, first] * moments[second][:, second]
            + moments[first][:, second] * moments[second][:, first]
        )
        covariance, error = weight[:, None] * wick * weight, 0.0
    else:
        means = weight * moments[first, second]
        covariance, error = _sampled_covariance(
            activation, kernel, basis, means, (first, second, weight), tolerance, seed
        )
    values, vectors = _leading(covariance, rank)
    matrices = np.zeros((len(values), kept, kept))
    matrices[:, first, second] = (np.sqrt(values) * vectors).T / weight
    matrices[:, second, first] = matrices[:, first, second]
    factors = basis @ matrices @ basis.T
    size = np.sum(covariance**2)
    return Factors(factors, error, _rest(covariance, values) + math.sqrt(size) * tail)


def _rest(matrix, leading) -> float:
    """Frobenius norm of a positive semidefinite matrix without its leading eigenvalues."""
    return math.sqrt(max(0.0, float(np.sum(matrix**2) - np.sum(leading**2))))


def _leading(matrix: Float[np.ndarray, "M M"], rank: int) -> tuple[np.ndarray, np.ndarray]:
    """The largest eigenvalues of a positive semidefinite matrix and their vectors, largest first."""
    size = len(matrix)
    values, vectors = scipy.linalg.eigh(matrix, subset_by_index=[max(0, size - rank), size - 1])
    return values[::-1].clip(0.0), vectors[:, ::-1]


def _basis(second_moments, means, tolerance):
    """Orthonormal directions in which activations move, and the relative size of what happens in the others.

    The mean is one of them: it multiplies every move of the rest.
    """
    eigenvalues, directions = np.linalg.eigh(second_moments - np.outer(means, means))
    eigenvalues, directions = eigenvalues[::-1].clip(0.0), directions[:, ::-1]
    # A direction left out costs its products with all others, which are of the size of products of variances.
    tails = np.append(np.sqrt(2.0 * np.cumsum(eigenvalues[::-1] ** 2)[::-1] / np.sum(eigenvalues**2)), 0.0)
    kept = min(int(np.sum(tails > tolerance)), _MOST_DIRECTIONS - 1)
    basis = directions[:, :kept]
    if np.any(means):
        basis = np.linalg.qr(np.column_stack([means, basis]))[0]
    return basis, float(tails[kept])


def _means(activation, variance):
    nodes, weights, _ = gaussian_quadrature(64)
    return np.asarray(_value(activation, jnp.sqrt(jnp.asarray(variance))[:, None] * nodes)) @ weights


def _sampled_covariance(activation, kernel, basis, means, pairs, tolerance, seed):
    """The covariance of products of directions, and the Frobenius norm of its standard error."""
    first, second, weight = pairs
    size = len(first)
    sequences = normal_points(kernel_factor(kernel), seed)
    probes = np.random.default_rng(seed).choice([-1.0, 1.0], size=(size, _PROBES))
    total, probed, done, points = (
        np.zeros((size, size)),
        np.zeros((len(sequences), size, _PROBES)),
        0,
        _FIRST_POINTS,
    )
    at_once = points_at_once(size)
    while True:
        for index, sequence in enumerate(sequences):
            for start in range(0, points, at_once):
                z = sequence(min(at_once, points - start))
                y = np.asarray(_value(activation, jnp.asarray(z))) @ basis
                products = y[:, first] * (y[:, second] * weight) - means
                total += products.T @ products
                probed[index] += products.T @ (products @ probes)
        done += points
        spread = probed / done
        error = math.sqrt(np.mean(np.sum(spread.var(axis=0, ddof=1), axis=0)) / len(sequences))
        covariance = total / (done * len(sequences))
        work = 2.0 * done * len(sequences) * size**2
        if error <= tolerance * np.linalg.norm(covariance) or 2.0 * work > _MOST_WORK:
            return covariance, error
        points = done  # the next power of two, which completes the net


def moved(factors: Float[np.ndarray, "R N N"], dual, scale: float) -> Float[np.ndarray, "R N N"]:
    """Factors after a layer: each is a move of the kernel, and goes through the slope of the kernel map."""
    by_covariance, (by_first, by_second) = np.asarray(dual.gradient[0]), np.asarray(dual.by_variances)
    diagonal = np.einsum("raa->ra", factors)
    return scale * (by_covariance * factors + by_first * diagonal[:, :, None] + by_second * diagonal[:, None, :])


def compressed(factors: Float[np.ndarray, "R N N"], rank: int) -> tuple[Float[np.ndarray, "rank N N"], float]:
    """The leading `rank` factors of the same covariance, and the Frobenius norm of the rest."""
    size = factors.shape[-1]
    first, second = np.triu_indices(size)
    vectors = factors[:, first, second] * np.where(first == second, 1.0, math.sqrt(2.0))
    if len(vectors) <= vectors.shape[1]:
        gram = vectors @ vectors.T
        _, mixing = _leading(gram, rank)
        result = np.tensordot(mixing.T, factors, axes=1)
    else:
        gram = vectors.T @ vectors
        values, axes = _leading(gram, rank)
        matrices = np.sqrt(values)[:, None] * axes.T / np.where(first == second, 1.0, math.sqrt(2.0))
        result = np.zeros((len(matrices), size, size))
        result[:, first, second] = result[:, second, first] = matrices
    kept = np.einsum("rab,rab->r", result, result)
    return result, _rest(gram, kept)


@functools.partial(jax.jit, static_argnums=0)
def _value(activation, z):
    return activation(z)
