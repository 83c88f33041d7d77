"""Data augmentation and equivariance: wide networks trained on all rotations are wide group networks.

    python examples/augmentation_vs_equivariance.py              # scikit-learn's 8 x 8 digits
    python examples/augmentation_vs_equivariance.py mnist.npz    # arrays images (N, 28, 28) and labels (N,)

Three parts with a figure each; `--parts ab` leaves the last, longest one out.

(a) Infinite width. Gradient flow on the set augmented by all rotations (C4), with the averaged kernel
    `GroupAveraged(NTK(cnn), group)`, and with the kernel of the C4 network: three computations, one prediction at
    every time and everywhere, also for noise images far from the data.
(b) Finite width. Ensembles of CNNs trained on the augmented set and of C4 networks trained on the plain set. The
    root-mean-square difference of the mean outputs falls like 1 / sqrt(members), down to a floor of order
    1 / width. The floor is measured with less noise: from outputs minus what the limit of infinite width makes of
    their values at initialisation, whose mean is zero, and without the sampling variance of the two means.
    Intervals are from a bootstrap over members.
(c) Accuracy on digits turned by random multiples of 90 degrees, in training and test, as the training set grows:
    mean and standard error over random splits.

MNIST images are averaged over 2 x 2 blocks, to 14 x 14.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from sklearn.datasets import load_digits
from tqdm import tqdm

import gpntk
from gpntk import plotting

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ARGUMENTS = {"depth": 2, "weight_variance": 2.0, "bias_variance": 0.1}
TIMES = np.geomspace(0.1, 1e4, 16)
WIDTHS, MEMBERS, TIME = (4, 8, 16), 64, 6.0
# For (c), on digits it does not use, 3 layers were best for the CNN; the MLP is indifferent.
DEEPER = {**ARGUMENTS, "depth": 3}
SIZES = (25, 50, 100, 200, 500)
ENGINE = gpntk.BlockedComputation(progress=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("images", nargs="?", type=Path, help=".npz file with arrays images and labels")
    parser.add_argument("--parts", default="abc", help="which parts to run")
    parser.add_argument("--members", type=int, default=MEMBERS, help="networks in an ensemble, a power of two")
    parser.add_argument("--train", type=int, default=max(SIZES), help="largest number of training digits in (c)")
    parser.add_argument("--test", type=int, default=500, help="number of test digits in (c)")
    parser.add_argument("--seeds", type=int, default=3, help="number of random splits in (c)")
    parser.add_argument("--output", type=Path, default=Path(), help="folder of the figures")
    args = parser.parse_args()

    name, images, labels = read(args.images)
    shape = (*images.shape[1:], 1)
    x = images.reshape(len(images), -1)
    x = (x - x.mean()) / x.std()  # one mean and scale for all pixels, which rotations leave alone
    print(f"{name}, {shape[0]} x {shape[1]}")
    parts = {
        "a": ("augmentation_infinite_width.png", 1, lambda axes: infinite_width(axes, x, labels, shape)),
        "b": ("augmentation_ensembles.png", 2, lambda axes: finite_width(*axes, x, labels, shape, args.members)),
        "c": (
            "rotated_digits.png",
            1,
            lambda axes: accuracy(axes, x, labels, shape, args.train, args.test, args.seeds),
        ),
    }
    for part in args.parts:
        file, panels, draw = parts[part]
        figure, axes = plt.subplots(1, panels, figsize=(1 + 5.2 * panels, 4.5), layout="constrained")
        draw(axes)
        figure.savefig(args.output / file, dpi=130)
        print(f"Figure: {(args.output / file).resolve()}")


def read(path):
    if path is None:
        digits = load_digits()
        return "scikit-learn's digits", digits.images, digits.target
    with np.load(path) as file:
        images, labels = file["images"].astype(float), file["labels"]
    height, width = (size // 2 for size in images.shape[1:])
    return path.stem, images.reshape(len(images), height, 2, width, 2).mean((2, 4)), labels


def two_classes(x, labels, count):
    """The first `count` images of threes and eights, and targets -1 and 1."""
    rows = np.flatnonzero((labels == 3) | (labels == 8))[:count]
    return x[rows], np.where(labels[rows] == 3, -1.0, 1.0)


def infinite_width(axes, x, labels, shape):
    group, cnn = gpntk.groups.C4(shape), gpntk.CNN(shape, **ARGUMENTS)
    x_train, y = two_classes(x, labels, 8)
    noise = np.random.default_rng(0).normal(size=(4, x.shape[1]))
    inputs = {"training digits, turned": np.asarray(group.transform(x_train, 1)), "noise images": 3.0 * noise}
    alpha = 1e-2
    with jax.enable_x64(True):
        many, labels_of_many = gpntk.groups.augment(x_train, y, group)
        flows = {
            "augmented set": (gpntk.NTK(cnn), many, labels_of_many, group.order * alpha),
            "averaged kernel": (gpntk.GroupAveraged(gpntk.NTK(cnn), group), x_train, y, alpha),
            "C4 network": (gpntk.NTK(gpntk.equivariant(cnn, group)), x_train, y, alpha),
        }
        flows = {
            title: gpntk.GradientFlow(kernel, None, *data, alpha=weight, reduction="mean")
            for title, (kernel, *data, weight) in tqdm(flows.items(), desc="(a) gradient flows")
        }
        print("\n(a) largest difference of predictions, relative to the largest prediction, over all times")
        for title, points in inputs.items():
            paths = {name: np.asarray(flow.mean(points, TIMES)) for name, flow in flows.items()}
            reference = paths.pop("augmented set")
            for name, path in paths.items():
                difference = np.abs(path - reference).max() / np.abs(reference).max()
                print(f"    {title:26s}{name:18s}{difference:.1e}")
            colour = "C0" if title.startswith("training") else "C3"
            for path, style in ((reference, "-"), (paths["averaged kernel"], "o"), (paths["C4 network"], "x")):
                axes.semilogx(TIMES, path[:, :4], style, color=colour, ms=5, lw=1)
    for style, label in (("-", "CNN, augmented set"), ("o", "averaged kernel"), ("x", "C4 network")):
        axes.plot([], [], style, color="0.3", label=label)
    axes.plot([], [], color="C0", label="four training digits, turned")
    axes.plot([], [], color="C3", label="four noise images")
    axes.set(xlabel="training time", ylabel="mean output", title="(a) infinite width: one prediction")
    axes.legend(fontsize=8)


def finite_width(axes_members, axes_width, x, labels, shape, members):
    group = gpntk.groups.C4(shape)
    cnn = gpntk.CNN(shape, **ARGUMENTS)
    nets = cnn, gpntk.equivariant(cnn, group)
    x_train, y = (a.astype(np.float32) for a in two_classes(x, labels, 4))
    data = gpntk.groups.augment(x_train, y, group), (x_train, y)
    noise = np.random.default_rng(1).normal(size=(16, x.shape[1])).astype(np.float32)
    inputs = {"training orbit": data[0][0], "noise images": noise}

    flow = gpntk.GradientFlow(gpntk.NTK(nets[1]), None, x_train, y, reduction="mean")
    steps = int(np.ceil(TIME / (float(flow.max_learning_rate()) / 5)))
    sgd = optax.sgd(TIME / steps)
    points = jnp.concatenate(list(inputs.values()))
    counts = 2 ** np.arange(int(np.log2(members)) + 1)
    floors = {title: [] for title in inputs}
    print(f"\n(b) {members} members each, {steps} steps to time {TIME:g}")
    for index, width in enumerate(WIDTHS):
        plain, controlled = [], []
        for seed, (net, (inputs_of_net, targets)) in enumerate(zip(nets, data, strict=True)):
            options = {"width": width, "reduction": "mean", "progress": True}
            key = jax.random.key(2 * index + seed)
            params, _ = gpntk.train_ensemble(net, inputs_of_net, targets, key, members, sgd, steps, **options)
            initial = jax.vmap(lambda k, net=net, width=width: net.init(k, width=width))(
                jax.random.split(key, members)
            )
            after, before, at_data = (
                np.asarray(jax.lax.map(lambda p, net=net, z=z: net.apply(p, z)[:, 0], p), np.float64)
                for p, z in ((params, points), (initial, points), (initial, inputs_of_net))
            )
            forgets = gpntk.GradientFlow(gpntk.NTK(net), None, inputs_of_net, at_data.T, reduction="mean")
            plain.append(after)
            controlled.append(after - before + np.asarray(forgets.mean(points, TIME)).T)
        plain, controlled = np.array(plain), np.array(controlled)  # (2, members, points) each
        start = 0
        for colour, (title, rows) in enumerate(inputs.items()):
            part = plain[:, :, start : start + len(rows)]
            floors[title].append(with_bootstrap(floor, controlled[:, :, start : start + len(rows)]))
            start += len(rows)
            curve, deviation = with_bootstrap(lambda sample: differences(sample, counts), part)
            slope, error = with_bootstrap(lambda sample: log_log_slope(counts, differences(sample, counts)), part)
            print(f"    width {width:3d}, {title:15s} slope in members {slope:.3f} +- {error:.3f}", end="")
            print(f"   floor {floors[title][-1][0]:.4f} +- {floors[title][-1][1]:.4f}", flush=True)
            shade = 0.35 + 0.65 * index / (len(WIDTHS) - 1)
            label = f"{title}, width {width}"
            axes_members.errorbar(
                counts, curve, yerr=deviation, fmt="o-", ms=4, color=f"C{colour}", alpha=shade, label=label
            )
    guide = curve[0] * counts ** (-0.5)
    axes_members.loglog(counts, guide, "k--", lw=1, label="members$^{-1/2}$")
    axes_members.set(
        xlabel="members", ylabel="RMS difference of mean outputs", title="(b) ensembles, over members"
    )
    axes_members.legend(fontsize=7)
    for colour, (title, values) in enumerate(floors.items()):
        value, error = np.transpose(values)
        axes_width.errorbar(WIDTHS, value, yerr=error, fmt="o-", color=f"C{colour}", label=title)
    axes_width.plot(WIDTHS, value[0] * WIDTHS[0] / np.array(WIDTHS), "k--", lw=1, label="width$^{-1}$")
    axes_width.set(
        xlabel="width", ylabel="RMS difference, infinitely many members", title="(b) the floor, over width"
    )
    axes_width.set(xscale="log", xticks=WIDTHS, xticklabels=map(str, WIDTHS))
    axes_width.minorticks_off()
    axes_width.axhline(0.0, color="0.7", lw=0.8)
    axes_width.legend(fontsize=8)


def differences(outputs, counts):
    """RMS difference of the means of two ensembles (2, members, points) of each size, over disjoint parts."""
    members = outputs.shape[1]
    values = []
    for count in counts:
        means = outputs.reshape(2, members // count, count, -1).mean(2)
        values.append(np.sqrt(np.mean((means[0] - means[1]) ** 2)))
    return np.array(values)


def floor(outputs):
    """The difference of the means of infinitely many members: the sampling variance of both means is taken off."""
    means, variances = outputs.mean(1), outputs.var(1, ddof=1) / outputs.shape[1]
    square = np.mean((means[0] - means[1]) ** 2 - variances.sum(0))
    return np.sign(square) * np.sqrt(np.abs(square))


def with_bootstrap(statistic, outputs, repetitions=400):
    """A statistic of both ensembles and its standard deviation when members are drawn with replacement."""
    rng = np.random.default_rng(0)
    members = outputs.shape[1]
    draws = []
    for _ in range(repetitions):
        rows = rng.integers(members, size=(2, members))
        draws.append(statistic(np.take_along_axis(outputs, rows[:, :, None], axis=1)))
    return statistic(outputs), np.std(draws, axis=0, ddof=1)


def log_log_slope(x, y):
    # The value at x members is the mean of 1 / x as many independent differences as that at one.
    return np.polyfit(np.log(x), np.log(y), 1, w=1 / np.sqrt(x))[0]


def accuracy(axes, x, labels, shape, largest, n_test, seeds):
    rng = np.random.default_rng(0)
    pool = rng.permutation(len(x))[: largest + n_test]
    x, labels = x[pool].astype(np.float32), labels[pool]
    group = gpntk.groups.C4(shape)
    turns = rng.integers(group.order, size=len(x))
    x = np.asarray(group.act(x))[turns, np.arange(len(x))]
    nets = {
        "MLP": gpntk.MLP(**DEEPER),
        "CNN": gpntk.CNN(shape, **DEEPER),
        "C4": gpntk.PlanarGroupCNN("C4", shape, **DEEPER),
        "D4": gpntk.PlanarGroupCNN("D4", shape, **DEEPER),
    }
    splits = [np.random.default_rng(seed).permutation(len(x)) for seed in range(seeds)]
    sizes = [size for size in SIZES if size < largest] + [largest]
    print(f"\n(c) accuracy on {n_test} turned digits, {seeds} random splits of {len(x)} digits")
    print("    " + f"{'training digits':18s}" + "".join(f"{size:>16d}" for size in sizes))
    before = None
    for title, net in nets.items():
        # One Gram matrix of all digits serves every split.
        ntk = np.asarray(gpntk.nngp_and_ntk(net, x, compute_engine=ENGINE)[1], np.float64)
        scores = np.array(
            [[score(ntk, labels, split[:size], split[-n_test:]) for size in sizes] for split in splits]
        )
        mean, error = mean_and_error(scores)
        print_row(title, mean, error)
        if before is not None:
            print_row("    gain", *mean_and_error(scores - before))
        before = scores
        plotting.plot_against_size(sizes, scores, ax=axes, label=title)
    axes.set(xlabel="training digits", ylabel="accuracy", title="(c) turned digits")
    axes.legend()


def mean_and_error(scores):
    return scores.mean(0), scores.std(0, ddof=1) / np.sqrt(len(scores))


def print_row(title, mean, error):
    cells = "".join(f"{m:9.3f} +- {e:.3f}" for m, e in zip(mean, error, strict=True))
    print(f"    {title:18s}{cells}", flush=True)


def score(ntk, labels, train, test, alpha=1e-3):
    """Accuracy of the infinitely wide network trained to convergence, targets one-hot minus 1/10."""
    targets = np.eye(10)[labels[train]] - 0.1
    coefficients = np.linalg.solve(ntk[np.ix_(train, train)] + alpha * np.eye(len(train)), targets)
    return np.mean(np.argmax(ntk[np.ix_(test, train)] @ coefficients, axis=1) == labels[test])


if __name__ == "__main__":
    main()
