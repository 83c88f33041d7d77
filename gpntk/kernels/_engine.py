"""The compute engine: tiles, triangles, devices and memory. Nothing outside of this folder knows about them.

A kernel hands over per-input features and a pure function of two sets of features. The engine evaluates
that function on tiles (`_tiles`), on the devices of a mesh (`_sharding`), or block by block into the memory of the
host (`HostBlocks`), from where `_streaming` writes files.
"""

import dataclasses
import functools
import os
from collections.abc import Iterable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from gpjax.kernels.computations import AbstractKernelComputation
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from tqdm import tqdm

from gpntk import _checks
from gpntk._devices import accelerator_memory, is_accelerated
from gpntk._features import checked_features
from gpntk.kernels._sharding import in_rows, replicated, sharded_cross, sharded_diagonal, sharded_gram
from gpntk.kernels._tiles import (
    Grouping,
    Tiling,
    cross_blocks,
    default_block_size,
    diagonal_blocks,
    gram_blocks,
    n_inputs,
)

# A block that goes to the host has so many tiles on a side: enough work to hide what happens between blocks.
_TILES_PER_BLOCK = 8


@dataclasses.dataclass(frozen=True)
class BlockedComputation(AbstractKernelComputation):
    """GPJax compute engine that evaluates our kernels in compiled tiles, on one device or on many.

    Args:
        block_size: number of inputs on the side of a tile. `None` takes about a quarter of a million
            numbers per tile on processors, which suits their caches, and up to 64 times as many on accelerators;
            lists of so many for kernels whose pairs hold too much for tiles of 16 inputs.
        progress: whether to show a progress bar. Under `jit` and `grad` there is none.
        mesh: devices to share the work, such as `jax.make_mesh((8,), ("rows",))`; axes and their names do not
            matter. Matrices are left on them, a block of rows on each if the devices divide the number of rows,
            and whole on each otherwise. `None` means JAX's default device, and is what a pickled engine comes back
            with.

    Raises:
        ValueError: if `block_size` is below 1.
        TypeError: if `progress` is not a boolean or `mesh` not a mesh.
    """

    block_size: int | None = None
    progress: bool = False
    mesh: Mesh | None = None

    def __post_init__(self):
        if self.block_size is not None:
            _checks.integer("block_size", self.block_size, minimum=1)
        _checks.boolean("progress", self.progress)
        if self.mesh is not None:
            _checks.instance("mesh", self.mesh, Mesh, "a jax.sharding.Mesh or None")

    def __reduce__(self):
        # Devices belong to a process: where an engine is unpickled, there may be others.
        return type(self), (self.block_size, self.progress)

    def __deepcopy__(self, memo):
        return self

    def _cross_covariance(self, kernel, x, y):
        x, y = _checks.inputs("x", x), _checks.inputs("y", y)
        _checks.equal_columns(x=x, y=y)
        return self.cross_of_features(kernel, checked_features(kernel, x), checked_features(kernel, y))

    def _gram(self, kernel, x):
        return self.gram_of_features(kernel, checked_features(kernel, _checks.inputs("x", x)))

    def _diagonal(self, kernel, inputs):
        features = self.placed(checked_features(kernel, _checks.inputs("x", inputs)))
        values = finite(_diagonal(kernel, features, self.grouping(kernel), self.mesh))
        return lx.TaggedLinearOperator(lx.DiagonalLinearOperator(values), lx.positive_semidefinite_tag)

    def cross_of_features(self, kernel: Any, features1: Any, features2: Any) -> Any:
        """`kernel.pair(features1, features2)`; the kernel's values may be a pytree of several."""
        traced = _checks.is_traced(kernel, features1, features2)
        if not traced:
            _check_memory(kernel, features1, features2, self.mesh)
        if self.progress and not traced:
            return self._back_on_device(HostBlocks(kernel, features1, features2, self))
        features1, features2 = self.placed((features1, features2))
        return finite(_cross(kernel, features1, features2, self.grouping(kernel), self.mesh))

    def gram_of_features(self, kernel: Any, features: Any) -> Any:
        """`kernel.pair(features, features)` from one triangle, with the diagonal of `kernel.diagonal_values`."""
        traced = _checks.is_traced(kernel, features)
        if not traced:
            _check_memory(kernel, features, features, self.mesh)
        if self.progress and not traced:
            return self._back_on_device(HostBlocks(kernel, features, None, self))
        return finite_gram(_gram(kernel, self.placed(features), self.grouping(kernel), self.mesh))

    def _back_on_device(self, blocks: "HostBlocks") -> Any:
        place = jnp.asarray if self.mesh is None else functools.partial(in_rows, mesh=self.mesh)
        return jax.tree.map(place, blocks.matrices(progress=True))

    def side(self, kernel: Any) -> int:
        """Number of inputs on the side of a tile."""
        return self.block_size or default_block_size(kernel.sites_per_pair)

    def grouping(self, kernel: Any) -> Grouping:
        """How pairs of inputs are evaluated together."""
        return self.block_size or kernel.grouping

    def placed(self, features: Any) -> Any:
        """Features on the devices that use them."""
        return features if self.mesh is None or _checks.is_traced(features) else replicated(features, self.mesh)


class HostBlocks:
    """A matrix computed in blocks, each by itself, for the memory of the host.

    Args:
        kernel: with the methods of `AbstractFeatureKernel`; its values may be a pytree of several.
        features1: of the rows.
        features2: of the columns; `None` means those of the rows: blocks of the upper triangle are computed.
        engine: how a block is.
    """

    def __init__(self, kernel: Any, features1: Any, features2: Any, engine: BlockedComputation):
        self._kernel, self._engine, self._symmetric = kernel, engine, features2 is None
        # Tiles of accelerators are as large as a block should be.
        side = (1 if is_accelerated() else _TILES_PER_BLOCK) * engine.side(kernel)
        features = (features1,) if features2 is None else (features1, features2)
        tilings = [Tiling.of(f, side) for f in features]
        padded = [engine.placed(t.pad(f)) for t, f in zip(tilings, features, strict=True)]
        # Rows and columns of a Gram matrix are the same objects.
        self._rows, self._columns = (tilings[0], padded[0]), (tilings[-1], padded[-1])
        self.shape = tilings[0].size, tilings[-1].size
        self.block_shape = tilings[0].block, tilings[-1].block
        if self._symmetric:
            self.places = list(zip(*(i.tolist() for i in np.triu_indices(tilings[0].tiles)), strict=True))
        else:
            self.places = list(np.ndindex(tilings[0].tiles, tilings[1].tiles))

    @property
    def dtypes(self) -> Any:
        """Of the values."""
        values = eqx.filter_eval_shape(_values_of_pairs, self._kernel, self._rows[1], self._columns[1])
        return jax.tree.map(lambda leaf: np.dtype(leaf.dtype), values)

    def matrices(self, progress: bool) -> Any:
        """All of it as arrays of NumPy."""
        matrices = jax.tree.map(lambda dtype: np.empty(self.shape, dtype), self.dtypes)
        for place, block in self.computed(self.places, progress):
            jax.tree.map(functools.partial(self.write, place=place), matrices, block)
        return matrices

    def computed(self, places: Iterable[tuple[int, int]], progress: bool) -> Iterator[tuple[tuple[int, int], Any]]:
        """Places and their blocks, as arrays of NumPy. The next block is computed while one is looked at."""
        places = list(places)
        pairs = self._rows[0].block * self._columns[0].block
        with tqdm(total=len(self.places) * pairs, desc="pairs", unit_scale=True, disable=not progress) as bar:
            bar.update((len(self.places) - len(places)) * pairs)
            ahead = self._dispatched(places[0]) if places else None
            for place, following in zip(places, [*places[1:], None], strict=True):
                block, ahead = ahead, None if following is None else self._dispatched(following)
                block = _on_host(block)  # and no longer on the device
                for leaf in jax.tree.leaves(block):
                    _refuse_overflow(leaf, np.isfinite(leaf).all())
                yield place, block
                bar.update(pairs)

    def write(self, matrix: np.ndarray, block: np.ndarray, place: tuple[int, int]) -> None:
        """A block, and its mirror image, into the matrix."""
        row, column = place[0] * self._rows[0].block, place[1] * self._columns[0].block
        block = block[: self.shape[0] - row, : self.shape[1] - column]
        matrix[row : row + block.shape[0], column : column + block.shape[1]] = block
        if self._symmetric and row != column:
            matrix[column : column + block.shape[1], row : row + block.shape[0]] = block.T

    def _dispatched(self, place):
        settings = self._engine.grouping(self._kernel), self._engine.mesh
        if self._symmetric and place[0] == place[1]:
            return _gram_block(self._kernel, *self._rows, np.asarray(place[0]), *settings)
        return _cross_block(self._kernel, *self._rows, *self._columns, np.asarray(place), *settings)


def _on_host(block: Any) -> Any:
    """A block as arrays of NumPy, in every process."""

    def gathered(leaf):
        if leaf.is_fully_addressable:
            return np.asarray(leaf)
        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))

    return jax.tree.map(gathered, block)


def _check_memory(kernel, features1, features2, mesh) -> None:
    """Refuse matrices that no memory holds, before anything is computed.

    Raises:
        ValueError: naming the size in bytes.
    """
    devices = [None] if mesh is None else list(mesh.devices.flat)
    copies = len(devices) if n_inputs(features1) % len(devices) else 1
    on_device = accelerator_memory()
    if on_device is None:
        # Processors of one process share its memory.
        available = _host_memory() * len({getattr(device, "process_index", 0) for device in devices}) // copies
    else:
        available = on_device * len(devices) // copies
    if 16 * n_inputs(features1) * n_inputs(features2) <= available:
        return  # it holds two matrices in double precision, the most there are: no need to trace the kernel
    shapes = eqx.filter_eval_shape(_values_of_pairs, kernel, features1, features2)
    needed = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    if needed > available:
        raise ValueError(
            f"Kernel values of shape {jax.tree.leaves(shapes)[0].shape} need {needed:,} bytes, more than the "
            f"{available:,} there are: use `gpntk.stream_kernel_matrix`, which writes them to a file, or "
            '`gpntk.GramOperator` and `solver="matrix_free"`, which never hold them.'
        )


def _values_of_pairs(kernel, features1, features2):
    return kernel.pair(features1, features2)


@functools.cache
def _host_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def finite(matrices: Any) -> Any:
    """Kernel values, refused where they are not finite: the features were, so that something overflowed.

    Raises:
        ValueError: naming the precision.
    """
    for leaf in jax.tree.leaves(matrices):
        _refuse_overflow(leaf, _checks.all_finite(leaf))
    return matrices


def finite_gram(matrices: Any) -> Any:
    """`finite` for Gram matrices, whose diagonal bounds all entries."""
    for leaf in jax.tree.leaves(matrices):
        _refuse_overflow(leaf, _checks.all_finite(jnp.diagonal(leaf)))
    return matrices


def _refuse_overflow(matrix, is_finite) -> None:
    if not _checks.is_traced(matrix) and not bool(is_finite):
        raise ValueError(
            f"Kernel values are not finite in {matrix.dtype}: scale the inputs or the variances down, or enable "
            "double precision with `jax.enable_x64`."
        )


@eqx.filter_jit
def _cross(kernel, features1, features2, grouping, mesh):
    if mesh is None:
        return cross_blocks(kernel.pair, features1, features2, grouping)
    return sharded_cross(kernel.pair, features1, features2, grouping, mesh)


@eqx.filter_jit
def _gram(kernel, features, grouping, mesh):
    if mesh is None:
        return gram_blocks(kernel.pair, kernel.diagonal_values, features, grouping)
    return sharded_gram(kernel.pair, kernel.diagonal_values, features, grouping, mesh)


@eqx.filter_jit
def _diagonal(kernel, features, grouping, mesh):
    if mesh is None:
        return diagonal_blocks(kernel.diagonal_values, features, grouping)
    return sharded_diagonal(kernel.diagonal_values, features, grouping, mesh)


@eqx.filter_jit
def _gram_block(kernel, tiling, features, index, grouping, mesh):
    return _gram(kernel, tiling.take(features, index), grouping, mesh)


@eqx.filter_jit
def _cross_block(kernel, tiling1, features1, tiling2, features2, place, grouping, mesh):
    row, column = place
    return _cross(kernel, tiling1.take(features1, row), tiling2.take(features2, column), grouping, mesh)
