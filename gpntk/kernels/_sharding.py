"""Matrices of a function of pairs, over the devices of a mesh: each holds a block of rows.

Features are on every device: they are small beside the matrix. Every device evaluates its share of the upper
triangle with the same tiles as a single one would, and what it mirrors goes to its neighbours.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
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

_AXIS = "devices"
_EVERYWHERE, _ROWS = PartitionSpec(), PartitionSpec(_AXIS)


def replicated(values: Any, mesh: Mesh) -> Any:
    """Concrete arrays on all devices of the mesh; processes must agree on them."""
    sharding = NamedSharding(_in_a_row(mesh), _EVERYWHERE)
    return jax.tree.map(lambda leaf: jax.device_put(leaf, sharding) if eqx.is_array(leaf) else leaf, values)


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

    The devices stand in a circle. Each evaluates the blocks of its rows with those of the next half of the circle,
    and sends their mirror images there; opposite devices share the block they have in common.
    """
    count = mesh.size
    tiling = _parts(features, mesh)

    def rows(pair, diagonal, features):
        here = _here()
        own = tiling.take(features, here)
        positions, blocks = [here], [gram_blocks(pair, diagonal, own, grouping)]
        for step in range(1, (count + 1) // 2):
            there = (here + step) % count
            block = cross_blocks(pair, own, tiling.take(features, there), grouping)
            mirrored = _sent(jax.tree.map(jnp.transpose, block), step, count)
            positions, blocks = [*positions, there, (here - step) % count], [*blocks, block, mirrored]
        if count % 2 == 0:
            positions.append((here + count // 2) % count)
            blocks.append(_opposite(pair, features, grouping, tiling))
        return jax.tree.map(lambda *leaves: _in_columns(leaves, positions, tiling), *blocks)

    matrix = _on_devices(rows, mesh, _ROWS, pair, diagonal, tiling.pad(features))
    return jax.tree.map(lambda leaf: leaf[: tiling.size, : tiling.size], matrix)


def _opposite(pair, features, grouping, tiling) -> Any:
    """The block of an even number of devices that lies between opposite ones, of which each evaluates one half."""
    here, half = _here(), tiling.tiles // 2
    low = here % half
    is_low = here < half
    rows = tiling.block // 2
    start = low * tiling.block + jnp.where(is_low, 0, rows)
    part = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, rows), features)
    mine = cross_blocks(pair, part, tiling.take(features, low + half), grouping)

    def whole(mine):
        other = _sent(mine, half, tiling.tiles)
        block = jnp.concatenate([jnp.where(is_low, mine, other), jnp.where(is_low, other, mine)])
        return jnp.where(is_low, block, block.T)

    return jax.tree.map(whole, mine)


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
    """One block of inputs a device, of even size where opposite devices halve one."""
    size, count = n_inputs(features), mesh.size
    block = -(-size // count)
    return Tiling(size, count, block + block % 2 if count % 2 == 0 else block)


def _here() -> Array:
    return jax.lax.axis_index(_AXIS)


def _sent(block: Any, step: int, count: int) -> Any:
    """What arrives if every device sends its block so many places further."""
    return jax.lax.ppermute(block, _AXIS, [(i, (i + step) % count) for i in range(count)])


def _gathered(values: Any) -> Any:
    return jax.lax.all_gather(values, _AXIS, tiled=True)


def _in_columns(leaves, positions, tiling: Tiling) -> Float[Array, "n N"]:
    rows = jnp.zeros((tiling.block, tiling.padded), leaves[0].dtype)
    for leaf, position in zip(leaves, positions, strict=True):
        rows = jax.lax.dynamic_update_slice_in_dim(rows, leaf, position * tiling.block, axis=1)
    return rows
