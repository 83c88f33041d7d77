"""What averages over a group need to know of it."""

import abc
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from gpntk import _checks


class AbstractGroup(abc.ABC):
    r"""A group acting on input vectors, as a weighted set of its elements.

    A finite group is the set of all its elements with equal weights, a compact one a quadrature. Groups are
    immutable and hashable and hold no JAX arrays: kernels and networks carry them as static structure.
    """

    @property
    @abc.abstractmethod
    def order(self) -> int:
        """The number of elements (or of quadrature nodes)."""

    @property
    @abc.abstractmethod
    def weights(self) -> np.ndarray:
        """Weights of the elements in an average over the group, of shape (order,), with sum 1."""

    @property
    @abc.abstractmethod
    def n_features(self) -> int:
        """The dimension D of the inputs that the group acts on."""

    @property
    @abc.abstractmethod
    def is_orthogonal(self) -> bool:
        """Whether every element acts by an orthogonal matrix, so that inner products are invariant."""

    @abc.abstractmethod
    def transform(self, x: Float[ArrayLike, "N D"], index: int | jax.Array) -> Float[Array, "N D"]:
        r"""Inputs transformed by one element: $\rho(g) f = f \circ g^{-1}$. The index may be traced."""

    def _checked_index(self, index: Any) -> Any:
        """The number of an element; a traced one is not checked.

        Raises:
            ValueError: if there is no such element.
            TypeError: if it is not an integer.
        """
        if _checks.is_traced(index):
            return index
        is_array = isinstance(index, jax.Array | np.ndarray) and index.shape == ()
        is_whole = is_array and jnp.issubdtype(index.dtype, jnp.integer)
        number = _checks.integer("index", int(index) if is_whole else index, minimum=0)
        if number >= self.order:
            raise ValueError(f"`index` must be below {self.order}, the order of the group, got {number}.")
        return number

    def act(self, x: Float[ArrayLike, "N D"]) -> Float[Array, "order N D"]:
        """Inputs transformed by every element."""
        return jax.vmap(self.transform, in_axes=(None, 0))(x, jnp.arange(self.order))
