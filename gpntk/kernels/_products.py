"""Gram matrices as what they do to vectors: matrices too large for memory are recomputed in tiles at every use."""

from typing import Any

import equinox as eqx
import jax
from gpjax.kernels import AbstractKernel
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from gpntk import _checks
from gpntk._features import checked_features
from gpntk.kernels._base import AbstractFeatureKernel, with_features
from gpntk.kernels._engine import BlockedComputation
from gpntk.kernels._sharding import sharded_cross_product, sharded_gram_product
from gpntk.kernels._tiles import (
    column_blocks,
    cross_product_blocks,
    diagonal_blocks,
    gram_product_blocks,
    n_inputs,
)


class GramOperator(eqx.Module):
    """The Gram matrix of a kernel on a set of inputs, without ever holding it.

    A product with vectors evaluates the upper triangle of the matrix in tiles, each of which is used for all
    vectors and dropped: it costs half the kernel evaluations of the matrix, and the memory of the vectors and a
    few tiles. Vectors in a higher precision than the kernel's keep theirs: a float32 kernel times float64 vectors
    is accumulated in float64, which is what iterative solvers need.

    Products are pure functions of the kernel's parameters: they work under `jit`, `grad` and `vmap`, and
    recompute tiles in the backward pass.

    Args:
        kernel: a GPJax kernel; those of other packages are evaluated tile by tile as well.
        x: inputs, (N, D).

    Raises:
        ValueError: if `x` is not a finite 2-D array that fits the kernel.
        TypeError: if `kernel` is not a GPJax kernel of one output.

    >>> import gpntk, jax.numpy as jnp
    >>> x = jnp.linspace(-1.0, 1.0, 5)[:, None]
    >>> operator = gpntk.GramOperator(gpntk.NTK(gpntk.MLP()), x)
    >>> bool(jnp.allclose(operator @ jnp.eye(5), operator.kernel.gram(x).as_matrix(), atol=1e-6))
    True
    """

    kernel: AbstractFeatureKernel
    features: Any
    _n_columns: int = eqx.field(static=True)

    def __init__(self, kernel: AbstractKernel, x: Float[ArrayLike, "N D"]):
        _checks.instance("kernel", kernel, AbstractKernel, "a GPJax kernel such as gpntk.NTK(gpntk.MLP())")
        x = _checks.inputs("x", x)
        self.kernel, self._n_columns = with_features(kernel), x.shape[1]
        self.features = self._engine.placed(checked_features(self.kernel, x))

    @property
    def _engine(self) -> BlockedComputation:
        return self.kernel.blocked_engine

    @property
    def _side(self) -> int:
        return self._engine.side(self.kernel)

    @property
    def size(self) -> int:
        """N, the number of inputs."""
        return n_inputs(self.features)

    @property
    def dtype(self) -> Any:
        """The precision of the kernel's values."""
        return eqx.filter_eval_shape(self.kernel.diagonal_values, self.features).dtype

    def __matmul__(self, vectors: Float[Array, "N ..."]) -> Float[Array, "N ..."]:
        """The product with one vector (N,) or with the columns of (N, m)."""
        vectors = self._checked_vectors(vectors)
        return _gram_product(self, vectors.reshape(self.size, -1)).reshape(vectors.shape)

    def diagonal(self) -> Float[Array, " N"]:
        """The exact diagonal."""
        return _diagonal(self)

    def columns(self, indices: Int[Array, " k"]) -> Float[Array, "N k"]:
        """The columns at `indices`; for use inside compiled loops."""
        taken = jax.tree.map(lambda leaf: leaf[indices], self.features)
        return column_blocks(self.kernel.pair, self.features, taken, self._side)

    def cross_product(self, x: Float[Array, "M D"], vectors: Float[Array, "N ..."]) -> Float[Array, "M ..."]:
        """`k(x, X) @ vectors` for new inputs `x`, without the matrix of M x N kernel values."""
        vectors = self._checked_vectors(vectors)
        x = _checks.inputs("x", x, self._n_columns, "operator")
        features = self._engine.placed(checked_features(self.kernel, x))
        products = _cross_product(self, features, vectors.reshape(self.size, -1))
        return products.reshape(len(products), *vectors.shape[1:])

    def _checked_vectors(self, vectors):
        vectors = _checks.floating_array("vectors", vectors)
        if vectors.ndim not in (1, 2) or vectors.shape[0] != self.size or vectors.size == 0:
            raise ValueError(f"`vectors` must have shape ({self.size},) or ({self.size}, m), got {vectors.shape}.")
        return self._engine.placed(vectors)


@eqx.filter_jit
def _gram_product(operator, vectors):
    kernel, mesh = operator.kernel, operator._engine.mesh
    arguments = kernel.pair, kernel.diagonal_values, operator.features, vectors, operator._side
    return gram_product_blocks(*arguments) if mesh is None else sharded_gram_product(*arguments, mesh)


@eqx.filter_jit
def _cross_product(operator, features, vectors):
    mesh = operator._engine.mesh
    arguments = operator.kernel.pair, features, operator.features, vectors, operator._side
    return cross_product_blocks(*arguments) if mesh is None else sharded_cross_product(*arguments, mesh)


@eqx.filter_jit
def _diagonal(operator):
    return diagonal_blocks(operator.kernel.diagonal_values, operator.features, operator._side)
