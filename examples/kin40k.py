"""Regression on 36,000 examples without the Gram matrix, beside two methods that approximate it.

    python examples/kin40k.py path/to/kin40k.npz    # arrays X (N, 8), y (N,) and test_mask (N, splits)
    python examples/kin40k.py                       # without data: 4,000 made-up examples

- `NTKRegressor` with the matrix-free solver: the NTK of a network, all training examples, trained to convergence;
- a sparse variational Gaussian process of GPJax: RBF kernel, 512 inducing inputs, minibatches;
- scikit-learn's Nystroem features with ridge regression: RBF kernel, 2,000 landmarks.

Depth, bias variance and alpha of the network, and width and alpha of the ridge, are chosen on 3,000 training
examples (1,000 of them held out); the Gaussian process trains its own. Every method runs in a process of
its own, so that peak memory is its own, and is written to the results file when done: an interrupted run goes on.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SUBSET, HELD_OUT = 3000, 1000
COLOURS = {"NTK, matrix-free": "#0072B2", "sparse variational GP": "#E69F00", "Nystroem ridge": "#009E73"}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("table", nargs="?", type=Path, help=".npz file with arrays X, y and test_mask")
    parser.add_argument("--output", type=Path, default=Path("kin40k.png"), help="where the figure goes")
    parser.add_argument("--results", type=Path, default=None, help="JSON file, by default beside the figure")
    parser.add_argument("--method", choices=METHODS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    path = args.results or args.output.with_suffix(".json")
    data = load(args.table)
    if args.method:
        found = METHODS[args.method](*data)
        print(json.dumps(found | {"peak_bytes": peak_resident_bytes()}))
        return
    if args.table is None:
        print("No data given: 4,000 made-up examples.")
    table = args.table.name if args.table else "made up"
    stored = json.loads(path.read_text()) if path.exists() else {"table": table, "methods": {}}
    if stored["table"] != table:
        parser.error(f"{path} holds results for {stored['table']}: delete it, or name another file with --results")
    results = stored["methods"]
    for name in METHODS:
        if name not in results:
            print(name, flush=True)
            arguments = [str(args.table)] if args.table else []
            command = [sys.executable, __file__, *arguments, "--method", name]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            results[name] = json.loads(output.splitlines()[-1])
            write(path, json.dumps(stored, indent=2) + "\n")
    for name, found in results.items():
        print(
            f"{name:24s} RMSE {found['rmse']:.4f}  {found['seconds']:6.0f} s  {found['peak_bytes'] / 1e9:.2f} GB"
        )
    draw(results, args.output)


def load(path):
    """Training and test part, in units of the training part's standard deviations."""
    if path is None:
        rng = np.random.default_rng(0)
        X = rng.uniform(-1.0, 1.0, size=(4000, 8))
        y = np.sin(3.0 * X[:, 0]) * X[:, 1] + np.cos(2.0 * X[:, 2] * X[:, 3]) + X[:, 4] * X[:, 5]
        test = np.arange(4000) % 10 == 0
    else:
        table = np.load(path)
        X, y, test = table["X"].astype(float), table["y"], table["test_mask"][:, 0]
    X = (X - X[~test].mean(0)) / X[~test].std(0)
    y = (y - y[~test].mean()) / y[~test].std()
    return X[~test], y[~test], X[test], y[test]


def rmse(prediction, y):
    return float(np.sqrt(np.mean((np.ravel(prediction) - y) ** 2)))


def best(candidates, fitted, X, y):
    """The settings whose model, fitted on a part of the training data, predicts another part best."""
    chosen = np.random.default_rng(0).permutation(len(X))[:SUBSET]
    fit, held_out = chosen[HELD_OUT:], chosen[:HELD_OUT]

    def error(settings):
        return rmse(fitted(*settings, X[fit], y[fit]).predict(X[held_out]), y[held_out])

    return min(candidates, key=error)


def neural_tangent_kernel(X, y, X_test, y_test):
    import gpntk

    # Smooth activations predict better here, but their kernels are so much closer to singular that conjugate
    # gradients need many times the iterations.
    def model(depth, bias_variance, alpha, solver):
        net = gpntk.MLP(depth, gpntk.ReLU(), weight_variance=2.0, bias_variance=bias_variance)
        return gpntk.NTKRegressor(net, alpha=alpha, dtype="float32", solver=solver)

    candidates = itertools.product((2, 4, 6), (0.03, 0.3), (1e-3, 3e-3, 1e-2, 3e-2))
    start = time.perf_counter()
    settings = best(candidates, lambda *s: model(*s[:3], "cholesky").fit(*s[3:]), X, y)
    search = time.perf_counter() - start
    print("depth, bias variance, alpha:", *settings, file=sys.stderr, flush=True)
    solver = gpntk.MatrixFree(tolerance=1e-2, rank=1000, progress=True)
    trained = model(*settings, solver).fit(X, y)
    error = rmse(trained.predict(X_test), y_test)
    report = trained.solver_report_
    return {
        "rmse": error,
        "seconds": time.perf_counter() - start,
        "search_seconds": search,
        "settings": settings,
        "iterations": report.iterations,
        "residual": report.residual,
    }


def sparse_variational_process(X, y, X_test, y_test):
    import gpjax as gpx
    import jax.numpy as jnp
    import optax

    start = time.perf_counter()
    rng = np.random.default_rng(0)
    inducing = jnp.asarray(X[rng.permutation(len(X))[: min(512, len(X) // 4)]])
    prior = gpx.gps.Prior(
        kernel=gpx.kernels.RBF(lengthscale=jnp.full(X.shape[1], 2.0)), mean_function=gpx.mean_functions.Zero()
    )
    model = prior * gpx.likelihoods.Gaussian(obs_stddev=jnp.array(0.3))
    family = gpx.variational_families.VariationalGaussian(model=model, inducing_inputs=inducing)
    data = gpx.Dataset(jnp.asarray(X), jnp.asarray(y)[:, None])
    fitted, _ = gpx.fit(
        model=family,
        objective=lambda q, d: -gpx.objectives.elbo(q, d),
        train_data=data,
        optim=optax.adam(0.02),
        num_iters=2000,
        batch_size=256,
        key=jax.random.key(0),
    )
    parts = [fitted(jnp.asarray(part)).mean for part in np.array_split(X_test, 10)]
    return {"rmse": rmse(np.concatenate(parts), y_test), "seconds": time.perf_counter() - start}


def nystroem_ridge(X, y, X_test, y_test):
    from sklearn.kernel_approximation import Nystroem
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline

    def model(gamma, alpha, n_components):
        return make_pipeline(Nystroem(gamma=gamma, n_components=n_components, random_state=0), Ridge(alpha=alpha))

    start = time.perf_counter()
    candidates = itertools.product(np.geomspace(0.01, 0.3, 8), np.geomspace(1e-6, 1e-2, 5))
    settings = best(candidates, lambda gamma, alpha, X, y: model(gamma, alpha, 1000).fit(X, y), X, y)
    trained = model(*settings, min(2000, len(X) // 2)).fit(X, y)
    return {"rmse": rmse(trained.predict(X_test), y_test), "seconds": time.perf_counter() - start}


METHODS = {
    "NTK, matrix-free": neural_tangent_kernel,
    "sparse variational GP": sparse_variational_process,
    "Nystroem ridge": nystroem_ridge,
}


def peak_resident_bytes():
    """Largest resident memory of this process so far (Linux)."""
    status = Path("/proc/self/status")
    if not status.exists():
        return float("nan")
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def write(path, text):
    """Atomically: an interrupted run never leaves half a file."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def draw(results, output):
    figure, panels = plt.subplots(1, 3, figsize=(9.0, 2.6), constrained_layout=True, sharey=True)
    quantities = (
        ("rmse", "test error (RMSE)", 1.0),
        ("seconds", "time (s)", 1.0),
        ("peak_bytes", "memory (GB)", 1e9),
    )
    for axes, (key, label, unit) in zip(panels, quantities, strict=True):
        values = [results[name][key] / unit for name in COLOURS]
        bars = axes.barh(list(COLOURS), values, color=list(COLOURS.values()), height=0.6)
        axes.bar_label(bars, fmt="%.3g", padding=3)
        axes.set(xlabel=label, xlim=(0.0, 1.25 * max(values)))
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].invert_yaxis()
    figure.savefig(output, dpi=150)
    print(f"Wrote {output}.")


if __name__ == "__main__":
    # The sparse process inverts matrices; the network's kernel asks for single precision by itself.
    jax.config.update("jax_enable_x64", True)
    main()
