"""Matrices of a function of pairs, evaluated in tiles that fit the caches, inside one compiled loop.

All functions here are pure and work under `jit`, `grad` and `vmap`; tiles are evaluated again in the backward pass
instead of being stored.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gpntk._devices import accelerator_memory, is_accelerated
from gpntk._products import matmul

# Tiles of 512 x 512 numbers stay in the cache of a core while the layers pass over them.
_NUMBERS_PER_TILE = 512 * 512
# Accelerators want tiles that occupy all of their cores for longer than it takes to start them, but the backward
# pass keeps about twenty arrays of a tile for every layer: so many of float32 fit into the memory.
_LARGEST_TILE = 4096 * 4096
_ARRAYS_PER_MEMORY = 800
# Their matrix products are a third slower where rows do not begin at multiples of so many numbers.
_ALIGNMENT = 32
# Where tiles would have fewer inputs on a side, pairs are listed: no mirror images on the diagonal, less padding.
_SMALLEST_TILE = 16


class PairList(NamedTuple):
    """Pairs of inputs are evaluated from a list, so many at a time, and not in tiles."""

    at_once: int


Grouping = int | PairList
"""How pairs of inputs are evaluated together: in tiles with so many inputs on either side, or from a list."""


def cross_blocks(pair: Callable, features1: Any, features2: Any, grouping: Grouping) -> Any:
    """`pair(features1, features2)`, a few pairs at a time.

    Args:
        pair: maps the features of n1 and n2 inputs to a pytree of (n1, n2) arrays.
        features1: pytree of arrays with leading axis N1.
        features2: pytree of arrays with leading axis N2.
        grouping: largest number of inputs on either side of a tile, or `PairList`.

    Returns:
        A pytree of (N1, N2) arrays.
    """
    if isinstance(grouping, PairList):
        shape = n_inputs(features1), n_inputs(features2)
        rows, columns = np.indices(shape).reshape(2, -1)
        values = _listed_pairs(pair, features1, features2, rows, columns, grouping)
        return jax.tree.map(lambda leaf: leaf.reshape(shape), values)
    tiling1, tiling2 = Tiling.of(features1, grouping), Tiling.of(features2, grouping)
    if tiling1.tiles == tiling2.tiles == 1:
        return pair(features1, features2)
    features1, features2 = tiling1.pad(features1), tiling2.pad(features2)

    def evaluate(row, column):
        return pair(tiling1.take(features1, row), tiling2.take(features2, column))

    def write(matrix, tile, row, column):
        return jax.lax.dynamic_update_slice(matrix, tile, (row * tiling1.block, column * tiling2.block))

    rows, columns = np.indices((tiling1.tiles, tiling2.tiles)).reshape(2, -1)
    matrix = _assembled(evaluate, write, rows, columns, (tiling1.padded, tiling2.padded))
    return jax.tree.map(lambda leaf: leaf[: tiling1.size, : tiling2.size], matrix)


def gram_blocks(pair: Callable, diagonal: Callable, features: Any, grouping: Grouping) -> Any:
    """`pair(features, features)` from its upper triangle: symmetric bit for bit.

    Args:
        pair: maps the features of n1 and n2 inputs to a pytree of (n1, n2) arrays.
        diagonal: maps the features of n inputs to the same pytree of (n,) arrays, the exact diagonal.
        features: pytree of arrays with leading axis N.
        grouping: largest number of inputs on a side of a tile, or `PairList`.

    Returns:
        A pytree of (N, N) arrays.
    """
    diagonals = diagonal_blocks(diagonal, features, grouping)
    if isinstance(grouping, PairList):
        rows, columns = np.triu_indices(n_inputs(features), 1)
        values = _listed_pairs(pair, features, features, rows, columns, grouping)

        def mirrored(values, diagonal):
            matrix = jnp.diag(diagonal)
            return matrix.at[rows, columns].set(values).at[columns, rows].set(values)

        return jax.tree.map(mirrored, values, diagonals)
    tiling = Tiling.of(features, grouping)
    if tiling.tiles == 1:
        return jax.tree.map(_symmetric, pair(features, features), diagonals)
    features, diagonals = tiling.pad(features), tiling.pad(diagonals)

    def evaluate(row, column):
        return pair(tiling.take(features, row), tiling.take(features, column))

    def write(matrix, tile, row, column):
        row, column = row * tiling.block, column * tiling.block
        matrix = jax.lax.dynamic_update_slice(matrix, tile.T, (column, row))
        return jax.lax.dynamic_update_slice(matrix, tile, (row, column))

    def symmetric(matrix, diagonal):
        """The matrix with the tiles on its diagonal made symmetric."""

        def step(matrix, index):
            corner = (index * tiling.block,) * 2
            tile = jax.lax.dynamic_slice(matrix, corner, (tiling.block,) * 2)
            tile = _symmetric(tile, tiling.take(diagonal, index))
            return jax.lax.dynamic_update_slice(matrix, tile, corner), None

        return jax.lax.scan(step, matrix, np.arange(tiling.tiles))[0]

    rows, columns = np.triu_indices(tiling.tiles)
    matrix = _assembled(evaluate, write, rows, columns, (tiling.padded, tiling.padded))
    matrix = jax.tree.map(symmetric, matrix, diagonals)
    return jax.tree.map(lambda leaf: leaf[: tiling.size, : tiling.size], matrix)


def diagonal_blocks(diagonal: Callable, features: Any, grouping: Grouping) -> Any:
    """`diagonal(features)`, for as many inputs at a time as a tile or a list has pairs.

    Args:
        diagonal: maps the features of n inputs to a pytree of (n,) arrays.
        features: pytree of arrays with leading axis N.
        grouping: number of inputs on the side of a tile, or `PairList`.

    Returns:
        A pytree of (N,) arrays.
    """
    return _row_blocks(diagonal, features, grouping.at_once if isinstance(grouping, PairList) else grouping**2)


def column_blocks(pair: Callable, features1: Any, features2: Any, block_size: int) -> Float[Array, "N1 k"]:
    """`pair(features1, features2)` for few second inputs, no more pairs at a time than a tile has.

    Args:
        pair: maps the features of n1 and n2 inputs to an (n1, n2) array.
        features1: pytree of arrays with leading axis N1.
        features2: pytree of arrays with leading axis k.
        block_size: number of inputs on the side of a tile.
    """
    at_once = max(1, block_size**2 // n_inputs(features2))
    return _row_blocks(lambda part: pair(part, features2), features1, at_once)


def _row_blocks(rows: Callable, features: Any, at_once: int) -> Any:
    """`rows(features)` for so many inputs at a time, where `rows` maps n of them to arrays with leading axis n."""
    tiling = Tiling.of(features, at_once)
    if tiling.tiles == 1:
        return rows(features)
    features = tiling.pad(features)
    parts = jax.lax.map(lambda index: rows(tiling.take(features, index)), np.arange(tiling.tiles))
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[: tiling.size], parts)


def _listed_pairs(pair: Callable, features1: Any, features2: Any, rows, columns, grouping: PairList) -> Any:
    """The kernel of each pair (rows[i], columns[i]) of inputs, a few at a time."""
    steps = max(1, math.ceil(len(rows) / grouping.at_once))
    at_once = math.ceil(len(rows) / steps)
    # Zeros are as good as any other input, and present.
    lists = [np.pad(index, (0, steps * at_once - len(rows))).reshape(steps, at_once) for index in (rows, columns)]

    def single(row, column):
        left, right = (
            jax.tree.map(lambda leaf, i=i: leaf[i, None], f) for f, i in ((features1, row), (features2, column))
        )
        return jax.tree.map(lambda leaf: leaf[0, 0], pair(left, right))

    evaluate = jax.checkpoint(jax.vmap(single))
    values = jax.lax.map(lambda index: evaluate(*index), tuple(lists))
    return jax.tree.map(lambda leaf: leaf.reshape(-1)[: len(rows)], values)


def cross_product_blocks(
    pair: Callable, features1: Any, features2: Any, vectors: Float[Array, "N2 m"], block_size: int
) -> Float[Array, "N1 m"]:
    """`pair(features1, features2) @ vectors`, tile by tile: none is kept.

    Args:
        pair: maps the features of n1 and n2 inputs to an (n1, n2) array.
        features1: pytree of arrays with leading axis N1.
        features2: pytree of arrays with leading axis N2.
        vectors: (N2, m).
        block_size: largest number of inputs on either side of a tile.

    Returns:
        (N1, m), accumulated in the more precise of the two dtypes.
    """
    tiling1, tiling2 = Tiling.of(features1, block_size), Tiling.of(features2, block_size)
    features1, features2 = tiling1.pad(features1), tiling2.pad(features2)
    vectors = tiling2.pad_with_zeros(vectors)

    @jax.checkpoint
    def product(row, column, vectors):
        tile = pair(tiling1.take(features1, row), tiling2.take(features2, column))
        return _matmul(tile, tiling2.take(vectors, column))

    def rows(row):
        add = lambda total, column: (total + product(row, column, vectors), None)  # noqa: E731
        return jax.lax.scan(add, _zeros_like_result(product, row, 0, vectors), np.arange(tiling2.tiles))[0]

    parts = jax.lax.map(rows, np.arange(tiling1.tiles))
    return parts.reshape(-1, *parts.shape[2:])[: tiling1.size]


def gram_product_blocks(
    pair: Callable,
    diagonal: Callable,
    features: Any,
    vectors: Float[Array, "N m"],
    block_size: int,
    share: tuple[Any, int] = (0, 1),
) -> Float[Array, "N m"]:
    """`gram_blocks(...) @ vectors`: each tile of the upper triangle is computed, used twice and dropped.

    Args:
        pair: maps the features of n1 and n2 inputs to an (n1, n2) array.
        diagonal: maps the features of n inputs to the exact diagonal, (n,).
        features: pytree of arrays with leading axis N.
        vectors: (N, m).
        block_size: largest number of inputs on a side of a tile.
        share: `(i, n)` for what the i-th of n equal shares of the tiles adds to the product.

    Returns:
        (N, m), accumulated in the more precise of the two dtypes.
    """
    tiling = Tiling.of(features, block_size)
    diagonals = tiling.pad(diagonal_blocks(diagonal, features, block_size))
    features, vectors = tiling.pad(features), tiling.pad_with_zeros(vectors)
    i, j = np.indices((tiling.block, tiling.block), sparse=True)

    @jax.checkpoint
    def products(row, column, vectors):
        """What the tile adds to its rows, and what its mirror image adds to theirs."""
        tile = pair(tiling.take(features, row), tiling.take(features, column))
        # On the diagonal of the matrix both add half of it, and nothing below.
        half = jnp.where(i == j, 0.5 * tiling.take(diagonals, row)[:, None], 0.0)
        tile = jnp.where((row < column) | (i < j), tile, half)
        return _matmul(tile, tiling.take(vectors, column)), _matmul(tile.T, tiling.take(vectors, row))

    def add(total, item):
        *index, counts = item
        for position, part in zip(index, products(*index, vectors), strict=True):
            start = position * tiling.block
            present = jax.lax.dynamic_slice_in_dim(total, start, tiling.block)
            added = present + jnp.where(counts, part, 0.0)
            total = jax.lax.dynamic_update_slice_in_dim(total, added, start, axis=0)
        return total, None

    part = _zeros_like_result(lambda v: products(0, 0, v)[0], vectors)
    total = jnp.zeros((tiling.padded, vectors.shape[1]), part.dtype)
    rows, columns = np.triu_indices(tiling.tiles)
    mine, shares = share
    missing = -len(rows) % shares
    # Neighbours go to different shares; the last ones are filled up with tiles that do not count.
    tiles = [np.pad(index, (0, missing)) for index in (rows, columns)] + [
        np.arange(len(rows) + missing) < len(rows)
    ]
    tiles = [jnp.asarray(leaf.reshape(-1, shares).T)[mine] for leaf in tiles]
    return jax.lax.scan(add, total, tuple(tiles))[0][: tiling.size]


def _matmul(tile: Float[Array, "n1 n2"], vectors: Float[Array, "n2 m"]) -> Float[Array, "n1 m"]:
    dtype = jnp.promote_types(tile.dtype, vectors.dtype)
    return matmul(tile.astype(dtype), vectors.astype(dtype))


def _zeros_like_result(function: Callable, *arguments: Any) -> Array:
    shape = jax.eval_shape(function, *arguments)
    return jnp.zeros(shape.shape, shape.dtype)


def _assembled(evaluate: Callable, write: Callable, rows, columns, shape: tuple[int, int]) -> Any:
    """Matrices of the given shape with the tiles `evaluate(row, column)` written into them one by one."""
    tile = jax.eval_shape(evaluate, 0, 0)
    # The backward pass evaluates tiles again: what it needs of a single one is many times its size.
    evaluate = jax.checkpoint(evaluate)

    def step(matrices, place):
        # XLA would repeat the last layers in every write of the same tile, on processors on one thread.
        tile = jax.lax.optimization_barrier(evaluate(*place))
        return jax.tree.map(lambda matrix, values: write(matrix, values, *place), matrices, tile), None

    return jax.lax.scan(step, jax.tree.map(lambda leaf: jnp.zeros(shape, leaf.dtype), tile), (rows, columns))[0]


@dataclasses.dataclass(frozen=True)
class Tiling:
    """A partition of N inputs into `tiles` blocks of equal size, the last one padded."""

    size: int
    tiles: int
    block: int

    @classmethod
    def of(cls, features: Any, block_size: int) -> "Tiling":
        """As few blocks as there can be of at most `block_size` inputs."""
        size = n_inputs(features)
        tiles = math.ceil(size / block_size)
        block = math.ceil(size / tiles)
        if tiles > 1 and _is_worth_aligning(block):
            block = min(block_size, math.ceil(block / _ALIGNMENT) * _ALIGNMENT)
        return cls(size, tiles, block)

    @property
    def padded(self) -> int:
        return self.tiles * self.block

    def pad(self, features: Any) -> Any:
        # Copies of the last input, and not zeros, so that padding is as well-behaved as the data.
        missing = self.padded - self.size
        return jax.tree.map(
            lambda leaf: jnp.pad(leaf, [(0, missing)] + [(0, 0)] * (leaf.ndim - 1), mode="edge"), features
        )

    def pad_with_zeros(self, vectors: Float[Array, "N m"]) -> Float[Array, "_ m"]:
        return jnp.pad(vectors, ((0, self.padded - self.size), (0, 0)))

    def take(self, features: Any, index) -> Any:
        return jax.tree.map(
            lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, index * self.block, self.block), features
        )


def n_inputs(features: Any) -> int:
    """The number of inputs."""
    return jax.tree.leaves(features)[0].shape[0]


def _symmetric(tile: Float[Array, "n n"], diagonal: Float[Array, " n"]) -> Float[Array, "n n"]:
    """The upper triangle of `tile`, mirrored, with the given diagonal."""
    row, column = np.indices(tile.shape, sparse=True)
    mirrored = jnp.where(row < column, tile, tile.T)
    return jnp.where(row == column, diagonal[:, None], mirrored)


def default_block_size(sites_per_pair: int) -> int:
    """The side of a tile for kernels that hold `sites_per_pair` numbers per pair of inputs."""
    side = max(1, math.isqrt(_numbers_per_tile() // sites_per_pair))
    return side - side % _ALIGNMENT if _is_worth_aligning(side) else side


def _is_worth_aligning(side: int) -> bool:
    """Whether rows of tiles should be aligned: on smaller sides padding could cost more than 3%."""
    return side > 32 * _ALIGNMENT and is_accelerated()


def default_grouping(sites_per_pair: int) -> Grouping:
    """How such kernels are evaluated."""
    block_size = default_block_size(sites_per_pair)
    if block_size >= _SMALLEST_TILE:
        return block_size
    return PairList(max(1, _numbers_per_tile() // sites_per_pair))


def _numbers_per_tile() -> int:
    if not is_accelerated():
        return _NUMBERS_PER_TILE
    memory = accelerator_memory()
    return _LARGEST_TILE if memory is None else min(_LARGEST_TILE, memory // (4 * _ARRAYS_PER_MEMORY))
