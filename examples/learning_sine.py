"""Networks learn a sine: ensembles of finite networks beside the mean and band of infinitely wide ones.

    python examples/learning_sine.py

Six points of sin(x) are learnt by gradient descent from random initialisations. Columns are training times, rows
are widths. Blue: mean and two standard deviations over initialisations in the limit of infinite width, from
`gpntk.GradientFlow`. Orange: the same over an ensemble of trained networks of the width of the row, a few of which
are drawn as thin lines. Dots: the six points; dotted: the sine they lie on.
The printed numbers are root-mean-square differences over the interval, in units of the average analytic standard
deviation; those of the means have a sampling error of 1 / sqrt(members).
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax

import gpntk
from gpntk import plotting

matplotlib.use("Agg")
import matplotlib.pyplot as plt

NETWORK = gpntk.MLP(depth=2, activation=gpntk.Erf(), weight_variance=2.0, bias_variance=0.5)
TIMES, WIDTHS, MEMBERS = (1.0, 10.0, 100.0), (16, 64, 256), 60
SAMPLES = 8  # trained networks drawn one by one


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("learning_sine.png"), help="where the figure goes")
    args = parser.parse_args()

    x = np.array([-2.6, -1.7, -0.9, 0.3, 1.2, 2.4])[:, None]
    y = np.sin(x[:, 0])
    grid = np.linspace(-3.5, 3.5, 61)[:, None]

    with jax.enable_x64(True):
        flow = gpntk.GradientFlow(gpntk.NTK(NETWORK), gpntk.NNGP(NETWORK), x, y)
        mean = np.asarray(flow.mean(grid, np.array(TIMES)))
        std = np.sqrt(np.asarray(flow.variance(grid, np.array(TIMES))))
        # A fifth of the rate at which descent diverges: its path is that of the flow to a few percent at t = 1.
        learning_rate = float(flow.max_learning_rate()) / 5

    figure, axes = plt.subplots(
        len(WIDTHS), len(TIMES), figsize=(10, 7.5), sharex=True, sharey=True, layout="constrained"
    )
    print(f"{'width':>7s}{'time':>7s}{'steps':>8s}{'mean differs by':>18s}{'spread differs by':>20s}")
    for row, width in zip(axes, WIDTHS, strict=True):
        for column, time in enumerate(TIMES):
            steps = max(1, round(time / learning_rate))
            sgd, key = optax.sgd(time / steps), jax.random.key(0)
            params, _ = gpntk.train_ensemble(NETWORK, x, y, key, MEMBERS, sgd, steps, width=width, progress=True)
            outputs = np.asarray(jax.vmap(NETWORK.apply, (0, None))(params, jnp.float32(grid))[..., 0])
            panel(row[column], grid[:, 0], mean[column], std[column], outputs, x[:, 0], y)
            scale = std[column].mean()
            differences = [
                np.sqrt(np.mean((sampled - analytic) ** 2)) / scale
                for sampled, analytic in ((outputs.mean(0), mean[column]), (outputs.std(0, ddof=1), std[column]))
            ]
            print(f"{width:7d}{time:7g}{steps:8d}{differences[0]:18.3f}{differences[1]:20.3f}", flush=True)
        row[0].set_ylabel(f"width {width}", fontweight="bold")
    for column, time in enumerate(TIMES):
        axes[0, column].set_title(f"training time {time:g}", fontweight="bold", fontsize=11)
        axes[-1, column].set_xlabel("x")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(args.output, dpi=130)
    print(f"Figure: {args.output.resolve()}")


def panel(axes, grid, mean, std, outputs, x, y):
    label = "infinite width: mean and 2 std"
    plotting.plot_band(grid, mean, std, ax=axes, color="C0", lw=2.2, label=label)
    for index, network in enumerate(outputs[:SAMPLES]):
        axes.plot(grid, network, color="0.45", lw=0.5, alpha=0.7, label=None if index else "some of the networks")
    sampled, spread = outputs.mean(0), outputs.std(0, ddof=1)
    axes.plot(grid, sampled, color="C1", lw=1.2, label=f"{len(outputs)} networks: mean")
    for sign in (-2, 2):
        label = f"{len(outputs)} networks: 2 std" if sign > 0 else None
        axes.plot(grid, sampled + sign * spread, color="C1", lw=1.2, ls="--", label=label)
    axes.plot(grid, np.sin(grid), color="k", lw=0.9, ls=":", label="sin(x)")
    axes.plot(x, y, "ko", ms=4.5, zorder=5)
    axes.set(xlim=(grid[0], grid[-1]), ylim=(-1.6, 1.6))
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
