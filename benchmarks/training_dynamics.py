"""Fit and predict with infinitely wide networks, beside other libraries: time, and agreement where it is due.

    python benchmarks/training_dynamics.py            # N = 4000, d = 20, depth 2, float32; a few minutes
    python benchmarks/training_dynamics.py --short    # a few seconds: does it run?

Timed in alternation, in one run, the first call (which compiles) apart from the others, whose median counts:

    NTKRegressor, float32 and float64       fit and predict at t = inf, and at a finite time
    neural-tangents                         gradient_descent_mse_ensemble, kernel function jitted, float32
    GaussianProcessRegressor, KernelRidge   scikit-learn, RBF kernel with fixed hyperparameters

Then, in float64: means and covariances of `GradientFlow` against neural-tangents at five times; and what 100
further times cost after a fit, relative to one, for the mean and for the spread.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF
from sklearn.kernel_ridge import KernelRidge

import gpntk
import measure
import peers

RESULTS = Path(__file__).resolve().parent / "results" / "training_dynamics.json"
NET = peers.mlp(("ReLU", {}), depth=2, weight_variance=2.0, bias_variance=0.1)
ALPHA, TIME = 0.1, 10.0
AGREEMENT_TIMES = (0.1, 1.0, 10.0, 100.0, np.inf)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--n", type=int, default=4000)
    parser.add_argument("--d", type=int, default=20)
    parser.add_argument("--n-test", type=int, default=500)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--no-peer", action="store_true", help="leave neural-tangents out")
    parser.add_argument("--short", action="store_true", help="small sizes: only shows that the benchmark works")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.short:
        args.n, args.repeat, args.output = 300, 2, args.output.with_name("training_dynamics_short.json")

    results = measure.context() | {"settings": {"n": args.n, "d": args.d, "n_test": args.n_test}}
    results["fit_and_predict"] = time_everything(args)
    if not args.no_peer:
        results["agreement"] = agreement()
    results["hundred_times"] = hundred_times(min(args.n, 2000), args.n_test)
    measure.write_json(args.output, results)


def data(n: int, d: int, n_test: int, dtype: type) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n + n_test, d))
    y = np.sin(x[:, 0]) * x[:, 1] + 0.1 * rng.standard_normal(n + n_test)
    return x[:n].astype(dtype), y[:n, None].astype(dtype), x[n:].astype(dtype)


def time_everything(args: argparse.Namespace) -> dict[str, dict]:
    x, y, x_test = data(args.n, args.d, args.n_test, np.float32)
    network = peers.to_gpntk(NET)

    def ours(time: float, dtype: str) -> Callable[[], float]:
        model = gpntk.NTKRegressor(network, alpha=ALPHA, time=time, dtype=dtype)
        return lambda: measure.seconds(lambda: model.fit(x, y).predict(x_test))

    process = GaussianProcessRegressor(RBF(args.d**0.5), alpha=ALPHA, optimizer=None)
    ridge = KernelRidge(kernel="rbf", alpha=ALPHA)
    contenders = {
        "gpntk, t = inf, float32": ours(np.inf, "float32"),
        "gpntk, t = inf, float64": ours(np.inf, "float64"),
        "GaussianProcessRegressor": lambda: measure.seconds(lambda: process.fit(x, y[:, 0]).predict(x_test)),
        "KernelRidge": lambda: measure.seconds(lambda: ridge.fit(x, y[:, 0]).predict(x_test)),
        f"gpntk, t = {TIME:g}, float32": ours(TIME, "float32"),
    }
    peer = None if args.no_peer else peers.NeuralTangents()
    if peer:
        stored = [peer.put(a) for a in (x, y, x_test)]
        contenders["neural-tangents, t = inf, float32"] = lambda: peer.predict(NET, *stored, None, ALPHA)[0]
        contenders[f"neural-tangents, t = {TIME:g}, float32"] = lambda: peer.predict(NET, *stored, TIME, ALPHA)[0]
    first = {name: call() for name, call in contenders.items()}
    rounds = [{name: call() for name, call in contenders.items()} for _ in range(args.repeat)]
    if peer:
        peer.close()

    times = {name: [r[name] for r in rounds] for name in contenders}
    reference = statistics.median(times["gpntk, t = inf, float32"])
    print(f"fit and predict, N = {args.n}, d = {args.d}, {args.n_test} test inputs, depth 2")
    rows = [
        [name, f"{first[name]:.3f}", f"{statistics.median(t):.3f}", f"{statistics.median(t) / reference:.2f}"]
        for name, t in times.items()
    ]
    print(measure.table(["", "first (s)", "median (s)", "ratio"], rows))
    return {name: {"first": first[name], **measure.summary(t)} for name, t in times.items()}


def agreement() -> dict[str, list[float]]:
    """Largest deviations from the peer, relative to the largest entry, in float64."""
    x, y, x_test = data(60, 5, 20, np.float64)
    network = peers.to_gpntk(NET)
    rows = {}
    with jax.enable_x64(True), peers.NeuralTangents(x64=True) as peer:
        flow = gpntk.GradientFlow(gpntk.NTK(network), gpntk.NNGP(network), x, y, alpha=ALPHA)
        stored = [peer.put(a) for a in (x, y, x_test)]
        for time in AGREEMENT_TIMES:
            _, mean, spread = peer.predict(NET, *stored, None if np.isinf(time) else time, ALPHA, covariance=True)
            pairs = ((flow.mean(x_test, time), mean), (flow.covariance(x_test, time), spread))
            rows[f"{time:g}"] = [float(np.abs(np.asarray(a) - b).max() / np.abs(b).max()) for a, b in pairs]
    print("\nrelative deviation from neural-tangents, float64")
    print(
        measure.table(["time", "mean", "covariance"], [[t, f"{a:.1e}", f"{b:.1e}"] for t, (a, b) in rows.items()])
    )
    return rows


def hundred_times(n: int, n_test: int) -> dict[str, dict[str, float]]:
    """Seconds of one time and of a hundred, after the fit and after compilation, for means and variances."""
    x, y, x_test = data(n, 20, n_test, np.float64)
    network = peers.to_gpntk(NET)
    one, hundred = np.array([TIME]), np.geomspace(0.01, 100.0, 100)
    results = {}
    with jax.enable_x64(True):
        flow = gpntk.GradientFlow(gpntk.NTK(network), gpntk.NNGP(network), x, y, alpha=ALPHA)
        for name, quantity, repeat in (("mean", flow.mean, 9), ("variance", flow.variance, 3)):
            calls = [
                lambda q=quantity, times=times: jax.block_until_ready(q(x_test, times)) for times in (one, hundred)
            ]
            for call in calls:
                call()
            rounds = [[measure.seconds(call) for call in calls] for _ in range(repeat)]
            medians = [statistics.median(column) for column in zip(*rounds, strict=True)]
            seconds = "one time {:.4f} s, a hundred {:.4f} s".format(*medians)
            print(f"N = {n}, {n_test} test inputs, {name} after a fit: {seconds}")
            results[name] = {"one": medians[0], "hundred": medians[1]}
    return results


if __name__ == "__main__":
    main()
