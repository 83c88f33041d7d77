"""Test error of `NTKRegressor` on six UCI tables, split by split against a Gaussian process with RBF kernel.

    python benchmarks/uci_regression.py path/to/uci          # all ten splits of six tables; about an hour
    python benchmarks/uci_regression.py path/to/uci --short  # two splits of the smallest table

The folder holds one `.npz` file a table, with arrays X (N, d), y (N,) and test_mask (N, splits). Inputs and
targets are standardised on the training rows of each split, and only those rows choose hyperparameters:

- `NTKRegressor`: activation, depth, both variances and alpha by the leave-one-out error, which one
  eigendecomposition of the Gram matrix gives in closed form for every alpha;
- `GaussianProcessRegressor(ConstantKernel * RBF + WhiteKernel, n_restarts_optimizer=3)`: the evidence.

Every finished split is written to the results file at once; a run that was interrupted goes on where it stopped.
Date and versions are those of its beginning.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
import warnings
from pathlib import Path

import jax
import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.preprocessing import StandardScaler

import measure
import report

RESULTS = Path(__file__).resolve().parent / "results" / "uci_regression.json"
TABLES = ("yacht", "housing", "energy", "concrete", "airfoil", "wine")
DEPTHS, WEIGHT_VARIANCES, BIAS_VARIANCES = (1, 2, 3), (0.1, 0.5, 2.0, 8.0), (0.1, 1.0)
RELATIVE_ALPHAS = np.geomspace(1e-9, 1.0, 28)  # in units of the mean diagonal of the Gram matrix


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="folder of the .npz tables")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=TABLES)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--splits", type=int, default=10)
    parser.add_argument("--short", action="store_true", help="two splits of the smallest table")
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON file, read and extended")
    args = parser.parse_args()
    if args.short:
        args.tables, args.splits, args.results = ("yacht",), 2, args.results.with_name("uci_regression_short.json")
    run(args)
    print(report.uci_regression(json.loads(args.results.read_text())))


def run(args: argparse.Namespace) -> None:
    for model, name, split in itertools.product(args.models, args.tables, range(args.splits)):
        results = json.loads(args.results.read_text()) if args.results.exists() else measure.context()
        done = results.setdefault(model, {}).setdefault(name, {})
        if str(split) in done:
            continue
        x_train, y_train, x_test, y_test, unit = load(args.folder / f"{name}.npz", split)
        started = time.perf_counter()
        prediction, chosen = MODELS[model](x_train, y_train, x_test)
        rmse = float(unit * np.sqrt(np.mean((prediction - y_test) ** 2)))
        done[str(split)] = {"rmse": rmse, "seconds": time.perf_counter() - started, "chosen": chosen}
        measure.write_json(args.results, results)
        print(f"{model:26s}{name:10s}split {split}: {rmse:8.4f}  {chosen}", flush=True)


def load(path: Path, split: int):
    """Standardised training and test parts of one split, and the unit of the standardised target."""
    with np.load(path) as table:
        x, y, test = table["X"].astype(np.float64), table["y"], table["test_mask"][:, split]
    scale = StandardScaler().fit(x[~test])
    mean, unit = y[~test].mean(), y[~test].std()
    y = (y - mean) / unit
    return scale.transform(x[~test]), y[~test], scale.transform(x[test]), y[test], unit


def ntk(x_train: np.ndarray, y_train: np.ndarray, x_test: np.ndarray) -> tuple[np.ndarray, str]:
    import gpntk

    grid = [
        gpntk.MLP(depth, activation, weight_variance=weight, bias_variance=bias)
        for activation in (gpntk.GELU(), gpntk.ReLU())
        for depth, weight, bias in itertools.product(DEPTHS, WEIGHT_VARIANCES, BIAS_VARIANCES)
        # A ReLU network's kernel only changes scale with the ratio of the variances fixed.
        if activation == gpntk.GELU() or weight == 2.0
    ]
    best = (np.inf, None, None)
    for net in grid:
        with jax.enable_x64(True):
            gram = np.asarray(gpntk.NTK(net).gram(x_train).as_matrix())
        alphas = RELATIVE_ALPHAS * np.trace(gram) / len(gram)
        errors = leave_one_out(gram, y_train, alphas)
        if errors.min() < best[0]:
            best = (errors.min(), net, alphas[errors.argmin()])
    _, net, alpha = best
    prediction = gpntk.NTKRegressor(net, alpha=alpha).fit(x_train, y_train).predict(x_test)
    weight, bias = (net.get_params()[name] for name in ("weight_variance", "bias_variance"))
    chosen = f"weight_variance={weight:g} bias_variance={bias:g} alpha={alpha:.2g}"
    return prediction, f"{net.activation!r} depth={net.depth} {chosen}"


def leave_one_out(gram: np.ndarray, y: np.ndarray, alphas: np.ndarray) -> np.ndarray:
    """Mean squared leave-one-out error of kernel ridge regression for every alpha.

    The residual of row i left out is [B^-1 y]_i / [B^-1]_ii with B = gram + alpha (Rasmussen & Williams
    2006, eq. 5.12).
    """
    values, vectors = np.linalg.eigh(gram)
    projected, squares = vectors.T @ y, vectors**2
    inverse = 1.0 / (values[:, None] + alphas)
    residuals = (vectors @ (inverse * projected[:, None])) / (squares @ inverse)
    return np.mean(residuals**2, axis=0)


def rbf_process(x_train: np.ndarray, y_train: np.ndarray, x_test: np.ndarray) -> tuple[np.ndarray, str]:
    kernel = ConstantKernel() * RBF() + WhiteKernel()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = GaussianProcessRegressor(kernel, n_restarts_optimizer=3, random_state=0).fit(x_train, y_train)
    return model.predict(x_test), str(model.kernel_)


MODELS = {"NTKRegressor": ntk, "GaussianProcessRegressor": rbf_process}


if __name__ == "__main__":
    main()
