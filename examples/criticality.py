"""Criticality: how networks of one width differ, from one recursion and from sampled networks.

    python examples/criticality.py

Lines are the recursion at order 1/n, points sampled networks of three widths with two standard errors; one input.

Top left: V/K^2, the width times the relative variance of the random kernel, of ReLU networks at, below and above
the critical weight variance 2. A bias makes them differ: below, the kernel is mostly bias and fluctuates little.
Top right: the same for different activations at their critical initialisations. All grow with depth: it is depth
over width, and not depth, that says whether networks are alike.
Bottom left: Theta_1/Theta, the width times the relative shift of the mean NTK.
Bottom right: A/Theta^2, the width times the relative variance of the NTK, hence of squared gradients: the depth at
which gradients of different networks differ by a factor is a fraction of the width. Those of tanh networks hardly
differ at this order; what the points show there is of the next.
"""

import argparse
from pathlib import Path

import jax
import matplotlib
import numpy as np
from tqdm import tqdm

import gpntk
from gpntk import plotting

matplotlib.use("Agg")
import matplotlib.pyplot as plt

DEPTH, INPUT = 12, np.array([[1.0, -0.5, 0.8, 0.3]])
SAMPLED_DEPTHS = (2, 4, 8)
WIDTHS = {16: 8192, 32: 4096, 64: 2048}  # and numbers of networks
BIAS = 0.1
ACTIVATIONS = (gpntk.ReLU(), gpntk.GELU(), gpntk.Tanh())


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("criticality.png"), help="where the figure goes")
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    figure, axes = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
    (around, activations), (shift, gradients) = axes

    critical = [critical_network(activation) for activation in ACTIVATIONS]
    near = [(gpntk.MLP(DEPTH, gpntk.ReLU(), C, BIAS), INPUT, f"$C_W = {C}$") for C in (1.6, 2.0, 2.4)]
    bar = tqdm(total=(len(critical) + len(near)) * len(SAMPLED_DEPTHS) * len(WIDTHS), unit="run")
    for colour, (net, x, label) in enumerate(near):
        compare(net, x, {"V": around}, f"C{colour}", label, bar)
    for colour, (net, x, label) in enumerate(critical):
        panels = {"V": activations, "theta1": shift, "A": gradients}
        compare(net, x, panels, f"C{colour + len(near)}", label, bar)
    bar.close()

    for axis, title in (
        (around, f"ReLU, bias variance {BIAS}: fluctuations of the kernel"),
        (activations, "at criticality: fluctuations of the kernel"),
        (shift, "at criticality: shift of the mean NTK"),
        (gradients, "at criticality: fluctuations of the NTK"),
    ):
        axis.set(title=title)
    for marker, width in zip("ovs", WIDTHS, strict=True):
        for axis in (around, activations):
            axis.plot([], [], marker, color="grey", markersize=4, label=f"width {width}")
    around.legend()
    activations.legend()
    figure.savefig(args.output, dpi=130)
    print(f"figure: {args.output}")


def critical_network(activation):
    """A network at its critical initialisation, and an input at the fixed point, or at 1 where there is none."""
    critical = gpntk.critical_initialization(activation)
    kernel = critical.fixed_point if critical.kind == "half-stable" else 1.0
    x = INPUT * np.sqrt((kernel - critical.bias_variance) / critical.weight_variance / np.mean(INPUT**2))
    net = gpntk.MLP(DEPTH, activation, critical.weight_variance, critical.bias_variance)
    name = type(activation).__name__
    print(f"{name:6s}C_W {critical.weight_variance:.4f} C_b {critical.bias_variance:.4f} {critical.kind}")
    return net, x, name


def compare(net, x, panels, colour, label, bar):
    """Statistics of one network against depth, and those of sampled networks of several depths and widths."""
    theory = gpntk.cumulants(net, x)
    for name, axis in panels.items():
        plotting.plot_against_depth(theory, name, ax=axis, color=colour, label=label)
    for depth in SAMPLED_DEPTHS:
        layer = theory.layers[depth]
        units = {"V": layer.K**2, "theta1": layer.theta, "A": layer.theta**2}
        for marker, (width, networks) in zip("ovs", WIDTHS.items(), strict=True):
            key = jax.random.key(1000 * depth + width)
            sampled = gpntk.sample_cumulants(net.replace(depth=depth), x, width, networks, key)
            bar.update()
            for name, axis in panels.items():
                value, error, exact = (
                    float(v.item() / units[name].item())
                    for v in (getattr(sampled, name), getattr(sampled, f"{name}_se"), getattr(layer, name))
                )
                tqdm.write(
                    f"{label:12s}{name:7s}depth {depth} width {width:3d}: {value:7.2f} +- {error:.2f}"
                    f"   recursion {exact:7.2f}"
                )
                # Widths side by side, so that their error bars can be told apart.
                place = depth + 0.15 * (np.log2(width) - 5)
                axis.errorbar(place, value, 2 * error, color=colour, marker=marker, markersize=4)


if __name__ == "__main__":
    main()
