"""Matrices of a function of pairs, over the devices of a mesh: each holds a block of rows.

Features are on every device: they are small beside the matrix. Every device evaluates its share of the upper
triangle with the same tiles as a single one would, and what it mirrors goes to its neighbours.
"""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from gpntk.kernels._tiles import (
    Grouping,
    Tiling,
    cross_blocks,
    cross_product_blocks,
    diagonal_blocks,
    gram_blocks,
    gram_product_blocks,
    n_inputs,
)

# Rows and columns of what devices compute and send at a time, beside the matrix all that they hold.
_LARGEST_BLOCK = 2048
_AXIS = "devices"
_EVERYWHERE, _ROWS = PartitionSpec(), PartitionSpec(_AXIS)


def replicated(values: Any, mesh: Mesh) -> Any:
    """Concrete arrays on all devices of the mesh; processes must agree on them."""
    sharding = NamedSharding(_in_a_row(mesh), _EVERYWHERE)
    return jax.tree.map(lambda leaf: jax.device_put(leaf, sharding) if eqx.is_array(leaf) else leaf, values)


def in_rows(matrix: Any, mesh: Mesh) -> Any:
    """A matrix of the host on the devices as those below leave theirs."""
    sharding = NamedSharding(_in_a_row(mesh), _EVERYWHERE if len(matrix) % mesh.size else _ROWS)
    return jax.device_put(matrix, sharding)


def sharded_cross(pair: Callable, features1: Any, features2: Any, grouping: Grouping, mesh: Mesh) -> Any:
    """`cross_blocks` with the rows of the result on different devices.

    Arguments and results are those of `cross_blocks`. If the devices do not divide the number of rows, each of
    them receives all.
    """
    tiling = _parts(features1, mesh)

    def rows(pair, features1, features2):
        return cross_blocks(pair, tiling.take(features1, _here()), features2, grouping)

    matrix = _on_devices(rows, mesh, _ROWS, pair, tiling.pad(features1), features2)
    return jax.tree.map(lambda leaf: leaf[: tiling.size], matrix)


def sharded_diagonal(diagonal: Callable, features: Any, grouping: Grouping, mesh: Mesh) -> Any:
    """`diagonal_blocks` on different devices, gathered on all."""
    tiling = _parts(features, mesh)

    def rows(diagonal, features):
        return _gathered(diagonal_blocks(diagonal, tiling.take(features, _here()), grouping))

    values = _on_devices(rows, mesh, _EVERYWHERE, diagonal, tiling.pad(features))
    return jax.tree.map(lambda leaf: leaf[: tiling.size], values)


def sharded_gram(pair: Callable, diagonal: Callable, features: Any, grouping: Grouping, mesh: Mesh) -> Any:
    """`gram_blocks` with the rows of the result on different devices, symmetric bit for bit.

    The devices stand in a circle. Each evaluates its rows with those of the devices on the next half of the
    circle, and sends their mirror images there; opposite devices divide what they share like a chessboard.
    """
    parts = _parts(features, mesh)

    def rows(pair, diagonal, features):
        panel = _GramPanel(pair, diagonal, features, grouping, parts)
        values = panel.with_own_square(panel.empty())
        for step in range(1, (mesh.size + 1) // 2):
            values = panel.with_exchange(values, step, panel.fields, panel.fields)
        if mesh.size % 2 == 0:
            values = panel.with_exchange(values, mesh.size // 2, *panel.chessboard())
        return panel.without_padding(panel.with_exact_diagonal(values))

    matrix = _on_devices(rows, mesh, _ROWS, pair, diagonal, parts.pad(features))
    return jax.tree.map(lambda leaf: leaf[: parts.size, : parts.size], matrix)


class _GramPanel:
    """The rows of a Gram matrix on the device at hand, with all columns, while they are computed.

    The inputs of every device are divided into blocks; what a block of rows and one of columns make is a *field*.

    Args:
        pair: as for `gram_blocks`.
        diagonal: as for `gram_blocks`.
        features: of all inputs, padded by `parts`.
        grouping: as for `gram_blocks`.
        parts: the inputs of each device.
    """

    def __init__(self, pair: Callable, diagonal: Callable, features: Any, grouping: Grouping, parts: Tiling):
        self.pair, self.diagonal, self.features, self.grouping = pair, diagonal, features, grouping
        self.parts, self.count, self.here = parts, parts.tiles, _here()
        # A chessboard has an even number of fields on a side.
        n_blocks = _n_blocks(parts.block, even=self.count % 2 == 0)
        self.blocks = Tiling(parts.block, n_blocks, math.ceil(parts.block / n_blocks))
        self.fields = tuple(np.indices((n_blocks, n_blocks)).reshape(2, -1))
        self.own = self.inputs_of(self.here)

    def inputs_of(self, device) -> Any:
        """Features of the inputs of a device, padded to whole blocks."""
        return self.blocks.pad(self.parts.take(self.features, device))

    def empty(self) -> Any:
        """Zeros in the place of values."""
        one = self.blocks.take(self.own, 0)
        shape = self.blocks.padded, self.count * self.blocks.padded
        return jax.tree.map(lambda leaf: jnp.zeros(shape, leaf.dtype), jax.eval_shape(self.pair, one, one))

    def field(self, row, others: Any, column) -> Any:
        """Values of one of our blocks and one of the inputs of any device."""
        return cross_blocks(
            self.pair, self.blocks.take(self.own, row), self.blocks.take(others, column), self.grouping
        )

    def write(self, values: Any, field: Any, row, device, column) -> Any:
        """The values with those of one field, whose columns are of the given device."""
        start = row * self.blocks.block, device * self.blocks.padded + column * self.blocks.block
        return jax.tree.map(lambda v, f: jax.lax.dynamic_update_slice(v, f, start), values, field)

    def with_own_square(self, values: Any) -> Any:
        """Our inputs with each other."""

        def on_diagonal(values, index):
            square = gram_blocks(self.pair, self.diagonal, self.blocks.take(self.own, index), self.grouping)
            return self.write(values, square, index, self.here, index), None

        def beside_it(values, index):
            row, column = index
            field = self.field(row, self.own, column)
            values = self.write(values, field, row, self.here, column)
            return self.write(values, _transposed(field), column, self.here, row), None

        values = jax.lax.scan(on_diagonal, values, np.arange(self.blocks.tiles))[0]
        return jax.lax.scan(beside_it, values, np.triu_indices(self.blocks.tiles, 1))[0]

    def with_exchange(self, values: Any, step: int, mine: Any, theirs: Any) -> Any:
        """With the device `step` places ahead the fields `mine`, of which the one behind sends me `theirs`."""
        there, behind = (self.here + step) % self.count, (self.here - step) % self.count
        others = self.inputs_of(there)

        def exchange(values, indices):
            (row, column), (their_row, their_column) = indices
            field = self.field(row, others, column)
            arrived = _sent(_transposed(field), step, self.count)
            values = self.write(values, field, row, there, column)
            return self.write(values, arrived, their_column, behind, their_row), None

        return jax.lax.scan(exchange, values, (mine, theirs))[0]

    def chessboard(self) -> tuple[Any, Any]:
        """Of the fields that opposite devices share: those that we evaluate, and those that the other one does."""
        rows, columns = self.fields
        white, black = (tuple(i[(rows + columns) % 2 == c] for i in (rows, columns)) for c in (0, 1))
        low = self.here < self.count // 2
        mine, theirs = (jax.tree.map(lambda w, b, c=c: jnp.where(c, w, b), white, black) for c in (low, ~low))
        return mine, theirs

    def with_exact_diagonal(self, values: Any) -> Any:
        """Once more the diagonal, evaluated with the same neighbours as by `sharded_diagonal`: the same bits."""
        exact = diagonal_blocks(self.diagonal, self.parts.take(self.features, self.here), self.grouping)
        index = np.arange(self.blocks.size)
        place = index, self.here * self.blocks.padded + index
        return jax.tree.map(lambda v, e: v.at[place].set(e), values, exact)

    def without_padding(self, values: Any) -> Any:
        """The values of whole inputs."""
        size, padded = self.blocks.size, self.blocks.padded
        if size == padded:
            return values
        by_device = jax.tree.map(lambda v: v.reshape(padded, self.count, padded), values)
        return jax.tree.map(lambda v: v[:size, :, :size].reshape(size, -1), by_device)


def _n_blocks(size: int, even: bool) -> int:
    """Into how many parts the inputs of a device are divided: if possible equal ones, which need no padding."""
    fewest = math.ceil(size / _LARGEST_BLOCK)
    candidates = [n for n in range(fewest, 2 * fewest + 2) if not (even and n % 2)]
    return next((n for n in candidates if size % n == 0), candidates[0])


def _transposed(block: Any) -> Any:
    return jax.tree.map(jnp.transpose, block)


def sharded_gram_product(
    pair: Callable, diagonal: Callable, features: Any, vectors: Float[Array, "N m"], block_size: int, mesh: Mesh
) -> Float[Array, "N m"]:
    """`gram_product_blocks` with an equal share of the tiles on every device; the sum is on all."""

    def share(pair, diagonal, features, vectors):
        mine = _here(), mesh.size
        return jax.lax.psum(gram_product_blocks(pair, diagonal, features, vectors, block_size, mine), _AXIS)

    return _on_devices(share, mesh, _EVERYWHERE, pair, diagonal, features, vectors)


def sharded_cross_product(
    pair: Callable, features1: Any, features2: Any, vectors: Float[Array, "N2 m"], block_size: int, mesh: Mesh
) -> Float[Array, "N1 m"]:
    """`cross_product_blocks` with the rows on different devices, gathered on all."""
    tiling = _parts(features1, mesh)

    def rows(pair, features1, features2, vectors):
        own = tiling.take(features1, _here())
        return _gathered(cross_product_blocks(pair, own, features2, vectors, block_size))

    return _on_devices(rows, mesh, _EVERYWHERE, pair, tiling.pad(features1), features2, vectors)[: tiling.size]


def _on_devices(function: Callable, mesh: Mesh, out_specs: PartitionSpec, *arguments: Any) -> Any:
    """`function(*arguments)` on every device, arguments being the same everywhere; kernels are among them."""
    arrays, rest = eqx.partition(arguments, eqx.is_array)

    def local(arrays):
        return function(*eqx.combine(arrays, rest))

    # Loops inside of kernels start from zeros, which vary over the devices only later: JAX would refuse them.
    return jax.shard_map(local, mesh=_in_a_row(mesh), in_specs=_EVERYWHERE, out_specs=out_specs, check_vma=False)(
        arrays
    )


def _in_a_row(mesh: Mesh) -> Mesh:
    return Mesh(mesh.devices.reshape(-1), (_AXIS,))


def _parts(features: Any, mesh: Mesh) -> Tiling:
    """One block of inputs a device."""
    size = n_inputs(features)
    return Tiling(size, mesh.size, math.ceil(size / mesh.size))


def _here() -> Array:
    return jax.lax.axis_index(_AXIS)


def _sent(block: Any, step: int, count: int) -> Any:
    """What arrives if every device sends its block so many places further."""
    return jax.lax.ppermute(block, _AXIS, [(i, (i + step) % count) for i in range(count)])


def _gathered(values: Any) -> Any:
    return jax.lax.all_gather(values, _AXIS, tiled=True)
