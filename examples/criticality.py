"""Criticality: how fluctuations between networks grow with depth, from one recursion and from sampled networks.

    python examples/criticality.py

Left: V/K^2 of one input, the width times the relative variance of its random kernel, for ReLU networks at, below
and above the critical weight variance 2 (points: sampled networks of three widths; the bias makes them differ).
Middle: the shift of the mean NTK, for different activations at their critical initialisations.
Right: the same activations' A/Theta^2, the relative variance of the NTK: gradients of different networks differ by
A/(n Theta^2), so that depth over width, and not depth, says whether they are alike.
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

DEPTH, INPUT = 24, np.array([[1.0, -0.5, 0.8, 0.3]])
SAMPLED_DEPTHS, WIDTHS, NETWORKS = (2, 4, 8), (16, 32, 64), 2048
BIAS = 0.1


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("criticality.png"), help="where the figure goes")
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    figure, (fluctuation, shift, gradients) = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained")

    for colour, weight_variance in enumerate((1.6, 2.0, 2.4)):
        net = gpntk.MLP(DEPTH, gpntk.ReLU(), weight_variance, BIAS)
        label = f"$C_W = {weight_variance}$"
        plotting.plot_against_depth(gpntk.cumulants(net, INPUT), axes=fluctuation, color=f"C{colour}", label=label)
        for depth in tqdm(SAMPLED_DEPTHS, desc=f"C_W = {weight_variance}"):
            for marker, width in zip("ovs", WIDTHS, strict=True):
                key = jax.random.key(1000 * depth + width)
                sampled = gpntk.sample_cumulants(net.replace(depth=depth), INPUT, width, NETWORKS, key)
                value, error = (float(v.item() / sampled.K.item() ** 2) for v in (sampled.V, sampled.V_se))
                theory = gpntk.cumulants(net.replace(depth=depth), INPUT)
                exact = (theory.V / theory.K**2).item()
                print(f"C_W {weight_variance} depth {depth} width {width:3d}: V/K^2 {value:6.2f} +- {error:.2f}"
                      f"   recursion {exact:6.2f}")  # fmt: skip
                fluctuation.errorbar(depth, value, 2 * error, color=f"C{colour}", marker=marker, markersize=4)
    for marker, width in zip("ovs", WIDTHS, strict=True):
        fluctuation.plot([], [], marker, color="grey", label=f"width {width}")
    fluctuation.set(title="ReLU: fluctuations of the kernel")
    fluctuation.legend()

    for activation in (gpntk.ReLU(), gpntk.GELU(), gpntk.SiLU(), gpntk.Tanh(), gpntk.Erf()):
        critical = gpntk.critical_initialization(activation)
        net = gpntk.MLP(DEPTH, activation, critical.weight_variance, critical.bias_variance)
        # Start at the fixed point, or at 1 where there is none or it is 0.
        kernel = critical.fixed_point if critical.kind == "half-stable" else 1.0
        x = INPUT * np.sqrt((kernel - critical.bias_variance) / critical.weight_variance / np.mean(INPUT**2))
        c = gpntk.cumulants(net, x)
        name = type(activation).__name__
        plotting.plot_against_depth(c, "theta1", axes=shift, label=name)
        plotting.plot_against_depth(c, "A", axes=gradients, label=name)
        print(f"{name:6s}C_W {critical.weight_variance:.4f} C_b {critical.bias_variance:.4f} {critical.kind}")
    shift.set(title="at criticality: shift of the mean NTK")
    gradients.set(title="at criticality: fluctuations of the NTK")
    gradients.legend()
    figure.savefig(args.output, dpi=130)
    print(f"figure: {args.output}")


if __name__ == "__main__":
    main()
