"""Functions of a symmetric matrix, from one eigendecomposition, with derivatives at equal eigenvalues.

The derivative of eigenvectors divides by differences of eigenvalues, and a kernel that respects a symmetry of
the data has equal ones. A function `r` of the matrix has no such singularity: its derivative holds divided
differences `(r(a) - r(b)) / (a - b)`, which tend to `r'(a)`.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gpntk._products import matmul
from gpntk.dynamics._responses import Response


class Eigensystem(NamedTuple):
    """A symmetric matrix with its eigenvalues, in ascending order, and orthonormal eigenvectors (columns)."""

    matrix: Float[Array, "N N"]
    eigenvalues: Float[Array, " N"]
    eigenvectors: Float[Array, "N N"]


@jax.jit
def eigensystem(matrix: Float[Array, "N N"]) -> Eigensystem:
    """Eigendecomposition; what it costs is all that `matrix_function` costs, for any number of functions."""
    return Eigensystem(matrix, *_decompose(matrix))


@jax.custom_jvp
def _decompose(matrix):
    eigenvectors, eigenvalues = jax.lax.linalg.eigh(matrix, symmetrize_input=False)
    return eigenvalues, eigenvectors


@_decompose.defjvp
def _decompose_jvp(primals, tangents):
    # Derivatives go through `Eigensystem.matrix`. These tangents only mark what depends on it, see `_once`.
    eigenvalues, eigenvectors = _decompose(*primals)
    mark = 0.0 * tangents[0][0, 0]
    return (eigenvalues, eigenvectors), (mark + jnp.zeros_like(eigenvalues), mark + jnp.zeros_like(eigenvectors))


@jax.custom_jvp
def _once(x):
    """The identity, for what is constant in the first derivative and must not be taken for so in the second."""
    return x


@_once.defjvp
def _once_jvp(primals, tangents):
    raise NotImplementedError(
        "Second derivatives with respect to the kernel are not implemented at finite training time; "
        "they are at time = inf."
    )


@functools.partial(jax.jit, static_argnums=0)
def matrix_function(
    response: Response, system: Eigensystem, clock: Any, rhs: Float[Array, "N q"]
) -> Float[Array, "N q"]:
    """`response(matrix, clock) @ rhs`, differentiable once in the matrix, and in clock and right-hand side.

    Derivatives follow Daleckii & Krein (1965); see Higham, *Functions of Matrices*, Theorem 3.11.
    """
    return _apply(response, *system, clock, rhs)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _apply(response, matrix, eigenvalues, eigenvectors, clock, rhs):
    return matmul(eigenvectors, response.value(eigenvalues, clock)[:, None] * matmul(eigenvectors.T, rhs))


@_apply.defjvp
def _apply_jvp(response, primals, tangents):
    _, eigenvalues, eigenvectors, clock, rhs = primals
    matrix_dot, _, _, clock_dot, rhs_dot = tangents
    eigenvalues, eigenvectors = _once(eigenvalues), _once(eigenvectors)
    projected = matmul(eigenvectors.T, rhs)
    values, values_dot = jax.jvp(lambda c: response.value(eigenvalues, c), (clock,), (clock_dot,))
    rotated = matmul(eigenvectors.T, matmul(matrix_dot, eigenvectors))
    through_matrix = matmul(divided_difference(response, eigenvalues, clock) * rotated, projected)
    inner_dot = (
        through_matrix + values_dot[:, None] * projected + values[:, None] * matmul(eigenvectors.T, rhs_dot)
    )
    return matmul(eigenvectors, values[:, None] * projected), matmul(eigenvectors, inner_dot)


def divided_difference(response: Response, eigenvalues: Float[Array, " N"], clock: Any) -> Float[Array, "N N"]:
    """`(r(a) - r(b)) / (a - b)` for all pairs of eigenvalues, and `r'` in the middle where they are close.

    Closer than eps^(1/3) of the scale of `r`, the derivative in the middle is as good as the quotient: either
    is wrong by about eps^(2/3), relatively.
    """
    values = response.value(eigenvalues, clock)
    difference = eigenvalues[:, None] - eigenvalues
    middle = (eigenvalues[:, None] + eigenvalues) / 2
    slope = jax.jvp(lambda b: response.value(b, clock), (middle,), (jnp.ones_like(middle),))[1]
    close = jnp.abs(difference) < jnp.finfo(middle.dtype).eps ** (1 / 3) * response.scale(middle, clock)
    return jnp.where(close, slope, (values[:, None] - values) / jnp.where(close, 1.0, difference))
