"""Kernel matrices in files: the numbers of the engine, and nothing lost when the process dies."""

import os
import shutil
import signal
import subprocess
import sys

import gpjax as gpx
import jax
import numpy as np
import pytest

import gpntk
from gpntk import BlockedComputation, stream_kernel_matrix
from gpntk.kernels import _engine, _tiles
from gpntk.kernels._engine import HostBlocks

# Blocks of 16 inputs: 21 in the upper triangle of 90.
ENGINE = BlockedComputation(2)
NET = gpntk.MLP(2, gpntk.Erf(), bias_variance=0.2)
NTK = gpntk.NTK(NET, compute_engine=ENGINE)
X, Y = np.random.default_rng(0).normal(size=(90, 3)), np.random.default_rng(1).normal(size=(35, 3))
BLOCKS = 21


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def computed(monkeypatch):
    """The places of the blocks that are computed."""
    places, dispatched = [], HostBlocks._dispatched

    def counting(self, place):
        places.append(place)
        return dispatched(self, place)

    monkeypatch.setattr(HostBlocks, "_dispatched", counting)
    return places


KERNELS = {
    "network": NTK,
    "columns": gpntk.NNGP(NET, active_dims=[0, 2], compute_engine=ENGINE),
    "sum": gpntk.Sum(gpx.kernels.RBF(), NTK),
    "gpjax": gpx.kernels.Matern32(),
}


@pytest.mark.parametrize("in_file", [False, True], ids=["memory", "file"])
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_values_are_those_of_the_kernel(kernel, in_file, tmp_path):
    gram = stream_kernel_matrix(kernel, X, path=tmp_path / "gram.npy" if in_file else None)
    np.testing.assert_allclose(gram, kernel.gram(X).as_matrix(), rtol=0, atol=1e-12)
    np.testing.assert_array_equal(gram, gram.T)
    cross = stream_kernel_matrix(kernel, X, Y, path=tmp_path / "cross.npy" if in_file else None)
    np.testing.assert_allclose(cross, kernel.cross_covariance(X, Y), rtol=0, atol=1e-12)
    if in_file:
        np.testing.assert_array_equal(np.load(tmp_path / "gram.npy"), gram)
        assert isinstance(gram, np.memmap)
        assert not gram.flags.writeable


def test_single_precision_stays_single(tmp_path):
    gram = stream_kernel_matrix(NTK, X.astype(np.float32), path=tmp_path / "gram.npy")
    assert gram.dtype == np.float32
    np.testing.assert_allclose(gram, NTK.gram(X).as_matrix(), atol=1e-5)


DIES = """
import os, signal
import jax, numpy as np
import gpntk
from gpntk.kernels._engine import HostBlocks

jax.config.update("jax_enable_x64", True)
write, written = HostBlocks.write, []

def dying(self, matrix, block, place):
    if len(written) == 5:
        # In the middle of a block: half of it is there, and not what it should be.
        matrix[:8, -8:] = matrix[-8:, :8] = 1e9
        matrix.flush()
        os.kill(os.getpid(), signal.{signal})
    written.append(place)
    write(self, matrix, block, place)

HostBlocks.write = dying
net = gpntk.MLP(2, gpntk.Erf(), bias_variance=0.2)
kernel = gpntk.NTK(net, compute_engine=gpntk.BlockedComputation(2))
gpntk.stream_kernel_matrix(kernel, np.random.default_rng(0).normal(size=(90, 3)), path="gram.npy")
"""


@pytest.mark.parametrize("name", ["SIGKILL", pytest.param("SIGINT", marks=pytest.mark.slow)])
def test_a_killed_process_loses_one_block_and_no_bytes(name, tmp_path, computed):
    code = DIES.format(signal=name)
    process = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False, capture_output=True)
    assert process.returncode == -signal.Signals[name], process.stderr.decode()
    assert not (tmp_path / "gram.npy").exists()
    resumed = stream_kernel_matrix(NTK, X, path=tmp_path / "gram.npy")
    assert len(computed) == BLOCKS - 5
    whole = stream_kernel_matrix(NTK, X, path=tmp_path / "whole.npy")
    assert (tmp_path / "gram.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
    np.testing.assert_array_equal(resumed, whole)
    assert not (tmp_path / "gram.npy.partial").exists()


def interrupted(path, blocks):
    """A file with so many blocks in it."""

    def write(self, matrix, block, place, original=HostBlocks.write):
        nonlocal blocks
        if blocks == 0:
            raise KeyboardInterrupt
        blocks -= 1
        original(self, matrix, block, place)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HostBlocks, "write", write)
        with pytest.raises(KeyboardInterrupt):
            stream_kernel_matrix(NTK, X, path=path)


@pytest.mark.parametrize("blocks", [0, 1, 20])
@pytest.mark.parametrize("rest", ["4 ", "4", "0 3", "x"])
def test_lines_cut_off_in_the_journal_do_not_count(blocks, rest, tmp_path, computed):
    path, journal = tmp_path / "gram.npy", tmp_path / "gram.npy.blocks"
    interrupted(path, blocks)
    journal.write_text(journal.read_text() + rest)
    computed.clear()
    if blocks == 1:
        # Twice: nothing is appended to the rest of the line.
        interrupted(path, 3)
        blocks += 3
        computed.clear()
    np.testing.assert_array_equal(stream_kernel_matrix(NTK, X, path=path), stream_kernel_matrix(NTK, X))
    assert len(computed) == 2 * BLOCKS - blocks
    assert len(journal.read_text().splitlines()) == 1 + BLOCKS


def test_a_complete_file_is_not_computed_again(tmp_path, computed):
    path = tmp_path / "gram.npy"
    first = np.array(stream_kernel_matrix(NTK, X, path=path))
    computed.clear()
    np.testing.assert_array_equal(stream_kernel_matrix(NTK, X, path=path), first)
    assert not computed


OTHERS = {
    "inputs": lambda path: stream_kernel_matrix(NTK, X + 1e-9, path=path),
    "second inputs": lambda path: stream_kernel_matrix(NTK, X, X, path=path),
    "kernel": lambda path: stream_kernel_matrix(
        gpntk.NTK(NET.replace(bias_variance=0.21), compute_engine=ENGINE), X, path=path
    ),
    "blocks": lambda path: stream_kernel_matrix(
        gpntk.NTK(NET, compute_engine=BlockedComputation(3)), X, path=path
    ),
}


@pytest.mark.parametrize("complete", [False, True])
@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_another_matrix_is_not_taken_for_this_one(other, complete, tmp_path):
    path = tmp_path / "gram.npy"
    if complete:
        stream_kernel_matrix(NTK, X, path=path)
    else:
        interrupted(path, 3)
    with pytest.raises(ValueError, match=r"`path` is taken: .*gram\.npy.* was made from other inputs"):
        other(path)


def test_kernels_that_agree_on_the_first_inputs_are_told_apart(tmp_path):
    x = np.concatenate([np.zeros((10, 2)), Y[:, :2]])
    for lengthscale, outcome in ((1.0, None), (3.0, "was made from other inputs, by another kernel")):
        kernel = gpx.kernels.RBF(lengthscale=lengthscale)
        if outcome is None:
            stream_kernel_matrix(kernel, x, path=tmp_path / "gram.npy")
        else:
            with pytest.raises(ValueError, match=outcome):
                stream_kernel_matrix(kernel, x, path=tmp_path / "gram.npy")


def test_blocks_of_other_sizes_are_told_apart(tmp_path, monkeypatch):
    """Accelerators align the rows of tiles: 213 inputs are three blocks of 71, or of 72."""
    for module in (_engine, _tiles):
        monkeypatch.setattr(module, "is_accelerated", lambda: True)
    monkeypatch.setattr(_tiles, "_ALIGNMENT", 2)
    x = np.random.default_rng(0).normal(size=(213, 3))
    kernels = [gpntk.NTK(NET, compute_engine=BlockedComputation(size)) for size in (71, 72)]
    stream_kernel_matrix(kernels[0], x, path=tmp_path / "gram.npy")
    with pytest.raises(ValueError, match="with other blocks"):
        stream_kernel_matrix(kernels[1], x, path=tmp_path / "gram.npy")


def test_replaced_files_are_noticed(tmp_path):
    path = tmp_path / "gram.npy"
    stream_kernel_matrix(NTK, X, path=path)
    np.save(path, np.arange(3))
    with pytest.raises(FileExistsError, match="was replaced after it was written"):
        stream_kernel_matrix(NTK, X, path=path)
    with pytest.raises(ValueError, match="`path` must name a file"):
        stream_kernel_matrix(NTK, X, path="")
    with pytest.raises(TypeError, match="cannot be used under `jit`"):
        jax.jit(lambda x: stream_kernel_matrix(NTK, x))(X)


def test_files_of_others_are_left_alone(tmp_path):
    path = tmp_path / "gram.npy"
    path.write_bytes(b"precious")
    with pytest.raises(FileExistsError, match=r"`path` is taken: .*gram\.npy was not made by"):
        stream_kernel_matrix(NTK, X, path=path)
    assert path.read_bytes() == b"precious"


def test_a_full_disk_is_noticed_before_anything_is_computed(tmp_path, monkeypatch, computed):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=90 * 90 * 8 - 1))
    with pytest.raises(ValueError, match=r"`path` must have room for 64,800 bytes, but .* has 64,799 bytes left"):
        stream_kernel_matrix(NTK, X, path=tmp_path / "gram.npy")
    assert not computed
    assert os.listdir(tmp_path) == []


def test_progress_is_shown_on_request_only(tmp_path, capfd):
    stream_kernel_matrix(NTK, X, path=tmp_path / "a.npy")
    assert not capfd.readouterr().err
    stream_kernel_matrix(NTK, X, path=tmp_path / "b.npy", progress=True)
    assert "100%" in capfd.readouterr().err


def test_overflow_is_refused(tmp_path):
    kernel = gpntk.NTK(gpntk.MLP(), variance=1e30)
    with pytest.raises(ValueError, match="Kernel values are not finite in float32"):
        stream_kernel_matrix(kernel, np.full((3, 2), 1e10, np.float32), path=tmp_path / "gram.npy")
    assert not (tmp_path / "gram.npy").exists()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("ntk", X), TypeError, "`kernel` must be a GPJax kernel"),
        ((NTK, X[0]), ValueError, "Expected 2D array, got 1D array instead for x1"),
        ((NTK, X, Y[:, :2]), ValueError, "x2 has 2 features, but x1 has 3"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message, tmp_path):
    with pytest.raises(error, match=message):
        stream_kernel_matrix(*arguments, path=tmp_path / "gram.npy")
    with pytest.raises(TypeError, match="`progress` must be True or False, got 1"):
        stream_kernel_matrix(NTK, X, progress=1)
    with pytest.raises(FileNotFoundError, match=r"`path` must be in a folder that exists"):
        stream_kernel_matrix(NTK, X, path=tmp_path / "nowhere" / "gram.npy")
