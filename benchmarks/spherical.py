"""Kernels over rotations of the sphere, beside the literal recursion and equivariant-ntk.

    python benchmarks/spherical.py             # a few minutes
    python benchmarks/spherical.py --large     # only the 1000 x 1000 Gram matrix
    python benchmarks/spherical.py --short     # does it run?

NNGP and NTK Gram matrices together, two erf layers, float64 on the CPU, 4 random signals of 2 channels on s2fft's
grid "dh". Timed in alternation, in one run, the first call (which compiles) apart from the others, whose median
counts. Errors are the largest of a Gram matrix, relative to the largest entry of one with a quadrature of
bandlimit 40. Contenders at every bandlimit L:

    gpntk                                the order of the quadrature by default, and the lowest one, L
    double transform                     the recursion on all pairs (R, R') of rotations, at the nodes of bandlimit
                                         L, written down as it stands in the definition of the layers
    equivariant-ntk                      if `EQUIVARIANT_NTK` names a checkout (see peers.py)

equivariant-ntk is right for weights of variance 1 and no biases only, which is what all take here. Last, the same
signals of bandlimit 2 on finer grids: its error as its bandlimit, and with it that of its quadrature, grows.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gpntk
import measure
import peers
from gpntk.groups import rotate_coefficients
from gpntk.groups._harmonics import synthesis
from gpntk.groups._wigner import inverse_wigner, quadrature_angles, quadrature_weights

RESULTS = Path(__file__).resolve().parent / "results" / "spherical.json"
SIGNALS, CHANNELS, DEPTH, FINE = 4, 2, 2, 40


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--large", action="store_true", help="only 1000 x 1000 pairs, bandlimit 6, 10 channels")
    parser.add_argument("--short", action="store_true", help="small sizes: only shows that the benchmark works")
    parser.add_argument("--gram", type=int, metavar="N", help=argparse.SUPPRESS)  # the work of a fresh process
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    if args.gram:
        print(json.dumps(gram(args.gram)))
        return
    if args.short:
        args.repeat, args.output = 1, args.output.with_name("spherical_short.json")
    results = json.loads(args.output.read_text()) if args.output.exists() else {}
    if args.large:
        results["gram_1000"] = in_fresh_process(1000)
    else:
        results |= measure.context()
        bandlimits = (2,) if args.short else (2, 4, 6)
        results["bandlimits"] = {str(bandlimit): compare(bandlimit, args) for bandlimit in bandlimits}
        results["gram_100"] = in_fresh_process(10 if args.short else 100)
        print(summary(results["bandlimits"]), flush=True)
        if peers.has_equivariant_ntk():
            results["convergence"] = convergence((2, 3) if args.short else (2, 3, 4, 5, 6))
    measure.write_json(args.output, results)


def network(bandlimit: int, **options: Any) -> gpntk.SphericalCNN:
    settings = {"channels": CHANNELS, "depth": DEPTH, "sampling": "dh", "activation": gpntk.Erf()}
    return gpntk.SphericalCNN(bandlimit, **{**settings, "weight_variance": 1.0, **options})


def signals(n: int, net: gpntk.SphericalCNN) -> np.ndarray:
    """Random signals of the bandlimit, with mean square 1."""
    group = net.group
    a = np.random.default_rng(0).normal(size=(n, int(np.prod(group.signal_shape))))
    x = np.asarray(group.rotate(a, np.zeros(3)))
    return x / np.sqrt(np.mean(np.asarray(group.embed(x)) ** 2, axis=1, keepdims=True))


def compare(bandlimit: int, args: argparse.Namespace) -> dict[str, Any]:
    net = network(bandlimit)
    x = signals(SIGNALS, net)
    exact = [np.asarray(k) for k in gpntk.nngp_and_ntk(net.replace(quadrature_bandlimit=FINE), x)]
    lowest = net.replace(quadrature_bandlimit=bandlimit)
    calls: dict[str, Callable[[], Any]] = {
        f"gpntk, default ({net.quadrature_bandlimit})": lambda: gpntk.nngp_and_ntk(net, x),
        f"gpntk, lowest ({bandlimit})": lambda: gpntk.nngp_and_ntk(lowest, x),
        "double transform": double_transform(lowest, x),
    }
    if bandlimit == 6:
        # As accurate as the double transform is at its best, with eight times fewer nodes than by default.
        calls["gpntk, 8"] = lambda: gpntk.nngp_and_ntk(net.replace(quadrature_bandlimit=8), x)
    results = {}
    for name, call in calls.items():
        first = measure.seconds(lambda call=call: jax.block_until_ready(call()))
        times = [measure.seconds(lambda call=call: jax.block_until_ready(call())) for _ in range(args.repeat)]
        results[name] = {"first": first, **measure.summary(times), "error": deviation(call(), exact)}
    if peers.has_equivariant_ntk():
        description = peer_description(bandlimit)
        with peers.NeuralTangents(x64=True) as peer:
            stored = peer.put(x)
            first, *times = peer.time(description, stored, repeat=1 + min(args.repeat, 2))
            error = deviation(peer.kernels(description, stored), exact)
            results["equivariant-ntk"] = {"first": first, **measure.summary(times), "error": error}
        with peers.NeuralTangents(x64=True) as peer:
            results["equivariant-ntk"]["extra_peak_bytes"] = peer.extra_peak_bytes(description, peer.put(x))
    return results


def peer_description(bandlimit: int) -> dict[str, Any]:
    return {
        "kind": "spherical_cnn",
        "bandlimit": bandlimit,
        "input_shape": [2 * bandlimit, 2 * bandlimit - 1, CHANNELS],
        "depth": DEPTH,
        "activation": ["Erf", {}],
        "weight_variance": 1.0,
        "bias_variance": 0.0,
    }


def convergence(bandlimits: tuple[int, ...]) -> dict[str, float]:
    """Errors of equivariant-ntk for signals of bandlimit 2, against its own bandlimit."""
    coarse = network(2)
    x = signals(SIGNALS, coarse)
    exact = [np.asarray(k) for k in gpntk.nngp_and_ntk(coarse.replace(quadrature_bandlimit=FINE), x)]
    coefficients = np.asarray(coarse.group.coefficients(x))
    errors = {}
    with peers.NeuralTangents(x64=True) as peer:
        for bandlimit in bandlimits:
            finer = (
                np.pad(coefficients, ((0, 0), (0, 0), (0, bandlimit**2 - 4))) @ synthesis(bandlimit, "dh", None).T
            )
            stored = peer.put(np.moveaxis(finer, 1, 2).reshape(SIGNALS, -1))
            errors[str(bandlimit)] = deviation(peer.kernels(peer_description(bandlimit), stored), exact)
    print(
        "\nequivariant-ntk, signals of bandlimit 2: " + ", ".join(f"{e:.1e} at L = {b}" for b, e in errors.items())
    )
    return errors


def double_transform(net: gpntk.SphericalCNN, x: np.ndarray) -> Callable[[], Any]:
    """The recursion on K(R, R') at all pairs of nodes: transform both rotations, filter, transform back."""
    bandlimit, rule, activation = net.bandlimit, net.quadrature_bandlimit, net.activation
    entries = [
        (degree, bandlimit - 1 + m, bandlimit - 1 + n)
        for degree in range(bandlimit)
        for m in range(-degree, degree + 1)
        for n in range(-degree, degree + 1)
    ]
    units = np.zeros((len(entries), bandlimit, 2 * bandlimit - 1, 2 * bandlimit - 1))
    for row, entry in enumerate(entries):
        units[(row, *entry)] = np.sqrt(2 * entry[0] + 1)
    functions = np.asarray(inverse_wigner(units, rule)).T  # (nodes, entries), orthonormal
    weights = quadrature_weights(rule)
    sizes = [(2 * degree + 1) ** 2 for degree in range(bandlimit)]
    starts = np.concatenate([[0], np.cumsum(sizes)])

    def filtered(kernel):
        coefficients = functions.T @ (weights[:, None] * kernel * weights) @ functions
        blocks = []
        for degree in range(bandlimit):
            part, n = slice(starts[degree], starts[degree + 1]), 2 * degree + 1
            block = jnp.einsum("mnkn->mk", coefficients[part, part].reshape(n, n, n, n)) / n
            blocks.append(functions[:, part] @ jnp.kron(block, jnp.eye(n)) @ functions[:, part].T)
        return sum(blocks)

    def lifted(a, b):
        """Values at R of what filters on the sphere make, for all pairs (R, R')."""
        a, b = (in_all_frames(f, rule) for f in (a, b))
        return jnp.einsum("crk,csk->rs", a, b) / len(a)

    def kernels(f, g):
        nngp, q1, q2 = lifted(f, g), jnp.sum(f * f) / len(f), jnp.sum(g * g) / len(g)
        ntk = nngp
        for layer in range(net.depth):
            features1, features2 = activation.features(q1), activation.features(q2)
            nngp, slope = activation.pair(nngp, features1, features2)
            ntk = slope * ntk
            q1, q2 = (activation.pair(q, s, s)[0] for q, s in ((q1, features1), (q2, features2)))
            if layer < net.depth - 1:
                nngp, ntk = filtered(nngp), filtered(ntk)
                ntk = nngp + ntk
        nngp, ntk = (weights @ k @ weights for k in (nngp, ntk))
        return nngp, nngp + ntk

    coefficients = np.asarray(net.group.coefficients(x)) / np.sqrt(4 * np.pi)
    pairs = jax.jit(lambda a: jax.lax.map(lambda f: jax.lax.map(lambda g: kernels(f, g), a), a))
    return lambda: pairs(coefficients)


def in_all_frames(f: Any, rule: int) -> jax.Array:
    """Coefficients of a signal as seen from all nodes, (channels, nodes, L^2)."""
    inverse = -quadrature_angles(rule)[:, ::-1]
    return rotate_coefficients(f[:, None, :], inverse)


def deviation(kernels: Any, exact: list[np.ndarray]) -> float:
    return max(float(np.abs(np.asarray(k) - e).max() / e.max()) for k, e in zip(kernels, exact, strict=True))


def summary(bandlimits: dict[str, Any]) -> str:
    rows = []
    for bandlimit, contenders in bandlimits.items():
        reference = next(iter(contenders.values()))["median"]
        rows += [
            [
                f"L = {bandlimit}: {name}",
                *(
                    f"{t['first']:.2f}",
                    f"{t['median']:.4f}",
                    f"{t['median'] / reference:.1f}",
                    f"{t['error']:.1e}",
                ),
            ]
            for name, t in contenders.items()
        ]
    return measure.table(["", "first (s)", "median (s)", "ratio", "error"], rows)


def in_fresh_process(n: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--gram", str(n)]
    result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    print(
        f"\n{n} x {n} pairs, L = 6, 10 channels, quadrature {result['quadrature']}: {result['seconds']:.1f} s"
        f" with compilation, peak memory of the process {result['peak_bytes'] / 1e9:.2f} GB, "
        f"error estimate {result['error']:.1e}",
        flush=True,
    )
    return result


def gram(n: int) -> dict[str, float]:
    net = network(6, channels=10)
    x = signals(n, net)
    kernels, engine = [], gpntk.BlockedComputation(progress=True)

    def compute():
        kernels.append(jax.block_until_ready(gpntk.nngp_and_ntk(net, x, compute_engine=engine)))

    seconds = measure.seconds(compute)
    assert all(np.isfinite(k).all() for k in kernels[0])
    found = {"n": n, "quadrature": net.quadrature_bandlimit, "error": net.quadrature_error()}
    return found | {"seconds": seconds, "peak_bytes": measure.peak_resident_bytes()}


if __name__ == "__main__":
    main()
