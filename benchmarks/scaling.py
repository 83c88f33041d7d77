"""How time and memory grow with the number of inputs, of devices and of layers.

    python benchmarks/scaling.py            # N up to 40,000; about ten minutes on two cores
    python benchmarks/scaling.py --large    # N = 60,000 too: a Gram matrix of 14.4 GB
    python benchmarks/scaling.py --short    # small sizes: only shows that the benchmark works

Everything in a process of its own, so that peak memory is that of one size:

    solve     a regression with N inputs of dimension 8, depth 2, float32, alpha = 1/100 of the mean diagonal, to a
              relative residual of 1e-5, without the Gram matrix: the whole of it, compilation included, and one
              product with the matrix
    devices   the NTK Gram matrix for N = 20,000 on one device and on two (a processor simulated as two, each with
              the same cores): wall time, and what of it is spent outside of the sharded computation
    depth     the NTK Gram matrix for N = 4,000 with 1 to 16 layers

Exponents are fitted on a logarithmic scale to the largest three sizes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import measure

RESULTS = Path(__file__).resolve().parent / "results" / "scaling.json"
SIZES, LARGE, DEPTHS = (2500, 5000, 10_000, 20_000, 40_000), 60_000, (1, 2, 4, 8, 16)
DIMENSION, TOLERANCE = 8, 1e-5


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--large", action="store_true", help="N = 60,000 too")
    parser.add_argument("--short", action="store_true", help="small sizes: only shows that the benchmark works")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        name, settings = json.loads(args.worker)
        print(json.dumps(WORKERS[name](**settings)))
        return
    sizes, n_devices, n_depth, depths = [*SIZES, *([LARGE] if args.large else [])], 20_000, 4000, DEPTHS
    if args.short:
        sizes, n_devices, n_depth, depths = [200, 400, 800], 400, 200, (1, 2)
        args.output = args.output.with_name("scaling_short.json")
    results: dict[str, Any] = {**measure.context(), "settings": {"tolerance": TOLERANCE}}

    results["solve"] = [report("solve", n=n) for n in sizes]
    last = results["solve"][-3:]
    exponents = {name: exponent(last, name) for name in ("product_seconds", "iterations", "solve_seconds")}
    results["exponents"] = exponents
    print("exponents in N:", ", ".join(f"{name} {value:.2f}" for name, value in exponents.items()), flush=True)
    results["devices"] = [report("gram", n=n_devices, devices=devices) for devices in (1, 2)]
    results["depth"] = [report("depth", n=n_depth, depth=depth) for depth in depths]
    measure.write_json(args.output, results)


def report(name: str, devices: int = 1, **settings: Any) -> dict[str, Any]:
    """What a worker found, printed and returned."""
    command = [sys.executable, __file__, "--worker", json.dumps([name, settings])]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    output = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, env=os.environ | {"XLA_FLAGS": flags}, text=True
    ).stdout
    found = {**settings, "devices": devices} | json.loads(output.splitlines()[-1])
    print(name, ", ".join(f"{key} {value:.4g}" for key, value in found.items()), flush=True)
    return found


def exponent(results: list[dict[str, Any]], name: str) -> float:
    sizes, values = ([result[key] for result in results] for key in ("n", name))
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


# What runs in a process of its own


def inputs(n: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((n, DIMENSION)).astype(np.float32)


def network(depth: int = 2) -> Any:
    import gpntk

    return gpntk.MLP(depth=depth, activation=gpntk.ReLU(), weight_variance=2.0, bias_variance=0.1)


def solve(n: int) -> dict[str, float]:
    import jax
    import lineax as lx

    import gpntk

    # Vectors in float64, kernel values in float32.
    jax.config.update("jax_enable_x64", True)
    kernel, x = gpntk.NTK(network()), inputs(n)
    y = np.sin(x).sum(1) + 0.1 * np.random.default_rng(1).standard_normal(n)
    alpha = 1e-2 * float(lx.diagonal(kernel.diagonal(x)).mean())
    solver = gpntk.MatrixFree(tolerance=TOLERANCE, progress=True)
    start = time.perf_counter()
    flow = gpntk.GradientFlow(kernel, None, x, y, alpha=alpha, solver=solver)
    jax.block_until_ready(flow.dual_coefficients(np.inf))
    seconds = time.perf_counter() - start
    operator, vector = gpntk.GramOperator(kernel, x), np.asarray(y)
    jax.block_until_ready(operator @ vector)  # compiles
    product = measure.seconds(lambda: jax.block_until_ready(operator @ vector))
    return {
        "solve_seconds": seconds,
        "product_seconds": product,
        "iterations": flow.solver_report.iterations,
        "residual": flow.solver_report.residual,
        "peak_bytes": measure.peak_resident_bytes(),
    }


def gram(n: int) -> dict[str, float]:
    import jax

    import gpntk
    from gpntk._features import checked_features
    from gpntk.kernels._engine import _gram

    mesh = jax.make_mesh((jax.device_count(),), ("rows",))
    engine = gpntk.BlockedComputation(mesh=mesh)
    kernel, x = gpntk.NTK(network(), compute_engine=engine), inputs(n)

    def everything():
        return jax.block_until_ready(kernel.gram(x).as_matrix())

    features = engine.placed(checked_features(kernel, x))

    def inside():
        return jax.block_until_ready(_gram(kernel, features, engine.grouping(kernel), mesh))

    everything()  # compiles
    times = [(measure.seconds(everything), measure.seconds(inside)) for _ in range(3)]
    whole, sharded = np.median(times, axis=0)
    return {
        "seconds": float(whole),
        "sharded_seconds": float(sharded),
        "outside": float(1 - sharded / whole),
        "peak_bytes": measure.peak_resident_bytes(),
    }


def depth(n: int, depth: int) -> dict[str, float]:
    import jax

    import gpntk

    kernel, x = gpntk.NTK(network(depth)), inputs(n)

    def compute():
        jax.block_until_ready(kernel.gram(x).as_matrix())

    first = measure.seconds(compute)
    return {"first_seconds": first, "seconds": float(np.median([measure.seconds(compute) for _ in range(5)]))}


WORKERS = {"solve": solve, "gram": gram, "depth": depth}


if __name__ == "__main__":
    main()
