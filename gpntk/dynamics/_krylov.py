"""Iterative methods for symmetric positive semidefinite matrices that are known by their products with vectors.

A matrix is a function of vectors, `product(vectors)`. Right-hand sides are columns: every column has its own
Krylov space, and all of them share each product, which is where the time goes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gpntk._products import einsum, matmul

# Preconditioner


class Preconditioner(NamedTuple):
    r"""An approximate inverse, $U (\Lambda + \alpha)^{-1} U^T + (I - U U^T) / (\lambda_k + \alpha)$.

    What is not seen by the low-rank part is treated as if its eigenvalues were the smallest one seen (Frangella,
    Tropp & Udell 2023, SIAM J. Matrix Anal. Appl. 44, equation 5.3).
    """

    directions: Float[Array, "N k"]
    inverse: Float[Array, " k"]
    rest: Float[Array, ""]

    def __call__(self, vectors: Float[Array, "N m"]) -> Float[Array, "N m"]:
        return self.power(vectors, 1.0)

    def power(self, vectors: Float[Array, "N m"], exponent: float) -> Float[Array, "N m"]:
        """The approximate inverse to a power, negative ones included."""
        # In the precision of the low-rank part, which needs to be no better than the approximation it is.
        low = vectors.astype(self.directions.dtype)
        rest = self.rest**exponent
        # What is not resolved has a value of zero in `inverse`, and no direction.
        values = jnp.where(self.inverse > 0, self.inverse, self.rest) ** exponent - rest
        seen = matmul(self.directions, values[:, None] * matmul(self.directions.T, low))
        return rest.astype(vectors.dtype) * vectors + seen.astype(vectors.dtype)

    def log_determinant(self) -> Float[Array, ""]:
        """Of the approximate inverse."""
        resolved = self.inverse > 0
        unresolved = len(self.directions) - jnp.sum(resolved)
        return jnp.sum(jnp.log(jnp.where(resolved, self.inverse, 1.0))) + unresolved * jnp.log(self.rest)


@eqx.filter_jit
def preconditioner(
    columns: Callable[[Int[Array, " k"]], Float[Array, "N k"]],
    diagonal: Float[Array, " N"],
    alpha: Float[Array, ""],
    rank: int,
) -> Preconditioner:
    """A preconditioner for `matrix + alpha I` from a pivoted partial Cholesky factor of `rank` columns.

    Args:
        columns: maps indices to columns of the matrix.
        diagonal: of the matrix.
        alpha: what is added to the diagonal.
        rank: number of columns of the factor, at least 1.
    """
    factor = pivoted_cholesky(columns, diagonal, rank)
    values, vectors = jnp.linalg.eigh(matmul(factor.T, factor))
    # Directions that the factor does not resolve would not come out orthonormal: they are left to the rest.
    resolved = jnp.finfo(values.dtype).eps * rank * values[-1]
    kept = values > resolved
    directions = matmul(factor, vectors / jnp.sqrt(jnp.where(kept, values, 1.0))) * kept
    # A matrix of zeros has none.
    smallest = jnp.where(jnp.any(kept), jnp.min(jnp.where(kept, values, jnp.inf)), 0.0)
    # The trace of what is left bounds its eigenvalues: an exhausted matrix has nothing beyond what was seen.
    smallest = jnp.minimum(smallest, jnp.sum(jnp.maximum(diagonal - jnp.sum(factor**2, axis=1), 0.0)))
    # Nor is it smaller than what can be resolved: the inverse would amplify rounding errors of the projection.
    smallest = jnp.maximum(smallest, resolved)
    rest = 1.0 / (smallest + alpha)
    return Preconditioner(directions, jnp.where(kept, 1.0 / (jnp.where(kept, values, 1.0) + alpha), 0.0), rest)


def pivoted_cholesky(
    columns: Callable[[Int[Array, " k"]], Float[Array, "N k"]], diagonal: Float[Array, " N"], rank: int
) -> Float[Array, "N rank"]:
    """The factor L of a rank-`rank` approximation L L^T, pivots where the largest part of the diagonal is left.

    Harbrecht, Peters & Schneider (2012), Appl. Numer. Math. 62, algorithm 1. Columns beyond the numerical rank of
    the matrix are zero.
    """
    smallest = jnp.finfo(diagonal.dtype).eps * jnp.max(diagonal)

    def add(step, state):
        factor, left = state
        pivot = jnp.argmax(left)
        column = columns(pivot[None])[:, 0] - matmul(factor, factor[pivot])
        column = jnp.where(left[pivot] > smallest, column / jnp.sqrt(jnp.maximum(left[pivot], smallest)), 0.0)
        # The pivot itself is done with, whatever rounding leaves of it.
        left = jnp.maximum(left - column**2, 0.0).at[pivot].set(0.0)
        return factor.at[:, step].set(column), left

    start = jnp.zeros((len(diagonal), rank), diagonal.dtype), diagonal
    return jax.lax.fori_loop(0, rank, add, start)[0]


# Conjugate gradients


class ConjugateGradients(NamedTuple):
    """The state of the iteration, for all columns."""

    solution: Float[Array, "N m"]
    residual: Float[Array, "N m"]
    direction: Float[Array, "N m"]
    correlation: Float[Array, " m"]  # of residual and preconditioned residual
    iterations: Int[Array, ""]
    indefinite: Array  # whether a direction of negative curvature was met


def conjugate_gradients_start(precondition: Callable, solution, residual, iterations) -> ConjugateGradients:
    """The state that starts from a solution with its residual."""
    direction = precondition(residual)
    correlation = jnp.sum(residual * direction, axis=0)
    return ConjugateGradients(solution, residual, direction, correlation, iterations, jnp.zeros((), bool))


def conjugate_gradients(
    product: Callable, precondition: Callable, state: ConjugateGradients, threshold: Float[Array, " m"], until: Any
) -> ConjugateGradients:
    """Iterate until the recurred residual of every column is below its threshold, or `until` iterations are done.

    Hestenes & Stiefel (1952), preconditioned as in Saad, *Iterative Methods for Sparse Linear Systems*, algorithm
    9.1. Columns that have converged stand still.
    """

    def unfinished(state):
        above = column_norms(state.residual) > threshold
        return jnp.any(above) & (state.iterations < until) & ~state.indefinite

    def step(state):
        image = product(state.direction)
        curvature = jnp.sum(state.direction * image, axis=0)
        # NaN counts as indefinite: the comparison is false.
        active = column_norms(state.residual) > threshold
        indefinite = jnp.any(active & ~(curvature > 0))
        length = jnp.where(active & (curvature > 0), state.correlation / jnp.where(active, curvature, 1.0), 0.0)
        residual = state.residual - length * image
        preconditioned = precondition(residual)
        correlation = jnp.sum(residual * preconditioned, axis=0)
        ratio = jnp.where(active, correlation / jnp.where(active, state.correlation, 1.0), 0.0)
        return ConjugateGradients(
            state.solution + length * state.direction,
            residual,
            preconditioned + ratio * state.direction,
            correlation,
            state.iterations + 1,
            indefinite,
        )

    return jax.lax.while_loop(unfinished, step, state)


# Lanczos


class KrylovSpaces(NamedTuple):
    """Orthonormal bases of the Krylov spaces of all columns, and the matrix in them, which is tridiagonal.

    Arrays have room for more than the `size` vectors in use; the rest is zero.
    """

    basis: Float[Array, "room+1 N m"]
    diagonal: Float[Array, "room m"]
    off_diagonal: Float[Array, "room m"]
    norms: Float[Array, " m"]  # of the columns the spaces start from

    def with_room(self, room: int) -> "KrylovSpaces":
        """The same spaces in larger arrays."""
        more = max(0, room - len(self.diagonal))
        basis, *matrix = (jnp.pad(leaf, [(0, more)] + [(0, 0)] * (leaf.ndim - 1)) for leaf in self[:3])
        return KrylovSpaces(basis, *matrix, norms=self.norms)


def krylov_spaces(start: Float[Array, "N m"]) -> KrylovSpaces:
    """Spaces of one vector each."""
    start, norms = normalised(start)
    empty = jnp.zeros((0, start.shape[1]), start.dtype)
    return KrylovSpaces(start[None], empty, empty, norms)


@eqx.filter_jit
def extend_krylov_spaces(product: Callable, spaces: KrylovSpaces, size: Any, new_size: Any) -> KrylovSpaces:
    """Lanczos steps from `size` to `new_size` vectors, with full reorthogonalisation.

    Golub & Van Loan, *Matrix Computations*, section 10.3.1; two passes of Gram-Schmidt keep the basis orthogonal
    to rounding, so that no copies of eigenvalues appear. An exhausted space is continued with zeros.
    """
    eps = jnp.finfo(spaces.basis.dtype).eps

    def step(k, spaces):
        basis, diagonal, off_diagonal, norms = spaces
        image = product(basis[k])
        scale = column_norms(image)
        along = jnp.sum(basis[k] * image, axis=0)
        for _ in range(2):
            overlap = einsum("knm,nm->km", basis, image)
            image -= einsum("knm,km->nm", basis, overlap)
        length = column_norms(image)
        exhausted = length <= 4 * eps * scale
        length = jnp.where(exhausted, 0.0, length)
        vector = jnp.where(exhausted, 0.0, image / jnp.where(exhausted, 1.0, length))
        return KrylovSpaces(
            basis.at[k + 1].set(vector), diagonal.at[k].set(along), off_diagonal.at[k].set(length), norms
        )

    return jax.lax.fori_loop(size, new_size, step, spaces)


class RitzPairs(NamedTuple):
    """Eigenvalues of the tridiagonal matrices, ascending, and their eigenvectors, `vectors[:, i]`.

    `next_length` is the off-diagonal entry by which the space is coupled to the next vector.
    """

    values: Float[np.ndarray, "k m"]
    vectors: Float[np.ndarray, "k k m"]
    next_length: Float[np.ndarray, " m"]


def ritz_pairs(spaces: KrylovSpaces, size: int) -> RitzPairs:
    """Eigensystems of the tridiagonal matrices of the first `size` vectors, in double precision on the host."""
    diagonal, off_diagonal = (np.asarray(part, np.float64)[:size] for part in spaces[1:3])
    index = np.arange(size)
    matrices = np.zeros((diagonal.shape[1], size, size))
    matrices[:, index, index] = diagonal.T
    matrices[:, index[1:], index[:-1]] = off_diagonal[:-1].T  # the lower triangle is the one that is read
    values, vectors = np.linalg.eigh(matrices)
    return RitzPairs(values.T, np.moveaxis(vectors, 0, -1), off_diagonal[-1])


def quadratures_of_logarithm(spaces: KrylovSpaces, size: int) -> Float[Array, " m"]:
    r"""$v^T \log(A)\, v$ for the vector v that each space starts from, by Lanczos quadrature with `size` nodes.

    Ubaru, Chen & Saad (2017), SIAM J. Matrix Anal. Appl. 38, section 3.
    """
    between = spaces.off_diagonal[: size - 1].T
    matrices = jax.vmap(jnp.diag)(spaces.diagonal[:size].T)
    matrices += jax.vmap(lambda b: jnp.diag(b, 1) + jnp.diag(b, -1))(between)
    values, vectors = jnp.linalg.eigh(matrices)
    weights = vectors[:, 0] ** 2
    # An exhausted space is continued with zeros, which the first vector does not see.
    seen = weights > jnp.finfo(weights.dtype).eps ** 2
    logarithms = jnp.log(jnp.where(seen, values, 1.0))
    return spaces.norms**2 * jnp.sum(weights * logarithms, axis=1)


def column_norms(vectors: Float[Array, "N m"]) -> Float[Array, " m"]:
    """Euclidean norm of every column, also where squares of its entries overflow or underflow."""
    largest = jnp.max(jnp.abs(vectors), axis=0)
    return largest * jnp.sqrt(jnp.sum((vectors / jnp.where(largest > 0, largest, 1.0)) ** 2, axis=0))


def normalised(columns: Float[Array, "N m"]) -> tuple[Float[Array, "N m"], Float[Array, " m"]]:
    """Columns of unit norm, and the norms they had; columns of zeros stay what they are."""
    norms = column_norms(columns)
    return columns / jnp.where(norms > 0, norms, 1.0), norms
