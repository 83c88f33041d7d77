"""Kernel matrices larger than the memory of a device, block by block into the host's memory or a file."""

import collections
import hashlib
import math
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
from gpjax.kernels import AbstractKernel
from jax.experimental import multihost_utils
from jax.typing import ArrayLike
from jaxtyping import Float

from gpntk import _checks
from gpntk._features import checked_features
from gpntk.kernels._base import with_features
from gpntk.kernels._engine import HostBlocks

# Inputs of which kernel values tell one kernel from another.
_PROBES = 8


def stream_kernel_matrix(
    kernel: AbstractKernel,
    x1: Float[ArrayLike, "N1 D"],
    x2: Float[ArrayLike, "N2 D"] | None = None,
    *,
    path: str | os.PathLike | None = None,
    progress: bool = False,
) -> Float[np.ndarray, "N1 N2"]:
    """A kernel matrix in the memory of the host or in a file, computed block by block.

    No more than two blocks are ever held on a device, so that the matrix may be larger than its memory, and with a
    `path` than that of the host. The file is a NumPy one, for `numpy.load(path, mmap_mode="r")`. It appears under
    its name when it is complete. Until then it is called `<path>.partial`, and what is in it is known from
    `<path>.blocks`: the same call after an interruption goes on with the block that was being computed, and ends
    with the same bytes. After completion `<path>.blocks` tells what the file was made from, and the same call
    returns it at once.

    Values are those of `kernel.gram(x1)` or `kernel.cross_covariance(x1, x2)`, by the kernel's compute engine:
    with its mesh every block is shared among the devices. Several processes need a `path` that all of them see;
    the first one writes.

    Args:
        kernel: a GPJax kernel of one output.
        x1: inputs, one per row.
        x2: further inputs; `None` means `x1`, and only one triangle is computed.
        path: of the file, in a folder that exists; `None` means in memory.
        progress: whether to show a progress bar.

    Returns:
        (N1, N2); a memory map that can only be read if there is a `path`.

    Raises:
        ValueError: if inputs are not finite 2-D arrays that fit the kernel, if values overflow, if the matrix does
            not fit on the disk (naming the size in bytes), or if the files of `path` belong to another matrix.
        FileExistsError: if there is a file of that name that this function did not make.
        FileNotFoundError: if there is no such folder.
        TypeError: if `kernel` is not a GPJax kernel of one output, `path` not a path or `progress` not a boolean;
            under `jit` and `grad`, where there are no numbers to be written.

    >>> import gpntk, numpy as np, tempfile
    >>> x = np.linspace(-1.0, 1.0, 5)[:, None]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     gram = gpntk.stream_kernel_matrix(gpntk.NTK(gpntk.MLP()), x, path=f"{folder}/gram.npy")
    >>> gram.shape
    (5, 5)
    """
    _checks.instance("kernel", kernel, AbstractKernel, "a GPJax kernel such as gpntk.NTK(gpntk.MLP())")
    _checks.boolean("progress", progress)
    if path is not None:
        _checks.instance("path", path, (str, os.PathLike), "the path of a file or None")
    kernel = with_features(kernel)
    x1 = _checks.inputs("x1", x1)
    features1, features2 = checked_features(kernel, x1), None
    if x2 is not None:
        x2 = _checks.inputs("x2", x2)
        _checks.equal_columns(x1=x1, x2=x2)
        features2 = checked_features(kernel, x2)
    if _checks.is_traced(kernel, features1, features2):
        raise TypeError("`stream_kernel_matrix` writes numbers: it cannot be used under `jit`, `grad` or `vmap`.")
    engine = kernel.blocked_engine
    blocks = HostBlocks(kernel, features1, features2, engine)
    if path is None:
        return blocks.matrices(progress)
    file = _MatrixFile(Path(path), blocks, _identity(kernel, features1, features2, blocks))
    # Without a mesh, and with one of its own devices, a process knows nothing of others.
    processes = {device.process_index for device in engine.mesh.devices.flat} if engine.mesh else set()
    return file.filled(processes if len(processes) > 1 else {jax.process_index()}, progress)


def _identity(kernel, features1, features2, blocks: HostBlocks) -> str:
    """A digest of what a matrix is made from: features, parameters, and what the kernel makes of some inputs.

    Code cannot be compared between processes, numbers can.
    """
    columns = features1 if features2 is None else features2
    spread = [np.linspace(0, size - 1, min(size, _PROBES)).astype(int) for size in blocks.shape]
    some = [
        jax.tree.map(lambda leaf, rows=rows: leaf[rows], features)
        for features, rows in zip((features1, columns), spread, strict=True)
    ]
    digest = hashlib.sha256(repr((blocks.shape, blocks.dtypes, blocks.block_shape)).encode())
    for leaf in jax.tree.leaves((kernel, features1, features2, eqx.filter_jit(kernel.pair)(*some))):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


class _MatrixFile:
    """A file of NumPy that is filled block by block, and a journal of the blocks that are in it.

    The journal has a line with the identity of the matrix, and one for each block, written after the block is on
    the disk: a line that was cut off belongs to a block that does not count.
    """

    def __init__(self, path: Path, blocks: HostBlocks, identity: str):
        if not path.name:
            raise ValueError(f"`path` must name a file, got {str(path)!r}.")
        if not path.parent.is_dir():
            raise FileNotFoundError(f"`path` must be in a folder that exists, got {path}.")
        self._path, self._blocks, self._identity = path, blocks, identity
        self._partial = path.with_name(path.name + ".partial")
        self._journal = path.with_name(path.name + ".blocks")

    def filled(self, processes: set[int], progress: bool) -> np.ndarray:
        """The complete file as a memory map. The first of the processes writes, the others compute with it."""
        done = self._done()
        writes = jax.process_index() == min(processes)
        if not self._path.exists():
            self._check_disk()
            _wait_for_all(processes, "journal is read")
            missing = [place for place in self._blocks.places if place not in done]
            computed = self._blocks.computed(missing, progress)
            if writes:
                self._write(computed, done)
            else:
                collections.deque(computed, maxlen=0)
            _wait_for_all(processes, "file is complete")
        matrix = np.load(self._path, mmap_mode="r")
        if (matrix.shape, matrix.dtype) != (self._blocks.shape, self._blocks.dtypes):
            raise FileExistsError(f"`path` is taken: {self._path} was replaced after it was written.")
        return matrix

    def _write(self, computed: Iterable, done: set[tuple[int, int]]) -> None:
        # Anew, without a line that was cut off, to which the next one would be appended.
        clean = self._journal.with_name(self._journal.name + ".new")
        clean.write_text("".join([f"{self._identity}\n", *map(_line, sorted(done))]))
        os.replace(clean, self._journal)
        shape, dtype = self._blocks.shape, self._blocks.dtypes
        matrix = np.lib.format.open_memmap(self._partial, "r+" if done else "w+", dtype, shape)
        with self._journal.open("a") as journal:
            for place, block in computed:
                self._blocks.write(matrix, block, place)
                matrix.flush()
                journal.write(_line(place))
                journal.flush()
                os.fsync(journal.fileno())
        del matrix
        os.replace(self._partial, self._path)

    def _done(self) -> set[tuple[int, int]]:
        """The blocks that are on the disk.

        Raises:
            ValueError: if they are of another matrix.
            FileExistsError: if it is not known what a file is.
        """
        lines = self._journal.read_text().splitlines(keepends=True) if self._journal.exists() else []
        complete = [line[:-1] for line in lines if line.endswith("\n")]
        identity = complete[0] if complete else None
        present = self._path if self._path.exists() else self._partial
        if identity is None and present.exists():
            raise FileExistsError(
                f"`path` is taken: {present} was not made by `stream_kernel_matrix`, or its journal "
                f"{self._journal} is lost. Delete it, or choose another `path`."
            )
        if present.exists() and identity != self._identity:
            raise ValueError(
                f"`path` is taken: {present} was made from other inputs, by another kernel, or with other blocks. "
                f"Delete it and {self._journal}, or choose another `path`."
            )
        written = set(complete[1:]) if present.exists() else set()
        return {place for place in self._blocks.places if _line(place)[:-1] in written}

    def _check_disk(self) -> None:
        needed = math.prod(self._blocks.shape) * self._blocks.dtypes.itemsize
        if self._partial.exists():
            needed -= self._partial.stat().st_blocks * 512
        free = shutil.disk_usage(self._path.parent).free
        if needed > free:
            raise ValueError(
                f"`path` must have room for {needed:,} bytes, but {self._path.parent} has {free:,} bytes left."
            )


def _line(place: tuple[int, int]) -> str:
    return "{} {}\n".format(*place)


def _wait_for_all(processes: set[int], what: str) -> None:
    if len(processes) > 1:
        multihost_utils.sync_global_devices(what)
