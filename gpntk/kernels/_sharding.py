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
_LARGEST_FIELD = 2048
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
    count, parts = mesh.size, _parts(features, mesh)
    # A chessboard has an even number of fields on a side.
    fields = _fields(parts.block, even=count % 2 == 0)
    inner = Tiling(parts.block, fields, math.ceil(parts.block / fields))
    rows, columns = np.indices((fields, fields)).reshape(2, -1)

    def panel(pair, diagonal, features):
        here = _here()
        own = inner.pad(parts.take(features, here))

        def write(panel, block, row, device, column):
            start = row * inner.block, device * inner.padded + column * inner.block
            return jax.tree.map(lambda p, b: jax.lax.dynamic_update_slice(p, b, start), panel, block)

        def on_diagonal(panel, index):
            block = gram_blocks(pair, diagonal, inner.take(own, index), grouping)
            return write(panel, block, index, here, index), None

        def beside_it(panel, index):
            row, column = index
            block = cross_blocks(pair, inner.take(own, row), inner.take(own, column), grouping)
            panel = write(panel, block, row, here, column)
            return write(panel, _transposed(block), column, here, row), None

        def exchange(panel, step, mine, theirs):
            """With the device `step` places ahead the fields `mine`, of which the one behind sends me `theirs`."""
            there, behind = (here + step) % count, (here - step) % count
            others = inner.pad(parts.take(features, there))

            def field(panel, indices):
                (row, column), (their_row, their_column) = indices
                block = cross_blocks(pair, inner.take(own, row), inner.take(others, column), grouping)
                arrived = _sent(_transposed(block), step, count)
                panel = write(panel, block, row, there, column)
                return write(panel, arrived, their_column, behind, their_row), None

            return jax.lax.scan(field, panel, (mine, theirs))[0]

        values = jax.eval_shape(pair, inner.take(own, 0), inner.take(own, 0))
        panel = jax.tree.map(lambda leaf: jnp.zeros((inner.padded, count * inner.padded), leaf.dtype), values)
        panel = jax.lax.scan(on_diagonal, panel, np.arange(fields))[0]
        panel = jax.lax.scan(beside_it, panel, np.triu_indices(fields, 1))[0]
        for step in range(1, (count + 1) // 2):
            panel = exchange(panel, step, (rows, columns), (rows, columns))
        if count % 2 == 0:
            colours = [tuple(i[(rows + columns) % 2 == colour] for i in (rows, columns)) for colour in (0, 1)]
            white, black = (jax.tree.map(jnp.asarray, squares) for squares in colours)
            low = here < count // 2
            mine, theirs = (jax.tree.map(lambda w, b, c=c: jnp.where(c, w, b), white, black) for c in (low, ~low))
            panel = exchange(panel, count // 2, mine, theirs)
        # Once more the diagonal, evaluated with the same neighbours as by `sharded_diagonal`: the same bits.
        index, exact = np.arange(inner.size), diagonal_blocks(diagonal, parts.take(features, here), grouping)
        place = index, here * inner.padded + index
        panel = jax.tree.map(lambda p, values: p.at[place].set(values), panel, exact)
        if inner.padded > inner.size:
            panel = jax.tree.map(without_padding, panel)
        return panel

    def without_padding(panel):
        by_device = panel.reshape(inner.padded, count, inner.padded)
        return by_device[: inner.size, :, : inner.size].reshape(inner.size, -1)

    matrix = _on_devices(panel, mesh, _ROWS, pair, diagonal, parts.pad(features))
    return jax.tree.map(lambda leaf: leaf[: parts.size, : parts.size], matrix)


def _fields(size: int, even: bool) -> int:
    """Into how many parts the rows of a device are divided: if possible equal ones, which need no padding."""
    fewest = math.ceil(size / _LARGEST_FIELD)
    candidates = [fields for fields in range(fewest, 2 * fewest + 2) if not (even and fields % 2)]
    return next((fields for fields in candidates if size % fields == 0), candidates[0])


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
