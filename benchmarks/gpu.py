"""Kernels and a solve on the device at hand: right numbers, times, and shares of what the device can do.

    python benchmarks/gpu.py            # on JAX's default device, float32; sizes by its kind
    python benchmarks/gpu.py --short    # small sizes: only shows that the benchmark works

Ceilings are measured in the same run: the rate of a large matrix product, that of fused multiply-adds on
arrays that stay in registers, and the bandwidth of a copy. The operations of one pair of inputs are 2 d for the
inner product and those that XLA counts in all that follows it. The share of a kernel is the least time that its
binding resource allows, divided by the time it took. Values are compared with float64 on the host.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np

import gpntk
import measure
from gpntk._features import checked_features

RESULTS = Path(__file__).resolve().parent / "results"
REPEAT = 5


class Sizes(NamedTuple):
    """Sides of matrices, numbers in arrays, and numbers of inputs: so large that starting them costs nothing."""

    matrix_product: int
    elementwise: int
    copy: int
    mlp: int
    planar: int
    spherical: int
    solve: int


ON_CPU = Sizes(3_000, 4_000_000, 50_000_000, 4_000, 100, 60, 5_000)
ON_ACCELERATOR = Sizes(12_000, 100_000_000, 1_000_000_000, 32_000, 400, 240, 60_000)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--short", action="store_true", help="small sizes: only shows that the benchmark works")
    parser.add_argument("--output", type=Path, default=None, help="by default results/gpu.json or gpu_on_cpu.json")
    args = parser.parse_args()
    device = jax.devices()[0]
    sizes = ON_CPU if device.platform == "cpu" else ON_ACCELERATOR
    if args.short:
        sizes = Sizes(*(size // 10 for size in sizes))
    name = "gpu_on_cpu" if device.platform == "cpu" else "gpu"
    output = args.output or RESULTS / f"{name}{'_short' if args.short else ''}.json"
    print(f"{device.device_kind} ({device.platform})", flush=True)
    settings = {"device": f"{device.device_kind} ({device.platform})"}
    results: dict[str, Any] = {**measure.context(), "settings": settings}
    results["ceilings"] = ceilings(sizes)
    results["kernels"] = {
        title: time_kernel(title, *case, results["ceilings"]) for title, case in cases(sizes).items()
    }
    results["solve"] = solve(sizes.solve)
    measure.write_json(output, results)


def median_seconds(function: Callable[..., Any], *arguments: Any) -> tuple[float, float]:
    """Of the first call and of the later ones."""
    call = lambda: jax.block_until_ready(function(*arguments))  # noqa: E731
    first = measure.seconds(call)
    return first, float(np.median([measure.seconds(call) for _ in range(REPEAT)]))


def ceilings(sizes: Sizes) -> dict[str, float]:
    """Operations and bytes a second that the device reaches at its best."""
    n = sizes.matrix_product
    a = jnp.ones((n, n), jnp.float32)
    product = jax.jit(lambda a: jnp.matmul(a, a, precision=jax.lax.Precision.HIGHEST))
    found = {"matrix_product": 2 * n**3 / median_seconds(product, a)[1]}
    steps, x = 200, jnp.full(sizes.elementwise, 0.5, jnp.float32)

    @jax.jit
    def multiply_add(x):
        for _ in range(steps):
            x = x * 0.999 + x * x * 1e-3
        return x

    # Four operations a step as XLA counts them.
    found["elementwise"] = 4 * steps * x.size / median_seconds(multiply_add, x)[1]
    large = jnp.ones(sizes.copy, jnp.float32)
    found["bytes"] = 2 * large.nbytes / median_seconds(jax.jit(lambda x: x + 1.0), large)[1]
    print(
        f"ceilings: matrix product {found['matrix_product'] / 1e9:.0f} Gflop/s, elementwise "
        f"{found['elementwise'] / 1e9:.0f} Gflop/s, memory {found['bytes'] / 1e9:.0f} GB/s",
        flush=True,
    )
    return found


def cases(sizes: Sizes) -> dict[str, tuple]:
    """Architecture, number of inputs, and length of the inner product of two inputs."""
    arguments = {"depth": 3, "bias_variance": 0.1}
    relu, erf = (gpntk.MLP(activation=activation, **arguments) for activation in (gpntk.ReLU(), gpntk.Erf()))
    planar = gpntk.PlanarGroupCNN("C4", (8, 8, 1), depth=2, activation=gpntk.ReLU(), bias_variance=0.1)
    return {
        "MLP, ReLU, d = 3072": (relu, sizes.mlp, 3072),
        "MLP, ReLU, d = 784": (relu, sizes.mlp, 784),
        "MLP, erf, d = 20": (erf, sizes.mlp, 20),
        "C4 network, 8 x 8": (planar, sizes.planar, None),
        "SO(3) network, bandlimit 6": (gpntk.SphericalCNN(6, 2, activation=gpntk.Erf()), sizes.spherical, None),
    }


def time_kernel(title: str, net: Any, n: int, inner: int | None, ceilings: dict[str, float]) -> dict[str, float]:
    width = net.n_features or inner
    x = np.random.default_rng(0).standard_normal((n, width)).astype(np.float32)
    kernel = gpntk.NTK(net)
    first, steady = median_seconds(lambda x: kernel.gram(x).as_matrix(), jnp.asarray(x))
    found = {"n": n, "first_seconds": first, "seconds": steady, "error": error(kernel, x[: min(n, 200)])}
    line = f"{title:28s} n = {n}: first {first:.2f} s, then {steady:.4f} s, error {found['error']:.1e}"
    if inner is not None:
        pairs = n * (n + 1) / 2
        least = {
            "matrix_product": 2 * inner * pairs / ceilings["matrix_product"],
            "elementwise": operations_of_layers(kernel) * pairs / ceilings["elementwise"],
            "bytes": 4 * n**2 / ceilings["bytes"],
        }
        binding = max(least, key=lambda name: least[name])
        found |= {"least_seconds": least, "binding": binding, "share": least[binding] / steady}
        found["share_of_all"] = sum(least.values()) / steady
        line += f", {found['share']:.0%} of the ceiling of {binding} ({found['share_of_all']:.0%} of all three)"
    print(line, flush=True)
    return found


def operations_of_layers(kernel: Any, n: int = 512) -> float:
    """What XLA counts for a pair of inputs of one number, beside the inner product."""
    features = checked_features(kernel, jnp.linspace(-1.0, 1.0, n)[:, None])
    compiled = eqx.filter_jit(kernel.pair).lower(features, features).compile()
    return compiled.compiled.cost_analysis()["flops"] / n**2 - 2


def error(kernel: Any, x: np.ndarray) -> float:
    """Largest difference to float64 on the host, relative to the largest entry."""
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        exact = np.asarray(kernel.gram(x.astype(np.float64)).as_matrix())
    values = np.asarray(kernel.gram(jnp.asarray(x)).as_matrix())
    return float(np.abs(values - exact).max() / np.abs(exact).max())


def solve(n: int) -> dict[str, float]:
    """Training to convergence without the Gram matrix, float32 kernel and float64 vectors."""
    with jax.enable_x64(True):
        kernel = gpntk.NTK(gpntk.MLP(2, gpntk.ReLU(), bias_variance=0.1))
        x = np.random.default_rng(0).standard_normal((n, 8)).astype(np.float32)
        alpha = 1e-2 * float(lx.diagonal(kernel.diagonal(x)).mean())

        def train() -> gpntk.GradientFlow:
            flow = gpntk.GradientFlow(kernel, None, x, np.sin(x[:, 0]), alpha=alpha, solver=gpntk.MatrixFree(1e-5))
            jax.block_until_ready(flow.dual_coefficients(np.inf))
            return flow

        first = measure.seconds(train)
        flows = []
        seconds = measure.seconds(lambda: flows.append(train()))
        report = flows[0].solver_report
    print(f"solve, N = {n}: {seconds:.2f} s (first {first:.2f} s), {report.iterations} iterations", flush=True)
    return {"n": n, "first_seconds": first, "seconds": seconds, **report._asdict()}


if __name__ == "__main__":
    main()
