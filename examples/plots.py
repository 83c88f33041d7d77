"""What `gpntk.plotting` draws, each in a panel of its own.

    python examples/plots.py

Top: kernels against the angle between two inputs, at three depths; predictions of trained networks over time;
fluctuations of networks of finite width against depth. Middle: accuracy on held-out digits over training time and
over the number of training digits; the orbit of a digit under rotations and reflections. Bottom: a signal on the
sphere, the same signal turned, and what an atom of a molecule sees of the others.
"""

import argparse
from pathlib import Path

import jax
import matplotlib
import numpy as np
from sklearn.datasets import load_digits

import gpntk
from gpntk import plotting

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("plots.png"), help="where the figure goes")
    args = parser.parse_args()

    plt.rcParams["axes.prop_cycle"] = plt.cycler(color=matplotlib.color_sequences["petroff10"])
    heights = {"height_ratios": (4, 4, 2.6)}
    figure, axes = plt.subplots(3, 3, figsize=(13, 10), layout="constrained", gridspec_kw=heights)
    (angle, bands, depth), (times, sizes, orbit), (signal, turned, environment) = axes
    kernels(angle)
    predictions(bands)
    fluctuations(depth)
    digits(times, sizes, orbit)
    sphere(signal, turned)
    molecule(environment)
    figure.savefig(args.output, dpi=110)
    print(f"Figure: {args.output.resolve()}")


def kernels(ax):
    for number, depth in enumerate((1, 3, 10)):
        net = gpntk.MLP(depth, gpntk.ReLU(), weight_variance=2.0)
        for kernel, style in ((gpntk.NNGP(net), "-"), (gpntk.NTK(net), "--")):
            label = f"{type(kernel).__name__}, depth {depth}"
            plotting.plot_against_angle(kernel, relative=True, ax=ax, ls=style, color=f"C{number}", label=label)
    ax.set_title("plot_against_angle: ReLU networks")
    ax.legend(fontsize=8, frameon=False)


def predictions(ax):
    x = np.array([-2.6, -1.7, -0.9, 0.3, 1.2, 2.4])[:, None]
    net = gpntk.MLP(depth=2, activation=gpntk.Erf(), weight_variance=2.0, bias_variance=0.5)
    model = gpntk.NTKRegressor(net).fit(x, np.sin(x[:, 0]))
    plotting.plot_predictions(model, np.linspace(-3.5, 3.5, 141)[:, None], (0.1, 2.0, np.inf), ax=ax)
    ax.set_title("plot_predictions: mean and two deviations")


def fluctuations(ax):
    for activation in (gpntk.ReLU(), gpntk.GELU(), gpntk.Tanh()):
        critical = gpntk.critical_initialization(activation)
        net = gpntk.MLP(12, activation, critical.weight_variance, critical.bias_variance)
        statistics = gpntk.cumulants(net, np.array([[0.6]]))
        plotting.plot_against_depth(statistics, ax=ax, marker="o", ms=3, label=type(activation).__name__)
    ax.set_title("plot_against_depth: variance of kernels x width")
    ax.legend(frameon=False)


def digits(times, sizes, orbit):
    images, labels = load_digits(return_X_y=True)
    x = (images - images.mean()) / images.std()
    order = np.random.default_rng(0).permutation(len(x))
    train, test = order[:500], order[500:1000]
    net = gpntk.MLP(depth=2, bias_variance=0.1)
    model = gpntk.NTKClassifier(net, alpha=1e-3).fit(x[train], labels[train])
    plotting.plot_against_time(model, x[test], labels[test], np.geomspace(1e-4, 1e3, 22), ax=times)
    times.set_title("plot_against_time: digits, one fit")

    counts = (25, 50, 100, 200, 400)
    for title, network in (("MLP", net), ("readout only", gpntk.NNGP(net))):
        scores = []
        for shuffle in range(3):
            rows = np.random.default_rng(shuffle).permutation(train)
            fitted = [gpntk.NTKClassifier(network, alpha=1e-3).fit(x[rows[:n]], labels[rows[:n]]) for n in counts]
            scores.append([model.score(x[test], labels[test]) for model in fitted])
        plotting.plot_against_size(counts, scores, ax=sizes, label=title)
    sizes.set(ylabel="accuracy", title="plot_against_size: three shuffles")
    sizes.legend(frameon=False)

    plotting.plot_orbit(gpntk.groups.D4((8, 8, 1)), images[12], (8, 8), columns=4, ax=orbit, cmap="gray_r")
    orbit.set_title("plot_orbit: a digit under D4")


def sphere(signal, turned):
    group = gpntk.groups.SO3(bandlimit=6, sampling="coefficients")
    x = np.random.default_rng(1).normal(size=(1, 36)) / (1 + np.arange(36))[None] ** 0.5
    plotting.plot_sphere(group, x[0], ax=signal)
    signal.set_title("plot_sphere: a signal of bandlimit 6")
    plotting.plot_sphere(group, np.asarray(group.rotate(x, np.array([0.0, np.pi / 2, 0.0])))[0], ax=turned)
    turned.set_title("turned by 90 degrees about the y axis")


def molecule(ax):
    water = np.array([[8, 1, 1]]), np.array([[[0.0, 0.0, 0.12], [0.0, 0.76, -0.47], [0.0, -0.76, -0.47]]])
    x = gpntk.datasets.atom_environments(*water, bandlimit=6)
    group = gpntk.groups.SO3(6, 4, "coefficients")
    plotting.plot_sphere(group, x.reshape(3, -1)[0], channel=0, ax=ax, cmap="viridis", vmin=0)
    ax.set_title("water as its oxygen sees it: hydrogen")


if __name__ == "__main__":
    with jax.enable_x64(True):
        main()
