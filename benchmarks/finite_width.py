"""The tensors of order 1/n: error against time beside adaptive cubature and sampled networks, and how time grows.

    python benchmarks/finite_width.py            # a few minutes
    python benchmarks/finite_width.py --short    # does it run?

One hidden layer, where the tensors are exact at every width and V, D and A contain all moments of four inputs:

    ours                all entries of all tensors together, `gpntk.cumulants`
    cubature            the different moments one by one, each a `scipy.integrate.cubature` over the preactivations
                        of the inputs that it has, as the published symbolic route does
    sampled networks    `gpntk.sample_cumulants`; its time for another error follows from the square-root law

for the error function (whose moments need no sampling) and tanh (a lattice, or quasi-Monte Carlo). Errors are
relative, in the Frobenius norm, the largest of V, D and A, against the exact tensor or the finest run. The ratio
at equal error is the time of the cubature over that of our fastest run with an error not larger than its own (or
than 1e-12). First calls, which compile, are apart.

Then the time of all tensors against the number of inputs and depth, and of one input at depth 100.
"""

from __future__ import annotations

import argparse
import functools
import itertools
from pathlib import Path
from typing import Any

import jax
import numpy as np
from scipy.integrate import cubature
from scipy.special import erf

import gpntk
import measure

RESULTS = Path(__file__).resolve().parent / "results" / "finite_width.json"
WEIGHT_VARIANCE, BIAS_VARIANCE = 1.7, 0.2
# Ours, and value and slope in NumPy.
ACTIVATIONS = {
    "erf": (gpntk.Erf(), erf, lambda x: 2.0 / np.sqrt(np.pi) * np.exp(-(x**2))),
    "tanh": (gpntk.Tanh(), np.tanh, lambda x: 1.0 - np.tanh(x) ** 2),
}
COMPARED = ("V", "D", "A")
# Standard deviations: the Gaussian beyond holds 1e-12.
RANGE = 7.0
SAMPLED_WIDTH, NETWORKS = 16, 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--short", action="store_true", help="small sizes: only shows that the benchmark works")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.short:
        args.repeat, args.output = 2, args.output.with_name("finite_width_short.json")
    jax.config.update("jax_enable_x64", True)

    results = measure.context()
    cases = [
        ("erf", 2, [("gk21", 1e-3)]),
        ("erf", 3, [("gk21", 1e-3), ("gk21", 1e-6), ("genz-malik", 1e-3), ("genz-malik", 1e-4)]),
        ("tanh", 2, [("gk21", 1e-3)]),
        ("tanh", 3, [("gk21", 1e-3), ("gk21", 1e-6), ("genz-malik", 1e-4)]),
        ("erf", 4, [("genz-malik", 1e-3)]),
        ("tanh", 4, [("genz-malik", 1e-3)]),
    ]
    if args.short:
        cases = [("tanh", 2, [("gk21", 1e-2)])]
    results["equal error"] = [equal_error(*case, args.repeat) for case in cases]
    results["growth"] = growth(args.repeat, args.short)
    measure.write_json(args.output, results)


def network(name: str, depth: int) -> gpntk.MLP:
    return gpntk.MLP(depth, ACTIVATIONS[name][0], WEIGHT_VARIANCE, BIAS_VARIANCE)


def inputs(n: int, n_features: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, n_features))


def timed(call, repeat: int) -> tuple[Any, tuple[float, dict[str, Any]]]:
    """The result of a call; the time of the first, and a summary of those of the others."""
    results = []
    first = measure.seconds(lambda: results.append(call()))
    return results[0], (first, measure.summary([measure.seconds(call) for _ in range(repeat)]))


def equal_error(name: str, n: int, settings: list[tuple[str, float]], repeat: int) -> dict[str, Any]:
    net, x = network(name, 1), inputs(n, 4)
    first = measure.seconds(lambda: gpntk.cumulants(net, x))
    reference = gpntk.cumulants(net, x, tolerance=1e-9 if n < 4 else 2e-5, seed=1)
    norms = {field: np.linalg.norm(getattr(reference, field)) for field in COMPARED}

    def error(fields):
        worst = max(np.linalg.norm(fields[f] - getattr(reference, f)) / norms[f] for f in COMPARED)
        return max(float(worst), np.finfo(float).eps)

    ours = []
    for tolerance in (1e-2, 1e-3, 1e-4, 1e-6) if n < 4 else (1e-2, 1e-3, 1e-4):
        c, (_, times) = timed(lambda tolerance=tolerance: gpntk.cumulants(net, x, tolerance=tolerance), repeat)
        stated = max(c.error_estimate[field] / norms[field] for field in COMPARED)
        ours.append({"tolerance": tolerance, "error": error(vars(c)), "stated_error": stated, **times})
        if stated == 0.0:
            break  # exact at any tolerance
    kernel, scale = reference.layers[0].K, reference.V
    peers = []
    for rule, tolerance in settings:
        found: list[dict[str, np.ndarray]] = []
        seconds = measure.seconds(
            lambda t=tolerance, r=rule, found=found: found.append(by_cubature(name, kernel, scale, t, r))
        )
        peers.append({"tolerance": tolerance, "rule": rule, "error": error(found[0]), "seconds": seconds})
    for peer in peers:
        as_good = [o["median"] for o in ours if o["error"] <= max(peer["error"], 1e-12)]
        peer["ratio"] = peer["seconds"] / min(as_good) if as_good else None
    sample = lambda: gpntk.sample_cumulants(net, x, SAMPLED_WIDTH, NETWORKS, jax.random.key(0))  # noqa: E731
    sampled, (_, times) = timed(sample, 2)
    networks = {"networks": NETWORKS, **times}
    networks["error"] = max(float(np.linalg.norm(getattr(sampled, f"{f}_se")) / norms[f]) for f in COMPARED)
    for o in ours:
        o["seconds_with_networks"] = networks["median"] * (networks["error"] / o["error"]) ** 2

    rows = [["ours", f"{o['error']:.1e}", f"{o['median']:.4f}", ""] for o in ours]
    rows += [
        [f"cubature, {p['rule']}", f"{p['error']:.1e}", f"{p['seconds']:.3f}", f"{p['ratio'] or np.nan:.0f}"]
        for p in peers
    ]
    rows.append([f"{NETWORKS} networks", f"{networks['error']:.1e}", f"{networks['median']:.3f}", ""])
    print(f"\n{name}, {n} inputs (first call {first:.1f} s)")
    print(measure.table(["", "error", "seconds", "ratio at equal error"], rows), flush=True)
    return {"activation": name, "inputs": n, "first": first, "ours": ours, "cubature": peers, "networks": networks}


def by_cubature(
    name: str, kernel: np.ndarray, scale: np.ndarray, tolerance: float, rule: str
) -> dict[str, np.ndarray]:
    """V, D and A of one layer from their definition, one adaptive integral for each different moment.

    Args:
        name: of the activation.
        kernel: covariance of the preactivations.
        scale: V, whose largest entry sets the absolute tolerance of moments that are almost 0.
        tolerance: relative tolerance of every integral.
        rule: of the cubature; `"genz-malik"` needs two dimensions, in one it is `"gk21"`.
    """
    functions = ACTIVATIONS[name][1:]
    pairs = list(itertools.combinations_with_replacement(range(len(kernel)), 2))
    largest = float(np.max(np.abs(scale))) / WEIGHT_VARIANCE**2

    @functools.cache
    def mean(values, slopes):
        """E of the product of values and of slopes at the given inputs."""
        distinct = sorted({*values, *slopes})
        factor = np.linalg.cholesky(kernel[np.ix_(distinct, distinct)])
        places = [[distinct.index(i) for i in some] for some in (values, slopes)]

        def integrand(u):
            z = u @ factor.T
            product = np.exp(-0.5 * np.sum(u**2, axis=-1)) / (2.0 * np.pi) ** (0.5 * u.shape[-1])
            for function, place in zip(functions, places, strict=True):
                if place:
                    product = product * np.prod(function(z)[:, place], axis=-1)
            return product

        limits = np.full(len(distinct), RANGE)
        options = {"rule": rule if len(distinct) > 1 else "gk21", "rtol": tolerance, "max_subdivisions": 2000}
        return cubature(integrand, -limits, limits, atol=tolerance * largest, **options).estimate

    tt, tu, uu = (np.zeros_like(scale) for _ in range(3))
    for p, q in itertools.product(pairs, repeat=2):
        own = mean(p, ()) * mean(q, ()), mean(p, ()) * mean((), q), mean((), p) * mean((), q)
        moments = mean(tuple(sorted(p + q)), ()), mean(p, q), mean((), tuple(sorted(p + q)))
        for tensor, moment, product in zip((tt, tu, uu), moments, own, strict=True):
            for (a, b), (c, d) in itertools.product({p, p[::-1]}, {q, q[::-1]}):
                tensor[a, b, c, d] = moment - product
    # The NTK of the first layer is its kernel.
    left, right = kernel[:, :, None, None], kernel
    mixed = tu * right
    A = tt + mixed + mixed.transpose(2, 3, 0, 1) + left * right * uu
    return {"V": WEIGHT_VARIANCE**2 * tt, "D": WEIGHT_VARIANCE**2 * (tt + mixed), "A": WEIGHT_VARIANCE**2 * A}


def growth(repeat: int, short: bool) -> list[dict[str, Any]]:
    """Time of all tensors to 1e-3; the first call of every size compiles."""
    cases = [("erf", n, 3) for n in (2, 5, 10, 20, 30)] + [("erf", 10, depth) for depth in (1, 10)]
    cases += [("tanh", n, 3) for n in (2, 3, 5)] + [("erf", 1, 100), ("tanh", 1, 100)]
    if short:
        cases = [("erf", 3, 2), ("tanh", 2, 1), ("tanh", 1, 10)]
    results, rows = [], []
    for name, n, depth in cases:
        net, x = network(name, depth), inputs(n, 20)
        measure.reset_peak()
        c, (first, times) = timed(lambda net=net, x=x: gpntk.cumulants(net, x, tolerance=1e-3), min(repeat, 3))
        worst = max(c.error_estimate[field] / np.linalg.norm(getattr(c, field)) for field in "VDFAB")
        results.append(
            {"activation": name, "inputs": n, "depth": depth, "stated_error": worst, "first": first, **times}
        )
        results[-1]["peak_bytes_of_process"] = measure.peak_resident_bytes()
        rows.append([f"{name}, {n} inputs, depth {depth}", f"{first:.1f}", f"{times['median']:.3f}"])
        rows[-1].append(f"{worst:.0e}" if worst else "exact")
    print("\n" + measure.table(["all tensors", "first (s)", "median (s)", "stated error"], rows), flush=True)
    return results


if __name__ == "__main__":
    main()
