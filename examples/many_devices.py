"""One regression on one device, on several, and in several processes: the same code, the same numbers.

    python examples/many_devices.py                   # all devices that JAX sees
    python examples/many_devices.py --simulate 8      # a processor as eight devices

    # in several processes, each with the same command and its own number; the first one is the coordinator
    python examples/many_devices.py --coordinator localhost:9911 --processes 2 --process 0 &
    python examples/many_devices.py --coordinator localhost:9911 --processes 2 --process 1

On clusters that JAX knows (Slurm, TPU pods, ...) `jax.distributed.initialize()` finds the coordinator by itself.
Written to `many_devices.json`: what was computed. Only the first process writes.
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--n", type=int, default=4000, help="training inputs")
    parser.add_argument("--simulate", type=int, default=0, help="number of devices to simulate on a processor")
    parser.add_argument("--coordinator", help="address of the first process")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--process", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("many_devices.json"))
    args = parser.parse_args()

    # Devices are counted when JAX starts: nothing may use it before.
    if args.simulate:
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={args.simulate}"
    import jax

    jax.config.update("jax_enable_x64", True)
    if args.coordinator:
        jax.distributed.initialize(args.coordinator, args.processes, args.process)

    import gpntk

    mesh = jax.make_mesh((jax.device_count(),), ("rows",))
    engine = gpntk.BlockedComputation(mesh=mesh)
    net = gpntk.MLP(depth=2, activation=gpntk.Erf(), bias_variance=0.1)
    rng = np.random.default_rng(0)
    x, x_test = rng.normal(size=(args.n, 4)), rng.normal(size=(5, 4))
    y = np.sin(x).sum(1)

    solver = gpntk.MatrixFree(tolerance=1e-12, rank=64, progress=args.process == 0)
    flow = gpntk.GradientFlow(
        gpntk.NTK(net, compute_engine=engine),
        gpntk.NNGP(net, compute_engine=engine),
        x,
        y,
        alpha=0.1,
        solver=solver,
    )
    gram = gpntk.NTK(net, compute_engine=engine).gram(x[:200]).as_matrix()
    file = gpntk.stream_kernel_matrix(
        gpntk.NTK(net, compute_engine=gpntk.BlockedComputation(8, mesh=mesh)),
        x[:200],
        path=args.output.with_suffix(".npy"),
    )
    found = {
        "mean": flow.mean(x_test, np.inf),
        "mean at t = 1": flow.mean(x_test, 1.0),
        "variance": flow.variance(x_test, np.inf),
        "norm of the Gram matrix": jax.numpy.linalg.norm(gram),
        "norm of the same in a file": np.linalg.norm(file),
    }
    found = {name: np.asarray(value).tolist() for name, value in found.items()}
    if args.process == 0:
        print(f"{args.processes} processes, {jax.device_count()} devices")
        for name, value in found.items():
            print(f"{name:30s}", np.round(value, 6))
        args.output.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
