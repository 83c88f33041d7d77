"""Eight devices and two processes: the numbers of one."""

import copy
import json
import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import sharded_values

from gpntk import MLP, NTK, BlockedComputation, NTKRegressor

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "many_devices.py"


def environment(devices: int) -> dict[str, str]:
    return os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu"}


@pytest.fixture(scope="module")
def on_eight_devices(tmp_path_factory):
    file = tmp_path_factory.mktemp("devices") / "values.npz"
    subprocess.run([sys.executable, sharded_values.__file__, file], check=True, env=environment(8))
    return np.load(file)


def test_eight_devices_have_the_values_of_one(on_eight_devices, x64):
    expected = sharded_values.values(BlockedComputation(5))
    assert expected.keys() == {name for name in on_eight_devices if "rows of" not in name}
    for name, values in expected.items():
        tolerance = 1e-6 if name == "single precision" else 1e-12
        scale = np.abs(values).max()
        np.testing.assert_allclose(on_eight_devices[name], values, rtol=0, atol=tolerance * scale, err_msg=name)


def test_sharded_gram_matrices_are_symmetric_with_the_exact_diagonal(on_eight_devices):
    for name in sharded_values.KERNELS:
        for size in sharded_values.SIZES[name]:
            gram = on_eight_devices[f"{name}, gram, {size}"]
            np.testing.assert_array_equal(gram, gram.T)
            np.testing.assert_array_equal(np.diag(gram), on_eight_devices[f"{name}, diagonal, {size}"])


def test_rows_are_spread_over_the_devices(on_eight_devices):
    for name in ("network, gram, 40", "with progress"):
        np.testing.assert_array_equal(on_eight_devices[f"rows of the devices: {name}"], np.arange(0, 40, 5))


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


def run_example(folder, *commands):
    """The example once in each of several processes at a time, and what it wrote."""
    output = folder / "result.json"
    command = [sys.executable, EXAMPLE, "--n", "120", "--output", output]
    running = [subprocess.Popen([*command, *more], env=environment(1)) for more in commands]
    assert [process.wait(timeout=500) for process in running] == [0] * len(running)
    return json.loads(output.read_text()), np.load(output.with_suffix(".npy"))


@pytest.mark.slow
def test_one_device_eight_devices_and_two_processes_agree(tmp_path):
    address = ["--coordinator", f"localhost:{free_port()}", "--processes", "2", "--process"]
    runs = {"one": [[]], "eight": [["--simulate", "8"]], "two": [[*address, "0"], [*address, "1"]]}
    found = {}
    for name, commands in runs.items():
        (tmp_path / name).mkdir()
        found[name] = run_example(tmp_path / name, *commands)
    numbers, file = found.pop("one")
    for others, other_file in found.values():
        for name, values in numbers.items():
            # The solver stops at a residual of 1e-12; the smallest eigenvalue is 1/1000 of the largest.
            np.testing.assert_allclose(others[name], values, rtol=0, atol=1e-9 if "Gram" not in name else 1e-10)
        np.testing.assert_allclose(other_file, file, rtol=0, atol=1e-12 * file.max())


def test_engines_with_a_mesh_are_values_and_leave_it_behind_when_they_are_pickled():
    mesh = jax.make_mesh((1,), ("rows",))
    engine = BlockedComputation(3, mesh=mesh)
    assert engine == BlockedComputation(3, mesh=mesh) != BlockedComputation(3)
    assert hash(engine) == hash(BlockedComputation(3, mesh=mesh))
    assert copy.deepcopy(NTK(MLP(), compute_engine=engine)).compute_engine.mesh is mesh
    assert pickle.loads(pickle.dumps(engine)) == BlockedComputation(3)
    x = np.random.default_rng(0).normal(size=(9, 2))
    model = NTKRegressor(NTK(MLP(), compute_engine=engine), alpha=0.1, solver="matrix_free").fit(x, x[:, 0])
    np.testing.assert_allclose(pickle.loads(pickle.dumps(model)).predict(x), model.predict(x), rtol=1e-12)
    with pytest.raises(TypeError, match=r"`mesh` must be a jax\.sharding\.Mesh or None, got 8"):
        BlockedComputation(mesh=8)
