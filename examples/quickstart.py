"""Infinitely wide networks on a real table, beside the kernel methods people know.

    python examples/quickstart.py                     # scikit-learn's diabetes table
    python examples/quickstart.py path/to/yacht.npz   # arrays X (N, d), y (N,), test_mask (N, splits)

Four models predict the held-out quarter of the table (or the held-out rows of each split in the file):

- `NTKRegressor`: the mean of wide ReLU networks trained to convergence; weight decay by cross-validation;
- a GPJax posterior with the `NNGP` kernel of the same network: variances and noise trained by `gpjax.fit`;
- scikit-learn's `GaussianProcessRegressor` with an RBF kernel, trained by evidence;
- scikit-learn's `KernelRidge` with an RBF kernel, by cross-validation.

The score is the root mean squared error and the mean log likelihood of held-out targets, both in units of the
standardised target, over five splits. A model without a noise model of its own is given the cross-validated
mean squared error as variance.
"""

import argparse
import time
import warnings
from pathlib import Path

import gpjax as gpx
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from scipy.stats import norm
from sklearn.datasets import load_diabetes
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.kernel_ridge import KernelRidge
from sklearn.model_selection import GridSearchCV
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from gpntk import MLP, NNGP, NTKRegressor, ReLU

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SPLITS = 5
NETWORK = MLP(depth=2, activation=ReLU(), weight_variance=2.0, bias_variance=0.1)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("table", nargs="?", type=Path, help=".npz file: X (N, d), y (N,), test_mask (N, splits)")
    parser.add_argument("--output", type=Path, default=Path("quickstart.png"), help="where the figure goes")
    parser.add_argument("--max-rows", type=int, default=1500, help="training rows used of a larger table")
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)  # what GPJax recommends; the estimators do not need it

    name, splits = read_splits(args.table, args.max_rows)
    models = {
        "NTK regression (gpntk)": ntk_regression,
        "NNGP posterior (gpntk + GPJax)": nngp_posterior,
        "Gaussian process, RBF (scikit-learn)": rbf_process,
        "kernel ridge, RBF (scikit-learn)": rbf_ridge,
    }
    scores = {model: [] for model in models}
    started = time.perf_counter()
    for index, split in enumerate(tqdm(splits, desc=name, unit="split")):
        for model, predict in models.items():
            x_train, y_train, x_test, y_test = split
            begun = time.perf_counter()
            mean, std, band = predict(x_train, y_train, x_test)
            seconds = time.perf_counter() - begun
            rmse = np.sqrt(np.mean((mean - y_test) ** 2))
            scores[model].append((rmse, norm.logpdf(y_test, mean, std).mean(), seconds))
            if index == 0 and "gpntk" in model:
                draw(model, y_test, mean, band)
    print_table(name, splits, scores)
    finish_figure(name, args.output)
    print(f"\nFigure: {args.output.resolve()}   ({time.perf_counter() - started:.0f} s in all)")


def read_splits(path, max_rows):
    """Name of the table and a list of (x_train, y_train, x_test, y_test), standardised on the training part."""
    if path is None:
        x, y = load_diabetes(return_X_y=True)
        order = [np.random.default_rng(seed).permutation(len(y)) for seed in range(SPLITS)]
        masks = [np.isin(np.arange(len(y)), o[: len(y) // 4]) for o in order]
        name = "diabetes"
    else:
        with np.load(path) as table:
            x, y, masks = table["X"].astype(float), table["y"], table["test_mask"]
        if len(masks) != len(y):
            raise SystemExit(f"test_mask must have shape ({len(y)}, splits), got {masks.shape}.")
        masks = masks.reshape(len(y), -1).T[:SPLITS]
        name = path.stem
    splits = []
    for seed, test in enumerate(masks):
        train = np.random.default_rng(seed).permutation(np.flatnonzero(~test))[:max_rows]
        scale_x = StandardScaler().fit(x[train])
        scale_y = StandardScaler().fit(y[train, None])
        splits.append(
            tuple(
                part
                for rows in (train, np.flatnonzero(test))
                for part in (scale_x.transform(x[rows]), scale_y.transform(y[rows, None])[:, 0])
            )
        )
    return name, splits


# Each model returns the mean and standard deviation of its prediction, and the error bars of the figure.


def ntk_regression(x_train, y_train, x_test):
    grid = {"alpha": np.geomspace(0.01, 100.0, 9), "network__depth": [1, 2, 3]}
    search = GridSearchCV(NTKRegressor(NETWORK), grid, scoring="neg_mean_squared_error").fit(x_train, y_train)
    mean, spread = search.predict(x_test), search.best_estimator_.predict(x_test, return_std=True)[1]
    return mean, np.sqrt(-search.best_score_), spread


def nngp_posterior(x_train, y_train, x_test):
    data = gpx.Dataset(X=jnp.asarray(x_train), y=jnp.asarray(y_train)[:, None])
    prior = gpx.gps.Prior(mean_function=gpx.mean_functions.Zero(), kernel=NNGP(NETWORK, variance=1.0))
    model = prior * gpx.likelihoods.Gaussian(obs_stddev=0.5)
    model, _ = gpx.fit(
        model=model,
        objective=lambda model, data: -gpx.objectives.conjugate_mll(model, data),
        train_data=data,
        optim=optax.adam(0.05),
        num_iters=150,
        verbose=False,
    )
    latent = model.condition(data)(jnp.asarray(x_test), covariance="diagonal")
    predictive = model.likelihood(latent)
    std = np.sqrt(np.asarray(predictive.variance))
    return np.asarray(predictive.mean), std, std


def rbf_process(x_train, y_train, x_test):
    kernel = ConstantKernel() * RBF(length_scale=np.sqrt(x_train.shape[1])) + WhiteKernel()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # parameters at their bounds
        model = GaussianProcessRegressor(kernel).fit(x_train, y_train)
    mean, std = model.predict(x_test, return_std=True)
    return mean, std, std


def rbf_ridge(x_train, y_train, x_test):
    grid = {"alpha": np.geomspace(0.001, 10.0, 9), "gamma": np.geomspace(0.001, 1.0, 7)}
    search = GridSearchCV(KernelRidge(kernel="rbf"), grid, scoring="neg_mean_squared_error")
    search.fit(x_train, y_train)
    std = np.full(len(x_test), np.sqrt(-search.best_score_))
    return search.predict(x_test), std, std


def print_table(name, splits, scores):
    rows = [len(split[1]) for split in splits]
    print(f"\n{name}: {len(splits)} splits of about {rows[0]} training and {len(splits[0][3])} test rows")
    print(f"{'':38s}{'test RMSE':>18s}{'log likelihood':>20s}{'seconds':>10s}")
    for model, values in scores.items():
        values = np.array(values)
        cells = [f"{mean:.3f}" for mean in values.mean(0)]
        if len(values) > 1:
            errors = values.std(0, ddof=1) / np.sqrt(len(values))
            cells = [f"{cell} +- {error:.3f}" for cell, error in zip(cells, errors, strict=True)]
        rmse, likelihood = cells[:2]
        print(f"{model:38s}{rmse:>18s}{likelihood:>20s}{np.median(values[:, 2]):10.1f}")


def draw(model, y_test, mean, band):
    figure = plt.figure("quickstart", figsize=(10, 4.6), layout="constrained")
    axes = figure.add_subplot(1, 2, len(figure.axes) + 1)
    axes.errorbar(y_test, mean, yerr=2 * band, fmt="o", ms=3.5, lw=0.6, alpha=0.75, color="C0", ecolor="C7")
    low, high = min(y_test.min(), mean.min()) - 0.3, max(y_test.max(), mean.max()) + 0.3
    axes.plot([low, high], [low, high], color="k", lw=0.8)
    what = "spread of trained networks" if model.startswith("NTK") else "predictive"
    axes.set(title=f"{model}\nbars: 2 standard deviations, {what}", xlabel="held-out target (standardised)")
    axes.set(xlim=(low, high), ylim=(low - 1.2, high + 1.2), ylabel="prediction")


def finish_figure(name, path):
    figure = plt.figure("quickstart")
    figure.suptitle(f"Infinitely wide ReLU networks on the {name} table, first split")
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
