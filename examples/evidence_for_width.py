"""What the evidence says about the width and the depth of a network.

    python examples/evidence_for_width.py

Left: the change of the log evidence with the width n for three targets with different signs of the slope c, as
`gpntk.finite_width_posterior` gives it: c/n for negative c, log(1 + c/n) for positive c; drawn where the expansion
holds, n >= 2|c|. Dots: the evidence of networks of that width by importance sampling; circles: that of the
random-kernel model, which NUTS would sample. In n the corrected evidence is monotone: what it says about the width
is the sign and the size of c. Right: it ranks depths and weight variances at a given width (dotted: at infinite
width).
"""

import argparse
from pathlib import Path

import jax
import matplotlib
import numpy as np
import numpyro
from numpyro.infer import log_likelihood
from scipy.special import logsumexp

import gpntk
from gpntk import models

matplotlib.use("Agg")
import matplotlib.pyplot as plt

NETWORK = gpntk.MLP(depth=2, activation=gpntk.Erf(), weight_variance=2.0, bias_variance=0.3)
NOISE_VARIANCE, DEPTHS, WIDTH = 0.05, (1, 2, 3, 4), 64


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("evidence_for_width.png"), help="the figure")
    parser.add_argument("--networks", type=int, default=100_000, help="networks sampled for each dot")
    args = parser.parse_args()

    x = np.array([-1.8, -1.1, -0.2, 0.7, 1.9])[:, None]
    targets = {
        name: scale * np.sin(2 * x[:, 0]) for name, scale in (("flat", 0.1), ("typical", 0.6), ("steep", 1.0))
    }
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    with jax.enable_x64(True):
        for color, (name, y) in zip(("C0", "C1", "C2"), targets.items(), strict=True):
            against_width(left, color, name, x, y, args.networks)
        against_depth(right, x, targets["typical"])
    left.axhline(0.0, color="0.7", lw=0.8)
    left.set(xscale="log", xlabel="width n", ylabel="log Z(n) - log Z(infinity)", title="evidence for the width")
    left.legend(fontsize=8)
    right.set(xscale="log", xlabel="weight variance", ylabel="log Z", title=f"evidence for the depth, n = {WIDTH}")
    right.legend(fontsize=8)
    figure.savefig(args.output, dpi=130)
    print(f"Figure: {args.output.resolve()}")


def against_width(axes, color, name, x, y, networks):
    arguments = {"noise_variance": NOISE_VARIANCE}
    limit = gpntk.finite_width_posterior(NETWORK, x, y, width=np.inf, **arguments)
    slope, base = limit.evidence_slope, limit.log_marginal_likelihood
    print(f"{name}: c = {slope:.3f} +- {limit.evidence_slope_se:.3f}, log Z at infinite width {base:.3f}")
    n = np.geomspace(max(8.0, 2 * abs(slope)), 1024, 60)
    axes.plot(n, change(slope / n), color=color, label=f"{name} target, c = {slope:.2f}")
    print(f"{'n':>8s}{'order 1/n':>12s}{'networks':>12s}{'+-':>9s}{'random kernel':>16s}")
    for width in (8, 16, 32, 64, 128, 256):
        exact = gpntk.sample_finite_width_posterior(
            NETWORK, x, y, x[:1], width=width, n_samples=networks, key=jax.random.key(width), **arguments
        )
        network = exact.log_marginal_likelihood - base
        kernel = random_kernel_evidence(x, y, width) - base
        axes.plot(width, network, ".", color=color)
        axes.plot(width, kernel, "o", color=color, mfc="none")
        closed = change(slope / width) if slope / width > -1 else np.nan
        error = exact.log_marginal_likelihood_se
        print(f"{width:8d}{closed:12.4f}{network:12.4f}{error:9.4f}{kernel:16.4f}", flush=True)


def change(relative):
    """Of the log evidence, from c/n."""
    return np.where(relative > 0, np.log1p(np.maximum(relative, 0)), relative)


def random_kernel_evidence(x, y, width, draws=20_000):
    """The evidence of `finite_width_regression`: the mean likelihood over its prior."""
    model = models.finite_width_regression
    options = {"net": NETWORK, "width": width, "noise_variance": NOISE_VARIANCE}
    sites = numpyro.handlers.trace(numpyro.handlers.seed(model, 0)).get_trace(x, **options)
    modes = jax.random.normal(jax.random.key(width), (draws, *sites["kernel_modes"]["value"].shape))
    pairs = {"kernel_modes": np.concatenate([modes, -modes])}  # of opposite signs: odd orders cancel
    return logsumexp(log_likelihood(model, pairs, x, y, **options)["y"]) - np.log(2 * draws)


def against_depth(axes, x, y):
    variances = np.geomspace(0.3, 30.0, 15)
    for color, depth in zip(("C0", "C1", "C2", "C3"), DEPTHS, strict=True):
        curves = []
        for variance in variances:
            net = NETWORK.replace(depth=depth, weight_variance=variance)
            limit = gpntk.finite_width_posterior(
                net, x, y, width=np.inf, noise_variance=NOISE_VARIANCE, n_points=1024
            )
            slope, evidence = limit.evidence_slope, limit.log_marginal_likelihood
            # Where |c|/n is not small, no corrected evidence is drawn.
            correction = change(slope / WIDTH) if abs(slope) < WIDTH / 2 else np.nan
            curves.append((evidence + correction, evidence))
        finite, infinite = np.array(curves).T
        axes.plot(variances, finite, color=color, label=f"depth {depth}")
        axes.plot(variances, infinite, color=color, ls=":", lw=1)
        best = np.nanargmax(finite)
        print(f"depth {depth}: best weight variance {variances[best]:.2f}, log Z {finite[best]:.3f}", flush=True)


if __name__ == "__main__":
    main()
