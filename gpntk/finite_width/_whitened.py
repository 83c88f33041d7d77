r"""The random kernel of a finite network in coordinates that a sampler can use, whitened with the noise.

With $A = K + s_0^2$ on the training inputs, $s_0^2$ the noise variance or a lower bound on it, the random kernel
is

$$G + s_0^2 = A^{1/2} e^{E} A^{1/2},$$

E a symmetric Gaussian matrix: positive definite at every width, and with the mean and covariance of G right to
order 1/n if $\mathrm{Cov}(E) = \tilde V/n$ and $\mathrm E[E] = \tilde K_1/n - \tfrac12 \mathrm E[(E - \mathrm E
E)^2]$, where a tilde means whitened by A. With the noise, directions that the data cannot see do not fluctuate,
and eigenvectors of $\tilde V$ (modes) are left out only by their size in this metric. Test inputs are further rows
$h_x$ of the factor $H = A^{1/2} e^{E/2}$ of the kernel,

$$h_x = (P_x A^{1/2} + e_x)\, e^{E/2}, \qquad G_{xx} = |h_x|^2 + \rho_x, \qquad P = K_{xA} A^{-1},$$

where to first order $e_x = (G_{xA} - P_x G_{AA}) A^{-1/2}$ and $\log \rho_x$ are Gaussian given the modes, by
regression through V. The weights of the noisy outputs in the posterior mean at x are then $P_x + e_x A^{-1/2}$,
Gaussian too. With $e_x$ behind $e^{E/2}$ the model would be right to the same order, but farther from sampled
networks. Every row is added by itself, so that it does not depend on which others there are.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gpntk._products import einsum, matmul
from gpntk.finite_width._fluctuations import FactorBatch, FluctuationSums, fluctuation_sums, random_kernel
from gpntk.finite_width._posterior import check_resolved, condition, left_over_moves, marginal_sums
from gpntk.networks import MLP

_MOST_PAIRS = 4096


class Fluctuations(NamedTuple):
    """A random kernel at training inputs, then test inputs."""

    kernel: Float[Array, "T T"]
    """The kernel at leading order."""
    contract: Callable[..., FluctuationSums]
    """Sums over factors of its covariance times `width`, of a function of a batch and arguments."""
    width: float


def network_fluctuations(net: MLP, x, n_train: int, width: float, n_points: int, seed: int) -> Fluctuations:
    """Those of a network of some width."""
    random = random_kernel(net, x)
    contract = lambda function, arguments: fluctuation_sums(random, n_train, function, arguments, n_points, seed)  # noqa: E731
    return Fluctuations(random.kernel, contract, width)


def dense_fluctuations(
    mean: Float[Array, "T T"], covariance: Float[Array, "T T T T"], n_train: int
) -> Fluctuations:
    """Those of a random kernel with given mean and covariance."""
    size = len(mean)
    eigenvalues, vectors = np.linalg.eigh(np.asarray(covariance).reshape(size**2, size**2))
    kept = eigenvalues > 1e-14 * eigenvalues[-1]
    factors = (vectors[:, kept] * np.sqrt(eigenvalues[kept])).T.reshape(-1, size, size)
    factors = jnp.asarray(0.5 * (factors + factors.transpose(0, 2, 1)))
    diagonal = jnp.diagonal(factors, axis1=1, axis2=2)
    batch = FactorBatch(factors[:, :, :n_train], diagonal)
    shift = FactorBatch(jnp.zeros((1, size, n_train)), jnp.zeros((1, size)))

    def contract(function, arguments):
        return FluctuationSums(jax.tree.map(lambda leaf: leaf[None], function(batch, *arguments)), shift)

    return Fluctuations(jnp.asarray(mean), contract, 1.0)


@dataclasses.dataclass(frozen=True)
class WhitenedKernel:
    """E on the training inputs, in the eigenvectors of K: `offset + sum_k xi_k modes[k]` with standard normal xi.

    E vanishes outside of its first p rows and columns.
    """

    basis: Float[np.ndarray, "N N"]
    """Eigenvectors of K, by falling eigenvalue."""
    roots: Float[np.ndarray, " N"]
    """Square roots of the eigenvalues of A."""
    offset: Float[np.ndarray, "p p"]
    directions: Float[np.ndarray, "k p p"]
    """The modes times the root of the width."""
    width: float
    retained: float
    """The share of the trace of the whitened V that the modes carry."""
    variance: Float[np.ndarray, " N"]
    """Diagonal of K."""
    own_variance: Float[np.ndarray, " N"]
    """V of its entries."""

    @property
    def modes(self) -> Float[np.ndarray, "k p p"]:
        """Changes of E with its coordinates."""
        return self.directions / np.sqrt(self.width)


@dataclasses.dataclass(frozen=True)
class AppendedRows:
    """Rows of the factor of the random kernel at test inputs, given the modes, in the same coordinates."""

    loadings: Float[np.ndarray, "M N"]
    """`P_x A^(1/2)`."""
    offset: Float[np.ndarray, "M N"]
    """Mean of e_x."""
    modes: Float[np.ndarray, "k M N"]
    """Regression coefficients of e_x."""
    remainder: Float[np.ndarray, "M N N"]
    """Covariance of e_x given the modes."""
    variance: Float[np.ndarray, " M"]
    """Posterior variance of the Gaussian process, scaled by exp(log_scale)."""
    correlation_factor: Float[np.ndarray, "M M"]
    """Lower factor of its posterior correlation."""
    log_scale_offset: Float[np.ndarray, " M"]
    log_scale_modes: Float[np.ndarray, "k M"]
    mean_shift: Float[np.ndarray, "M q"]
    """What modes that are not sampled add to the posterior mean, to first order."""


def whiten(
    fluctuations: Fluctuations, n_train: int, floor: float, retained: float, most_modes: int
) -> WhitenedKernel:
    """The modes of the random kernel of the training inputs.

    Args:
        fluctuations: the random kernel.
        n_train: number of training inputs, the first ones.
        floor: noise variance $s_0^2$ in the metric.
        retained: share of the trace of the whitened V to keep at least, if `most_modes` allows.
        most_modes: largest number of modes.
    """
    kernel, contract, width = fluctuations
    eigenvalues, basis = np.linalg.eigh(np.asarray(kernel[:n_train, :n_train]))
    check_resolved(np.diagonal(np.asarray(kernel))[:n_train].max(), max(eigenvalues[0], 0.0) + floor, floor)
    basis, roots = basis[:, ::-1], np.sqrt(np.maximum(eigenvalues[::-1], 0.0) + floor)
    whitener = jnp.asarray(basis / roots)
    sums, shift = contract(_entry_variances, (whitener,))
    variances, own = (np.asarray(leaf).mean(0) for leaf in sums)
    first, second = np.triu_indices(n_train)
    weights = np.where(first == second, 1.0, np.sqrt(2.0))
    sizes = weights**2 * variances[first, second]
    order = np.argsort(-sizes)[:_MOST_PAIRS]
    total = sizes.sum()
    # A tenth of what may be dropped goes with single entries, the rest with modes.
    enough = np.searchsorted(np.cumsum(sizes[order]), (1.0 - 0.1 * (1.0 - retained)) * total) + 1
    order = np.sort(order[:enough])
    first, second, weights = first[order], second[order], weights[order]
    gram, _ = contract(_pair_gram, (whitener, jnp.asarray(first), jnp.asarray(second), jnp.asarray(weights)))
    values, vectors = np.linalg.eigh(np.asarray(gram).mean(0))
    values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
    n_modes = int(np.searchsorted(np.cumsum(values), retained * total)) + 1
    n_modes = max(1, min(n_modes, most_modes, int(np.sum(values > 1e-12 * values[0])))) if total > 0 else 1
    values, vectors = values[:n_modes], vectors[:, :n_modes]
    size = int(second.max()) + 1
    directions = np.zeros((n_modes, size, size))
    directions[:, first, second] = (vectors * np.sqrt(values) / weights[:, None]).T
    directions[:, second, first] = directions[:, first, second]
    mean = np.asarray(whitener.T @ shift.block.mean(0)[:n_train] @ whitener)[:size, :size]
    offset = mean - 0.5 * np.einsum("kij,kjl->il", directions, directions, optimize=True)
    return WhitenedKernel(
        basis,
        roots,
        offset / width,
        directions,
        width,
        float(values.sum() / total) if total > 0 else 1.0,
        np.diagonal(np.asarray(kernel)),
        own,
    )


def append(
    fluctuations: Fluctuations,
    whitened: WhitenedKernel,
    n_train: int,
    floor: float,
    y: Float[Array, "N q"] | None,
) -> AppendedRows:
    """Rows of the factor at the inputs after the first `n_train`, given targets `y` where they are known."""
    kernel, contract, width = fluctuations
    outputs = 1 if y is None else y.shape[1]
    targets = jnp.zeros((n_train, outputs)) if y is None else y
    gp = condition(kernel, targets, floor)
    whitener = jnp.asarray(whitened.basis / whitened.roots)
    sums, shift = contract(_row_sums, (whitener, _mode_projector(whitened, whitener), gp.weights))
    modes, squares, own_modes = (np.asarray(leaf).mean(0) for leaf in sums)
    kernel_shift = FactorBatch(shift.block.mean(0), shift.diagonal.mean(0))
    rows, own_shift = map(np.asarray, left_over_moves(kernel_shift, gp.weights))
    own_squares = np.trace(squares, axis1=1, axis2=2)
    remainder = squares - np.einsum("kxi,kxj->xij", modes, modes)
    # What the training inputs leave over cannot be told from rounding below this.
    prior_variance = np.diagonal(np.asarray(kernel))[n_train:]
    rounding = np.finfo(float).eps * whitened.roots[0] ** 2 / floor * prior_variance
    left_over = np.maximum(np.asarray(gp.variance), 0.0)
    variance = np.maximum(left_over, rounding)
    variance = np.where(variance > 0, variance, 1.0)
    correlation = np.asarray(gp.covariance) / np.sqrt(variance[:, None] * variance[None, :])
    mean_shift, by_evidence = np.zeros((len(rows), outputs)), np.zeros(len(rows))
    if y is not None:
        mean_shift, by_evidence = _not_sampled(gp, contract, whitened, modes, own_modes, squares)
    offset, size = rows @ np.asarray(whitener), whitened.directions.shape[1]
    offset[:, :size] -= np.einsum("kxi,kij->xj", modes[:, :, :size], whitened.directions)
    log_scale_modes = own_modes / variance / np.sqrt(width)
    log_scale = (own_shift - own_squares + by_evidence) / variance / width - 0.5 * np.sum(
        log_scale_modes**2, axis=0
    )
    return AppendedRows(
        np.asarray(kernel[n_train:, :n_train] @ whitener),
        offset / width,
        modes / np.sqrt(width),
        remainder / width,
        left_over,
        _factor_of_correlation(correlation),
        log_scale,
        log_scale_modes,
        mean_shift / width,
    )


def _mode_projector(whitened: WhitenedKernel, whitener: Float[Array, "N N"]) -> Float[Array, "k N N"]:
    """What contracts a factor to its coordinates along the modes, the standard normal weights of the draws."""
    norms = np.sum(whitened.directions**2, axis=(1, 2))
    inverse = np.where(norms > 0, 1.0 / np.where(norms > 0, norms, 1.0), 0.0)
    columns = whitener[:, : whitened.directions.shape[1]]
    return einsum("kij,ai,bj->kab", whitened.directions * inverse[:, None, None], columns, columns, optimize=True)


def _factor_of_correlation(matrix):
    """Lower factor of the correlation matrix next to one that may be singular and has errors of rounding."""
    size = len(matrix)
    matrix = matrix + np.diag(1.0 - np.diagonal(matrix))
    jitter = 10.0 * size * np.finfo(float).eps
    try:
        return np.linalg.cholesky((matrix + jitter * np.eye(size)) / (1.0 + jitter))
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(matrix)
        nearest = (vectors * np.maximum(values, jitter)) @ vectors.T
        deviations = np.sqrt(np.diagonal(nearest))
        return np.linalg.cholesky(nearest / (deviations[:, None] * deviations[None, :]))


def _entry_variances(factors: FactorBatch, whitener):
    n = len(whitener)
    whitened = whitener.T @ factors.block[:, :n, :n] @ whitener
    return jnp.sum(whitened**2, axis=0), jnp.sum(factors.diagonal**2, axis=0)


def _pair_gram(factors: FactorBatch, whitener, first, second, weights):
    n = len(whitener)
    pairs = (whitener.T @ factors.block[:, :n, :n] @ whitener)[:, first, second] * weights
    return pairs.T @ pairs


def _row_sums(factors: FactorBatch, whitener, projector, weights):
    n = len(whitener)
    coordinates = einsum("rab,kab->rk", factors.block[:, :n, :n], projector)
    rows, own = left_over_moves(factors, weights)
    whitened = rows @ whitener
    return (
        einsum("rk,rxi->kxi", coordinates, whitened),
        einsum("rxi,rxj->xij", whitened, whitened),
        coordinates.T @ own,
    )


def _not_sampled(gp, contract, whitened, modes, own_modes, squares):
    """What the closed form has beyond the modes: of means, and of variances through the evidence."""
    sums, _ = contract(marginal_sums, (gp,))
    outputs = gp.coefficients.shape[1]
    targets = whitened.roots[:, None] * (whitened.basis.T @ np.asarray(gp.coefficients))
    directions, size = whitened.directions, whitened.directions.shape[1]
    moved = np.einsum("kij,jq->kiq", directions, targets[:size])
    slopes = 0.5 * np.einsum("kiq,iq->k", moved, targets[:size])
    slopes -= 0.5 * outputs * np.trace(directions, axis1=1, axis2=2)
    sampled = np.einsum("k,kxi,iq->xq", slopes, modes, targets, optimize=True)
    sampled -= np.einsum("kxi,kiq->xq", modes[:, :, :size], moved)
    mean = np.asarray(sums.mean).mean(0) - sampled
    # The numerator of the variance is (a.F.a)^2 + (evidence) - (trace): the middle one alone.
    first_target = np.einsum("xij,i,j->x", squares, targets[:, 0], targets[:, 0])
    by_evidence = np.asarray(sums.variance).mean(0)[:, 0] - first_target + np.trace(squares, axis1=1, axis2=2)
    return mean, by_evidence - slopes @ own_modes


@functools.partial(jax.jit, static_argnames="steps")
def exponential(matrix: Float[Array, "p p"], columns: Float[Array, "p q"], steps: int = 6) -> Float[Array, "p q"]:
    """exp(matrix) times columns, by Taylor polynomials of degree 12 in a few steps.

    To rounding for matrices of norm up to `steps`/2, and graceful beyond: no eigenvectors, whose derivatives
    diverge where eigenvalues meet.
    """

    def step(columns, _):
        def term(carry, order):
            power, total = carry
            power = matmul(matrix, power) / (steps * order)
            return (power, total + power), None

        orders = jnp.arange(1.0, 13.0, dtype=columns.dtype)
        return jax.lax.scan(term, (columns, columns), orders)[0][1], None

    return jax.lax.scan(step, columns, length=steps)[0]
