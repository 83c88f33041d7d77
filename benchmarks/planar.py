"""Kernels of convolutional networks, beside other people's software and the literal recursion.

    python benchmarks/planar.py             # a few minutes
    python benchmarks/planar.py --large     # only the 200 x 200 Gram matrix of 28 x 28 images, with a progress bar
    python benchmarks/planar.py --short     # does it run?

NNGP and NTK Gram matrices together, ReLU, filters of 3 x 3, pooled, float32 on the CPU. Timed in alternation, in
one run, the first call (which compiles) apart from the others, whose median counts:

    C4, 8 x 8 x 3, 8 images, 3 layers       equivariant-ntk, if `EQUIVARIANT_NTK` names a checkout (see peers.py)
    CNN, 12 x 12 x 3, 6 images, 3 layers    neural-tangents
    C4 on a torus of 4 x 4 pixels           the recursion on all pairs (g, g') of group elements, compiled

Then how cost grows with the size of images, their number and depth; a Gram matrix of 28 x 28 images with its
memory; and agreement: CNN kernels with neural-tangents in float64, the NNGP of the C4 network with
equivariant-ntk in float32 (its NTK counts the lifting layer twice and is not compared).
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

import gpntk
import measure
import peers

RESULTS = Path(__file__).resolve().parent / "results" / "planar.json"
RELU = ["ReLU", {}]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--large", action="store_true", help="only 200 x 200 pairs of 28 x 28 images")
    parser.add_argument("--short", action="store_true", help="small sizes: only shows that the benchmark works")
    parser.add_argument("--gram", type=int, metavar="N", help=argparse.SUPPRESS)  # the work of a fresh process
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.gram:
        print(json.dumps(gram_of_large_images(args.gram)))
        return
    if args.short:
        args.repeat, args.output = 2, args.output.with_name("planar_short.json")

    results = json.loads(args.output.read_text()) if args.output.exists() else {}
    if args.large:
        results["gram_200"] = in_fresh_process(200)
    else:
        results |= measure.context()
        results["speed"] = speed(args.repeat)
        results["growth"] = growth(3 if args.short else args.repeat, args.short)
        results["gram_32"] = in_fresh_process(4 if args.short else 32)
        results["agreement"] = agreement()
    measure.write_json(args.output, results)


def description(kind: str, shape: tuple[int, int, int], depth: int = 3, **changes: Any) -> peers.Net:
    """A network as `nt_worker.py` wants to hear of it."""
    net = {"kind": kind, "input_shape": list(shape), "depth": depth, "activation": RELU}
    options = {
        "filter_size": 3,
        "padding": "same",
        "readout": "pool",
        "weight_variance": 2.0,
        "bias_variance": 0.1,
    }
    return net | options | changes


def to_gpntk(net: peers.Net) -> gpntk.networks.AbstractNetwork:
    names = ("depth", "filter_size", "padding", "readout", "weight_variance", "bias_variance")
    arguments = {name: net[name] for name in names}
    if net["kind"] == "cnn":
        return gpntk.CNN(tuple(net["input_shape"]), **arguments)
    return gpntk.PlanarGroupCNN("C4", tuple(net["input_shape"]), **arguments)


def images(n: int, shape: tuple[int, ...], dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, int(np.prod(shape)))).astype(dtype)


def ours(net: gpntk.networks.AbstractNetwork, x: np.ndarray) -> Callable[[], float]:
    x = jax.device_put(x)
    return lambda: measure.seconds(lambda: jax.block_until_ready(gpntk.nngp_and_ntk(net, x)))


def alternate(contenders: dict[str, Callable[[], float]], repeat: int) -> dict[str, dict[str, Any]]:
    """First calls and medians of functions that return seconds, in rounds.

    A turn is two calls, and the second one counts: the first finds caches that another process has emptied.
    """
    first = {name: call() for name, call in contenders.items()}
    rounds = [{name: (call(), call())[1] for name, call in contenders.items()} for _ in range(repeat)]
    return {name: {"first": first[name], **measure.summary([r[name] for r in rounds])} for name in contenders}


def speed(repeat: int) -> dict[str, Any]:
    lifted, plain = description("planar_group_cnn", (8, 8, 3)), description("cnn", (12, 12, 3))
    cases = [("C4, 8 x 8 x 3, 8 images", lifted, 8), ("CNN, 12 x 12 x 3, 6 images", plain, 6)]
    results = {}
    with peers.NeuralTangents() as peer:
        results["versions"] = peer.versions()
        for title, net, n in cases:
            x = images(n, tuple(net["input_shape"]))
            contenders = {"gpntk": ours(to_gpntk(net), x)}
            name = "neural-tangents" if net["kind"] == "cnn" else "equivariant-ntk"
            if net["kind"] == "cnn" or peers.has_equivariant_ntk():
                stored = peer.put(x)
                contenders[name] = lambda net=net, stored=stored: peer.time(net, stored)[0]
            results[title] = alternate(contenders, repeat)
    results["C4 on a torus, 4 x 4 x 1, 4 images"] = alternate(literal(4, 4), repeat)
    rows = []
    for title, times in results.items():
        if title != "versions":
            reference = times["gpntk"]["median"]
            rows += [
                [f"{title}: {name}", f"{t['first']:.2f}", f"{t['median']:.4f}", f"{t['median'] / reference:.1f}"]
                for name, t in times.items()
            ]
    print(measure.table(["", "first (s)", "median (s)", "ratio"], rows), flush=True)
    return results


def literal(side: int, n: int) -> dict[str, Callable[[], float]]:
    """Rotations and translations of a torus as a finite group, and the recursion on all pairs of elements."""
    arguments = {"depth": 3, "weight_variance": 2.0, "bias_variance": 0.1}
    pixels = np.arange(side * side).reshape(side, side)
    down, right = (np.roll(pixels, 1, axis).ravel() for axis in (0, 1))
    row, column = np.indices((side, side)).reshape(2, -1)
    turn = (-column % side) * side + row
    group = gpntk.groups.FiniteGroup.from_permutations([down, right, turn])
    window = [i % side * side + j % side for i, j in itertools.product((-1, 0, 1), repeat=2)]
    # An element (t, r) takes the pixel 0 to t: the filter holds those with t in the window and any rotation.
    near = np.flatnonzero(np.isin(group.permutations[:, 0], window)).tolist()
    pairs = gpntk.FiniteGroupCNN(group, supports=(window, near, near), **arguments)
    net = gpntk.PlanarGroupCNN("C4", (side, side, 1), padding="circular", **arguments)
    x = images(n, (side, side, 1))
    return {"gpntk": ours(net, x), "all pairs (g, g')": ours(pairs, x)}


def growth(repeat: int, short: bool) -> dict[str, list[dict[str, float]]]:
    """Medians of the C4 network as one of three sizes grows, and of neural-tangents' CNN on the same images."""
    sides, numbers, depths = ((4, 6), (2, 4), (1, 2)) if short else ((4, 8, 12, 16), (4, 8, 16, 32), (1, 2, 4, 8))
    sweeps = {
        "image size": [(side, side, 4, 3) for side in sides],
        "images": [(n, 8, n, 3) for n in numbers],
        "depth": [(depth, 8, 4, depth) for depth in depths],
    }
    results, rows = {}, []
    with peers.NeuralTangents() as peer:
        for title, cases in sweeps.items():
            results[title] = []
            for value, side, n, depth in cases:
                x = images(n, (side, side, 1))
                net = description("cnn", (side, side, 1), depth)
                stored = peer.put(x)
                contenders = {
                    "C4": ours(to_gpntk(net | {"kind": "planar_group_cnn"}), x),
                    "CNN": ours(to_gpntk(net), x),
                    "neural-tangents CNN": lambda net=net, stored=stored: peer.time(net, stored)[0],
                }
                medians = {name: t["median"] for name, t in alternate(contenders, min(repeat, 5)).items()}
                results[title].append({"value": value, **medians})
                rows.append([f"{title} {value}", *(f"{t:.4f}" for t in medians.values())])
    print("\n" + measure.table(["medians (s)", *medians], rows), flush=True)
    return results


def in_fresh_process(n: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--gram", str(n)]
    line = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    result = json.loads(line)
    print(
        f"\nC4, 28 x 28, 3 layers, {n} x {n} pairs: {result['seconds']:.1f} s with compilation, "
        f"peak memory of the process {result['peak_bytes'] / 1e9:.2f} GB",
        flush=True,
    )
    return result


def gram_of_large_images(n: int) -> dict[str, float]:
    net = to_gpntk(description("planar_group_cnn", (28, 28, 1)))
    x = images(n, (28, 28, 1))
    kernels, engine = [], gpntk.BlockedComputation(progress=True)
    seconds = measure.seconds(lambda: kernels.append(gpntk.nngp_and_ntk(net, x, compute_engine=engine)))
    assert all(np.isfinite(k).all() for k in kernels[0])
    return {"n": n, "seconds": seconds, "peak_bytes": measure.peak_resident_bytes()}


def agreement() -> dict[str, float]:
    """Largest relative deviations from the peers."""
    results = {}
    shape = (6, 6, 2)
    with jax.enable_x64(True), peers.NeuralTangents(x64=True) as peer:
        x = images(4, shape, np.float64)
        stored = peer.put(x)
        for padding, readout in itertools.product(("same", "valid", "circular"), ("pool", "flatten")):
            net = description("cnn", shape, 2, padding=padding, readout=readout)
            pairs = list(zip(gpntk.nngp_and_ntk(to_gpntk(net), x), peer.kernels(net, stored), strict=True))
            title = f"CNN, {padding}, {readout}, float64"
            results[title] = max(deviation(pair, ~np.eye(len(x), dtype=bool)) for pair in pairs)
            # Patches of an image coincide with themselves, where the peer rounds the angle of a kink.
            results[f"{title}, diagonal"] = max(deviation(pair, np.eye(len(x), dtype=bool)) for pair in pairs)
    if peers.has_equivariant_ntk():
        with peers.NeuralTangents() as peer:
            for padding in ("same", "valid", "circular"):
                net = description("planar_group_cnn", (8, 8, 3), padding=padding)
                x = images(8, (8, 8, 3))
                pair = gpntk.nngp_and_ntk(to_gpntk(net), x)[0], peer.kernels(net, peer.put(x))[0]
                results[f"C4, {padding}, NNGP, float32"] = deviation(pair)
    print("\n" + measure.table(["relative deviation", ""], [[k, f"{v:.1e}"] for k, v in results.items()]))
    return results


def deviation(pair: tuple[Any, Any], where: np.ndarray | bool = True) -> float:
    a, b = (np.asarray(k, np.float64) for k in pair)
    return float(np.abs(a - b).max(where=where, initial=0.0) / np.abs(b).max())


if __name__ == "__main__":
    main()
