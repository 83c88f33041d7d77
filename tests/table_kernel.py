"""A kernel that is a matrix, to test what is made of Gram matrices on any of them."""

import jax
import jax.numpy as jnp
import numpy as np
from gpjax.kernels import AbstractKernel


class Table(AbstractKernel):
    """The kernel whose values are the entries of a given matrix; inputs are row numbers."""

    matrix: jax.Array

    def __init__(self, matrix):
        self.matrix = jnp.asarray(matrix)
        super().__init__()

    def __call__(self, x, y):
        return self.matrix[x[0].astype(int), y[0].astype(int)]


def rows(n):
    """The inputs of a table of n rows."""
    return np.arange(n, dtype=float)[:, None]


def close(a, b, tolerance):
    """Assert that arrays agree, relatively to the largest entry of the second."""
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())
