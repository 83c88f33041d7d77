"""Kernels of sets: sums of a kernel over the elements of both inputs."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from gpjax.kernels import AbstractKernel
from gpjax.kernels.computations import AbstractKernelComputation
from jaxtyping import Array, Bool, Float

from gpntk import _checks
from gpntk.kernels._base import AbstractFeatureKernel, with_features
from gpntk.kernels._engine import BlockedComputation
from gpntk.kernels._tiles import default_block_size


class _AbstractSetKernel(AbstractFeatureKernel):
    """What sums over elements share: elements as features, and slots that are passed over where all are absent."""

    kernel: AbstractKernel
    max_size: int = eqx.field(static=True)

    def __init__(
        self,
        kernel: AbstractKernel,
        max_size: int,
        *,
        active_dims: list[int] | slice | None = None,
        n_dims: int | None = None,
        compute_engine: AbstractKernelComputation = BlockedComputation(),  # noqa: B008 (immutable)
    ):
        self.kernel = _checks.instance("kernel", kernel, AbstractKernel, "a GPJax kernel such as gpntk.NTK(net)")
        self.max_size = _checks.integer("max_size", max_size, minimum=1)
        super().__init__(active_dims=active_dims, n_dims=n_dims, compute_engine=compute_engine)

    @property
    def sites_per_pair(self):
        return self._elements.sites_per_pair

    @property
    def grouping(self):
        # Tiles: in a list of pairs, what one of them skips all would compute.
        return default_block_size(self.sites_per_pair)

    def check_features(self, features):
        elements, _ = features
        self._elements.check_features(jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), elements))

    def features(self, x):
        elements = self._blocks(self.slice_input(x))
        present = jnp.any(elements != 0, -1)
        elements, present = self.order(elements, present)
        features = self._elements.features(elements.reshape(-1, elements.shape[-1]))
        per_set = jax.tree.map(lambda leaf: leaf.reshape(*present.shape, *leaf.shape[1:]), features)
        return per_set, present

    @abc.abstractmethod
    def order(
        self, elements: Float[Array, "N s d"], present: Bool[Array, "N s"]
    ) -> tuple[Float[Array, "N s d"], Bool[Array, "N s"]]:
        """Elements and whether they are present, in the order in which slots are gone through."""

    def slot_pair(self, first: Any, second: Any) -> Float[Array, "N1 N2"]:
        """The kernel of one slot of all first sets and one of all second sets; 0 where one of them is absent."""
        (elements1, present1), (elements2, present2) = first, second
        shape = jax.eval_shape(self._elements.pair, elements1, elements2)

        def evaluate():
            values = self._elements.pair(elements1, elements2)
            return jnp.where(present1[:, None] & present2[None, :], values, 0.0)

        # Most slots beyond the size of a set are empty in the whole tile.
        needed = jnp.any(present1) & jnp.any(present2)
        return jax.lax.cond(needed, evaluate, lambda: jnp.zeros(shape.shape, shape.dtype))

    @property
    def _elements(self) -> AbstractFeatureKernel:
        """The kernel of elements."""
        return with_features(self.kernel)

    def _blocks(self, x: Float[Array, "N D"]) -> Float[Array, "N s d"]:
        x = _checks.inputs("x", x)
        if x.shape[1] % self.max_size:
            raise ValueError(
                f"x has {x.shape[1]} features, but must have a multiple of `max_size`, {self.max_size}: a block "
                "of equal length for every element."
            )
        return x.reshape(len(x), self.max_size, -1)


class SetSum(_AbstractSetKernel):
    r"""The kernel of sums over sets: $k(X, X') = \sum_{i \in X} \sum_{j \in X'} k(x_i, x'_j)$.

    If k is the NNGP or the NTK of a network f, this is that of $F(X) = \sum_i f(x_i)$, one network with shared
    weights for all elements: outputs do not depend on their order, and empty sets give 0. A prediction for a
    molecule as a sum over its atoms is of this form (Bartok et al. 2010, Phys. Rev. Lett. 104, 136403).

    Args:
        kernel: the kernel of elements, any GPJax kernel.
        max_size: number of blocks in a row of the inputs, of equal length, one an element. A block of zeros is no
            element.
        active_dims: columns of the inputs that hold the blocks, as for any GPJax kernel.
        n_dims: number of those columns, as for any GPJax kernel.
        compute_engine: how matrices are evaluated.

    Raises:
        ValueError: if `max_size` is below 1; later, if the columns are not so many blocks of equal length.
        TypeError: if `kernel` is not a GPJax kernel.
    """

    def __init__(  # spelled out as in `gpntk.MLP`
        self,
        kernel: AbstractKernel,
        max_size: int,
        *,
        active_dims: list[int] | slice | None = None,
        n_dims: int | None = None,
        compute_engine: AbstractKernelComputation = BlockedComputation(),  # noqa: B008 (immutable)
    ):
        super().__init__(kernel, max_size, active_dims=active_dims, n_dims=n_dims, compute_engine=compute_engine)

    def order(self, elements, present):
        # Present ones first: the last slots are empty in all sets of a tile then.
        order = jnp.argsort(~present, axis=1, stable=True)
        return jnp.take_along_axis(elements, order[..., None], 1), jnp.take_along_axis(present, order, 1)

    def pair(self, features1, features2):
        def add(total, first):
            inner = jax.checkpoint(lambda t, second: (t + self.slot_pair(first, second), None))
            return jax.lax.scan(inner, total, slots2)[0], None

        slots1, slots2 = _by_slot(features1), _by_slot(features2)
        return _accumulate(add, self.slot_pair, slots1, slots2)

    def diagonal_values(self, features):
        def one(features):
            elements, present = features
            values, exact = self._elements.pair(elements, elements), self._elements.diagonal_values(elements)
            row = jnp.arange(self.max_size)
            values = jnp.where(row[:, None] == row, exact[:, None], values)
            return jnp.sum(jnp.where(present[:, None] & present, values, 0.0))

        return jax.lax.map(jax.checkpoint(one), features)


class SlotSum(_AbstractSetKernel):
    r"""The kernel of sums over slots: $k(X, X') = \sum_i k(x_i, x'_i)$, over slots filled in both.

    If k is the NNGP or the NTK of a network, this is that of a sum of networks with weights of their own for every
    slot: outputs depend on the order of elements. Cheaper than `SetSum` by `max_size`. Arguments are those of
    `SetSum`.
    """

    def __init__(  # spelled out as in `gpntk.MLP`
        self,
        kernel: AbstractKernel,
        max_size: int,
        *,
        active_dims: list[int] | slice | None = None,
        n_dims: int | None = None,
        compute_engine: AbstractKernelComputation = BlockedComputation(),  # noqa: B008 (immutable)
    ):
        super().__init__(kernel, max_size, active_dims=active_dims, n_dims=n_dims, compute_engine=compute_engine)

    def order(self, elements, present):
        return elements, present

    def pair(self, features1, features2):
        def add(total, slot):
            return total + self.slot_pair(*slot), None

        slots1, slots2 = _by_slot(features1), _by_slot(features2)
        return _accumulate(add, self.slot_pair, slots1, slots2, paired=True)

    def diagonal_values(self, features):
        def add(total, slot):
            elements, present = slot
            return total + jnp.where(present, self._elements.diagonal_values(elements), 0.0), None

        slots = _by_slot(features)
        shape = jax.eval_shape(self._elements.diagonal_values, jax.tree.map(lambda leaf: leaf[0], slots[0]))
        return jax.lax.scan(jax.checkpoint(add), jnp.zeros(shape.shape, shape.dtype), slots)[0]


def _by_slot(features: Any) -> Any:
    """Slots on the leading axis instead of sets."""
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), features)


def _accumulate(add, slot_pair, slots1, slots2, paired: bool = False) -> Float[Array, "N1 N2"]:
    """Slots one after the other: memory is that of one, and the backward pass evaluates them again."""
    first, second = (jax.tree.map(lambda leaf: leaf[0], slots) for slots in (slots1, slots2))
    shape = jax.eval_shape(slot_pair, first, second)
    start = jnp.zeros(shape.shape, shape.dtype)
    return jax.lax.scan(jax.checkpoint(add), start, (slots1, slots2) if paired else slots1)[0]
