"""Bayesian networks of width 8, 32, 128 and infinity: prior and posterior, against the exact ones.

    python examples/finite_width_posterior.py

Top: functions drawn from the prior, and two standard deviations at infinite width. Bottom: the posterior given
five noisy observations. The exact posterior (black, mean and two standard deviations) comes from importance
sampling over networks of that width; NUTS over all weights of the narrowest network confirms it. Beside it the
Gaussian process of infinite width, the closed form at order 1/n (where |c|/n < 1/2), and NUTS over the random
kernel; the two lower rows show how their means and standard deviations differ from the Gaussian process. The table
has root-mean-square errors of posterior means and standard deviations, in units of the average exact standard
deviation. It is saved as JSON beside the figure.
"""

import argparse
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import numpyro
from numpyro.diagnostics import split_gelman_rubin
from numpyro.infer import MCMC, NUTS, Predictive

import gpntk
from gpntk import models

matplotlib.use("Agg")
import matplotlib.pyplot as plt

NETWORK = gpntk.MLP(depth=2, activation=gpntk.Erf(), weight_variance=2.0, bias_variance=0.3)
WIDTHS, NOISE_VARIANCE = (8, 32, 128, np.inf), 0.02


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("finite_width_posterior.png"), help="the figure")
    parser.add_argument("--networks", type=int, default=50_000, help="networks sampled for each exact posterior")
    args = parser.parse_args()

    x = np.array([-1.8, -1.1, -0.2, 0.7, 1.9])[:, None]
    y = np.array([-0.6, -1.0, 0.1, 1.1, 0.3])
    grid = np.linspace(-3, 3, 31)[:, None]
    figure, axes = plt.subplots(4, len(WIDTHS), figsize=(13, 12), sharex=True, layout="constrained")
    table = []
    with jax.enable_x64(True):
        limit = gpntk.finite_width_posterior(NETWORK, x, y, grid, width=np.inf, noise_variance=NOISE_VARIANCE)
        for column, width in zip(axes.T, WIDTHS, strict=True):
            prior(column[0], width, grid)
            methods = {"Gaussian process": (limit.mean, np.sqrt(limit.variance))}
            if np.isfinite(width):
                methods |= finite(x, y, grid, width, limit.evidence_slope, args.networks)
                table += compare(width, methods)
            posterior(column[1], x, y, grid, methods)
            differences(column[2:], grid, methods)
            column[0].set_title(f"width {width}" if np.isfinite(width) else "infinite width")
    axes[0, 0].set_ylabel("prior")
    axes[1, 0].set_ylabel("posterior")
    axes[2, 0].set_ylabel("mean - mean of the GP")
    axes[3, 0].set_ylabel("std - std of the GP")
    # No panel has all methods: the closed form is missing at the smallest width, the weights at the others.
    curves = {
        label: line for panel in axes[1] for line, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    names = [name for name in STYLES if name in curves]
    axes[1, 0].legend([curves[name] for name in names], names, loc="upper left", fontsize=8)
    figure.savefig(args.output, dpi=120)
    args.output.with_suffix(".json").write_text(json.dumps(table, indent=2) + "\n")
    print(f"Figure: {args.output.resolve()}")


def finite(x, y, grid, width, slope, networks):
    """Mean and standard deviation of the posterior at one width, by each method."""
    options = {"width": width, "noise_variance": NOISE_VARIANCE}
    exact = gpntk.sample_finite_width_posterior(
        NETWORK, x, y, grid, **options, n_samples=networks, key=jax.random.key(width), progress=True
    )
    methods = {"exact": (exact.mean, np.sqrt(exact.variance))}
    if abs(slope) < width / 2:
        closed = gpntk.finite_width_posterior(NETWORK, x, y, grid, **options)
        methods["closed form"] = closed.mean, np.sqrt(closed.variance)
    else:
        print(f"Width {width}: no closed form, because c = {slope:.2f}")

    model, options = models.finite_width_regression, {"net": NETWORK, **options}
    mcmc = MCMC(NUTS(model), num_warmup=500, num_samples=2000, num_chains=2, chain_method="sequential")
    mcmc.run(jax.random.key(0), x, y, **options)
    diagnose("random kernel", mcmc)
    draws = Predictive(model, mcmc.get_samples())(jax.random.key(1), x, y, grid, **options)
    mean = np.asarray(draws["f_mean"])
    methods["random kernel, NUTS"] = mean.mean(0), np.sqrt(np.asarray(draws["f_variance"]).mean(0) + mean.var(0))

    if width == min(WIDTHS):
        mcmc = MCMC(
            NUTS(weights_model), num_warmup=1000, num_samples=4000, num_chains=2, chain_method="sequential"
        )
        mcmc.run(jax.random.key(2), x, y, grid, width)
        diagnose("all weights", mcmc)
        outputs = np.asarray(mcmc.get_samples()["f"])
        methods["all weights, NUTS"] = outputs.mean(0), outputs.std(0)
    return methods


def weights_model(x, y, grid, width):
    """The network itself, with all its weights."""
    shapes = jax.eval_shape(lambda key: NETWORK.init(key, x.shape[1], width), jax.random.key(0))
    leaves, structure = jax.tree.flatten(shapes)
    weights = [
        numpyro.sample(f"weights_{i}", numpyro.distributions.Normal(jnp.zeros(leaf.shape), 1.0).to_event())
        for i, leaf in enumerate(leaves)
    ]
    outputs = NETWORK.apply(jax.tree.unflatten(structure, weights), jnp.concatenate([x, grid]))[:, 0]
    numpyro.sample("y", numpyro.distributions.Normal(outputs[: len(x)], NOISE_VARIANCE**0.5).to_event(), obs=y)
    numpyro.deterministic("f", outputs[len(x) :])


def diagnose(name, mcmc):
    # What does not depend on symmetries of the network: predictions where they are sampled, else the latent modes.
    samples = mcmc.get_samples(group_by_chain=True)
    monitored = samples["f" if "f" in samples else "kernel_modes"]
    divergences = int(mcmc.get_extra_fields()["diverging"].sum())
    print(f"NUTS over {name}: r-hat {np.max(split_gelman_rubin(monitored)):.4f}, {divergences} divergences")


def compare(width, methods):
    """Errors against the exact posterior, printed and returned."""
    mean, std = methods["exact"]
    rows = []
    for name, (other_mean, other_std) in methods.items():
        if name == "exact":
            continue
        errors = [np.sqrt(np.mean((a - b) ** 2)) / std.mean() for a, b in ((other_mean, mean), (other_std, std))]
        rows.append({"width": width, "method": name, "mean": float(errors[0]), "std": float(errors[1])})
        print(f"width {width:4d}  {name:22s} errors: mean {errors[0]:.4f}, std {errors[1]:.4f}", flush=True)
    return rows


def prior(axes, width, grid):
    members = 6
    keys = jax.random.split(jax.random.key(7), members)
    finite_width = int(width) if np.isfinite(width) else 2048
    for key in keys:
        axes.plot(grid[:, 0], NETWORK.apply(NETWORK.init(key, 1, finite_width), grid)[:, 0], lw=1)
    deviation = np.sqrt(np.diagonal(gpntk.nngp_and_ntk(NETWORK, grid)[0]))
    axes.fill_between(grid[:, 0], -2 * deviation, 2 * deviation, color="0.9", zorder=0)
    axes.set_ylim(-4.5, 4.5)


STYLES = {
    "exact": ("k", "-", 2.0),
    "Gaussian process": ("0.55", "-", 1.2),
    "closed form": ("C1", "--", 1.4),
    "random kernel, NUTS": ("C0", ":", 2.0),
    "all weights, NUTS": ("C2", "-.", 1.2),
}


def posterior(axes, x, y, grid, methods):
    for name, (color, line, thickness) in STYLES.items():
        if name in methods:
            mean, std = methods[name]
            for sign in (-2, 0, 2):
                label = name if sign == 0 else None
                axes.plot(grid[:, 0], mean + sign * std, color=color, ls=line, lw=thickness, label=label)
    axes.plot(x[:, 0], y, "k.", ms=8)
    axes.set_ylim(-2, 4)


def differences(rows, grid, methods):
    for moment, axes in enumerate(rows):
        for name, (color, line, thickness) in STYLES.items():
            if name in methods:
                change = methods[name][moment] - methods["Gaussian process"][moment]
                axes.plot(grid[:, 0], change, color=color, ls=line, lw=thickness)


if __name__ == "__main__":
    main()
