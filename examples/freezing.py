"""The tangent kernel freezes: how its change in training and its spread at initialisation fall with the width.

    python examples/freezing.py

For every width, networks are drawn and trained to the same time. Shown are the relative change of the empirical
NTK in training, |H_t - H_0| / |H_0| in the Frobenius norm, averaged over networks, and its relative spread over
initialisations, the root mean square of |H_0 - mean| / |mean|. At leading order the first falls like 1/n
and the second like 1/sqrt(n); the printed slopes of log-log fits weight every width by its standard error.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from tqdm import tqdm

import gpntk

matplotlib.use("Agg")
import matplotlib.pyplot as plt

NETWORK = gpntk.MLP(depth=2, activation=gpntk.Erf(), weight_variance=2.0, bias_variance=0.2)
WIDTHS = (64, 128, 256, 512, 1024, 2048)
MEMBERS, TIME = 32, 5.0


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("freezing.png"), help="where the figure goes")
    args = parser.parse_args()

    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 3))
    y = np.sin(x.sum(1))
    flow = gpntk.GradientFlow(gpntk.NTK(NETWORK), None, x, y)
    steps = int(np.ceil(TIME / (float(flow.max_learning_rate()) / 5)))

    changes, spreads = [], []
    for width in tqdm(WIDTHS, desc="width"):
        change, spread = measure(x, y, width, steps)
        changes.append(change)
        spreads.append(spread)
    quantities = {
        "change in training": (np.array(changes), -1.0),
        "spread at initialisation": (np.array(spreads), -0.5),
    }
    figure, axes = plt.subplots(figsize=(6, 4.5), layout="constrained")
    for colour, (name, (values, expected)) in enumerate(quantities.items()):
        slope, error, intercept = log_log_fit(np.array(WIDTHS), *values.T)
        print(f"{name:26s}slope {slope:.3f} +- {error:.3f}   (leading order: {expected})")
        widths = np.array(WIDTHS, float)
        label = rf"{name}: slope ${slope:.2f} \pm {error:.2f}$"
        axes.errorbar(WIDTHS, values[:, 0], yerr=values[:, 1], fmt="o", ms=5, capsize=3, color=f"C{colour}")
        axes.plot(WIDTHS, np.exp(intercept) * widths**slope, color=f"C{colour}", label=label)
        # Through the point of the largest width, where the leading order holds best.
        leading = values[-1, 0] * (widths / widths[-1]) ** expected
        label = None if colour else "leading order: slopes $-1$ and $-1/2$"
        axes.plot(WIDTHS, leading, color="0.5", ls=":", label=label)
    axes.set(xscale="log", yscale="log", xlabel="width", ylabel="size relative to the tangent kernel")
    axes.set_xticks(WIDTHS, [str(w) for w in WIDTHS])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(args.output, dpi=130)
    print(f"Figure: {args.output.resolve()}")


def measure(x, y, width, steps):
    """Mean relative change and relative spread of the empirical NTK, each with its standard error."""
    key = jax.random.key(width)
    keys = jax.random.split(key, MEMBERS)  # those that train_ensemble starts its members from
    initial = jax.vmap(lambda k: NETWORK.init(k, x.shape[1], width))(keys)
    trained, _ = gpntk.train_ensemble(NETWORK, x, y, key, MEMBERS, optax.sgd(TIME / steps), steps, width=width)
    kernels = jax.jit(
        lambda params: jax.lax.map(lambda p: gpntk.empirical_ntk(NETWORK, p, jnp.asarray(x)), params)
    )
    before, after = np.asarray(kernels(initial)), np.asarray(kernels(trained))

    change = np.linalg.norm(after - before, axis=(1, 2)) / np.linalg.norm(before, axis=(1, 2))
    squares = np.sum((before - before.mean(0)) ** 2, axis=(1, 2)) * MEMBERS / (MEMBERS - 1)
    spread = np.sqrt(squares.mean()) / np.linalg.norm(before.mean(0))
    spread_error = spread * 0.5 * squares.std(ddof=1) / MEMBERS**0.5 / squares.mean()
    return (change.mean(), change.std(ddof=1) / MEMBERS**0.5), (spread, spread_error)


def log_log_fit(x, y, error):
    """Weighted least squares of log y on log x: slope, its standard error, intercept."""
    weights = y / error  # one over the standard error of log y
    coefficients, covariance = np.polyfit(np.log(x), np.log(y), 1, w=weights, cov="unscaled")
    return coefficients[0], np.sqrt(covariance[0, 0]), coefficients[1]


if __name__ == "__main__":
    main()
