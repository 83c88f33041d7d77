"""Training with the Gram matrix in memory: what its factorisations give, and spreads of outputs.

Notation is that of `GradientFlow`: weights enter by `root_weights`, (N, 1), the diagonal of S.
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp

from gpntk._products import matmul
from gpntk.dynamics._spectral import matrix_function


@jax.jit
def weighted(gram, root_weights, alpha):
    """`B = S Theta S + alpha I`."""
    return root_weights * gram * root_weights.T + jnp.diag(jnp.broadcast_to(alpha, len(gram)).astype(gram.dtype))


@jax.jit
def factorise(gram, root_weights, alpha):
    """The upper Cholesky factor R of `B = R^T R`."""
    matrix = weighted(gram, root_weights, alpha)  # in this very function, which may then overwrite it
    # LAPACK stores columns and JAX rows: with both transposes written here, XLA copies nothing to reorder it.
    return jax.lax.linalg.cholesky(matrix.T, symmetrize_input=False).T


@jax.jit
def smallest_pivot(factor, gram, root_weights, alpha):
    """The smallest pivot of the factorisation of B relative to the diagonal of B."""
    diagonal = root_weights[:, 0] ** 2 * jnp.diagonal(gram) + alpha
    return jnp.min(jnp.diagonal(factor) ** 2 / diagonal)


@functools.partial(jax.jit, static_argnums=3)
def solved(factor, root_weights, rhs, copies: int):
    """`S B^-1 S rhs` from the upper Cholesky factor of B, as many times as there are infinite times."""
    solution = root_weights * jax.scipy.linalg.cho_solve((factor.T, True), root_weights * rhs)
    return jnp.broadcast_to(solution, (copies, *solution.shape))


@functools.partial(jax.jit, static_argnums=0)
def responded(response, system, clock, root_weights, rhs):
    """`S r(B) S rhs` from the eigensystem of B, for a vector of clocks."""
    respond = jax.vmap(matrix_function, in_axes=(None, None, 0, None))
    return root_weights * respond(response, system, clock, root_weights * rhs)


@jax.jit
def products(matrix, vectors):
    return matmul(matrix, vectors)


@jax.jit
def quadratic(matrix, vectors):
    return matmul(vectors.T, matmul(matrix, vectors))


@eqx.filter_jit
def propagated(prior, images, prior_cross, responses, diagonal: bool):
    """`(1, -A) K (1, -A)^T` or its diagonal, for `responses = A^T` (T, N, M) and their images under K(X, X)."""
    half = images / 2 - prior_cross.T
    if diagonal:
        return jnp.maximum(prior + 2 * jnp.sum(responses * half, axis=1), 0.0)
    change = matmul(jnp.swapaxes(responses, 1, 2), half)
    return prior + change + jnp.swapaxes(change, 1, 2)


@eqx.filter_jit
def spread_in_eigenbasis(
    response, system, clock, rotated_prior, root_weights, prior, prior_cross, cross, diagonal: bool
):
    """`propagated` for a vector of clocks, with the eigenvectors of B as the basis: one product a clock."""
    to_basis = (root_weights * system.eigenvectors).T
    cross, prior_cross = matmul(to_basis, cross.T), matmul(to_basis, prior_cross.T)

    def at(clock):
        responses = response.value(system.eigenvalues, clock)[:, None] * cross
        images = matmul(rotated_prior, responses)
        return propagated(prior, images[None], prior_cross.T, responses[None], diagonal)[0]

    return jax.lax.map(at, clock)
