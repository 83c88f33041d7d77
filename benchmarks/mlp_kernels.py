"""Time and memory of the NNGP and NTK Gram matrices of an MLP, in float32 on the CPU.

    python benchmarks/mlp_kernels.py                         # N = 4000, d = 784, depth 3; relu, erf, tanh
    python benchmarks/mlp_kernels.py --short                 # a few seconds: does it run?
    python benchmarks/mlp_kernels.py --activation gelu --n 2000 --no-peer

Three things are timed in alternation, A B C A B C ..., in one run:

    A  gpntk            nngp_and_ntk(net, x)
    B  neural-tangents  kernel_fn(x, None, ("nngp", "ntk")), jitted or by nt.batch, whichever is faster here
    C  product          x @ x.T, jitted: the least that any dense kernel must do

The first call, which compiles, is reported apart from the others, whose median counts. Memory is measured
afterwards in fresh processes; `measure.MEMORY_DEFINITION` says what is counted. The peer's environment is
created on first use. neural-tangents has no closed form for tanh: its quadrature evaluates 625 points per
pair and takes minutes at N = 4000, so that row is left out unless `--peer-quadrature` asks for it (it is then
timed once).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

import measure
import peers

RESULTS = Path(__file__).resolve().parent / "results" / "mlp_kernels.json"
ACTIVATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "relu": ("ReLU", {}),
    "erf": ("Erf", {}),
    "tanh": ("Tanh", {}),
    "gelu": ("GELU", {}),
    "abs": ("Abs", {}),
    "sin": ("Sin", {}),
    "gaussian": ("Gaussian", {}),
}
BY_QUADRATURE = {"tanh"}  # in neural-tangents
MB = 1e6


@dataclass
class Contender:
    """Something to time: `call` does the work once and returns its seconds."""

    name: str
    call: Callable[[], float]
    memory: Callable[[], int]
    outputs: int  # matrices returned
    rounds: int
    mode: str = ""
    first: float = 0.0
    times: list[float] = field(default_factory=list)

    def compile(self) -> None:
        self.first = self.call()

    @property
    def median(self) -> float:
        return statistics.median(self.times)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--n", type=int, default=4000, help="number of inputs")
    parser.add_argument("--d", type=int, default=784, help="their dimension")
    parser.add_argument("--depth", type=int, default=3, help="hidden layers")
    parser.add_argument("--weight-variance", type=float, default=2.0)
    parser.add_argument("--bias-variance", type=float, default=0.1)
    parser.add_argument("--repeat", type=int, default=5, help="timed rounds, after the first call of each")
    parser.add_argument("--activation", nargs="+", choices=ACTIVATIONS, default=["relu", "erf", "tanh"])
    parser.add_argument("--no-peer", action="store_true", help="leave neural-tangents out")
    parser.add_argument("--peer-quadrature", action="store_true", help="time the peer's quadrature too (slow)")
    parser.add_argument("--short", action="store_true", help="small sizes: only shows that the benchmark works")
    parser.add_argument("--output", type=Path, default=RESULTS, help="JSON file for the results")
    parser.add_argument("--measure-memory", metavar="NET", help=argparse.SUPPRESS)  # in the fresh process
    args = parser.parse_args()
    if args.short:
        args.n, args.d, args.repeat = 400, 64, 2
        if args.output == RESULTS:
            args.output = RESULTS.with_name("mlp_kernels_short.json")
    return args


def inputs(n: int, d: int) -> np.ndarray:
    """Reproducible inputs, the same in every process."""
    return np.random.default_rng(0).standard_normal((n, d), dtype=np.float32)


# --- gpntk and the product ----------------------------------------------------------------------------------


def our_call(net: peers.Net, x: np.ndarray) -> Callable[[], Any]:
    """Both Gram matrices by gpntk's public function, waited for."""
    from gpntk import nngp_and_ntk

    network, data = peers.to_gpntk(net), jax.device_put(x)
    return lambda: jax.block_until_ready(nngp_and_ntk(network, data))


def product_call(x: np.ndarray) -> Callable[[], Any]:
    """The bare product, waited for."""
    product, data = jax.jit(lambda x: x @ x.T), jax.device_put(x)
    return lambda: jax.block_until_ready(product(data))


def report_memory(net: peers.Net | None, x: np.ndarray) -> None:
    """What the fresh process does: `net` is None for the product. Answers on standard output."""
    call = our_call(net, x) if net else product_call(x)
    jax.block_until_ready(jax.device_put(np.zeros(1, np.float32)) + 1)  # the device and its threads are started
    print(json.dumps({"extra_peak_bytes": measure.extra_peak_bytes(call)}))


def memory_in_fresh_process(net: peers.Net | None, args: argparse.Namespace) -> int:
    """Run this script as a child that only measures memory."""
    command = [
        sys.executable,
        __file__,
        "--measure-memory",
        json.dumps(net),
        f"--n={args.n}",
        f"--d={args.d}",
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])["extra_peak_bytes"]


# --- neural-tangents ----------------------------------------------------------------------------------------


def best_batch(peer: peers.NeuralTangents, net: peers.Net, data: str, n: int) -> tuple[int, float]:
    """The block size (0: one jitted call) at which the peer is fastest, and the seconds of its first call."""
    candidates = [0, *(b for b in (500, 1000) if n % b == 0 and b < n)]  # nt.batch wants divisors
    first = {batch: peer.time(net, data, batch)[0] for batch in candidates}
    rounds = [{batch: peer.time(net, data, batch)[0] for batch in candidates} for _ in range(3)]
    steady = {batch: min(times[batch] for times in rounds) for batch in candidates}
    best = min(candidates, key=lambda batch: steady[batch])
    return best, first[best]


def peer_memory(net: peers.Net, x: np.ndarray, batch: int) -> int:
    with peers.NeuralTangents() as fresh:
        return fresh.extra_peak_bytes(net, fresh.put(x), batch)


def peer_contender(
    peer: peers.NeuralTangents, net: peers.Net, x: np.ndarray, data: str, quadrature: bool, rounds: int
) -> Contender:
    """The peer at its best; a quadrature in blocks of 100 (it holds 625 numbers per pair), timed once."""
    if quadrature:
        batch = next((b for b in (100, 50, 20, 10) if len(x) % b == 0), 0)
        first, rounds = peer.time(net, data, batch)[0], 1
    else:
        batch, first = best_batch(peer, net, data, len(x))
    return Contender(
        name="neural-tangents",
        call=lambda: peer.time(net, data, batch)[0],
        memory=lambda: peer_memory(net, x, batch),
        outputs=2,
        rounds=rounds,
        mode=f"nt.batch({batch})" if batch else "jit",
        first=first,
    )


def check_agreement(peer: peers.NeuralTangents, net: peers.Net, x: np.ndarray) -> float:
    """Largest difference from the peer, relative to sqrt(K11 K22), on distinct pairs of a few inputs."""
    few = x[:200]
    worst = 0.0
    for ours, theirs in zip(our_call(net, few)(), peer.kernels(net, peer.put(few)), strict=True):
        scale = np.sqrt(np.outer(np.diag(theirs), np.diag(theirs)))
        error = np.abs(np.asarray(ours) - theirs) / scale
        worst = max(worst, float(error[~np.eye(len(few), dtype=bool)].max()))
    if not worst < 1e-3:
        raise SystemExit(
            f"{net['activation']}: gpntk and neural-tangents differ by {worst:.1e}; times mean nothing."
        )
    return worst


# --- the run ------------------------------------------------------------------------------------------------


def product_contender(args: argparse.Namespace, x: np.ndarray) -> Contender:
    """C, compiled: one for all activations."""
    product = product_call(x)
    contender = Contender(
        name="product",
        call=lambda: measure.seconds(product),
        memory=lambda: memory_in_fresh_process(None, args),
        outputs=1,
        rounds=args.repeat,
    )
    contender.compile()
    return contender


def contenders(
    name: str, args: argparse.Namespace, x: np.ndarray, peer: peers.NeuralTangents | None, data: str
) -> list[Contender]:
    """A and B for one activation, compiled."""
    net = peers.mlp(ACTIVATIONS[name], args.depth, args.weight_variance, args.bias_variance)
    ours = our_call(net, x)
    found = [
        Contender(
            name="gpntk",
            call=lambda: measure.seconds(ours),
            memory=lambda: memory_in_fresh_process(net, args),
            outputs=2,
            rounds=args.repeat,
        )
    ]
    found[0].compile()
    quadrature = name in BY_QUADRATURE
    if peer and not quadrature:
        difference = check_agreement(peer, net, x)
        print(f"{name}: gpntk and neural-tangents agree to {difference:.1e} of the kernels' scale (float32)")
    if peer and (not quadrature or args.peer_quadrature):
        found.append(peer_contender(peer, net, x, data, quadrature, args.repeat))
    return found


def time_in_alternation(groups: dict[str, list[Contender]], repeat: int) -> None:
    """Every round times everything once, so that a change of the machine's load meets all of them."""
    for turn in range(repeat):
        for group in groups.values():
            for contender in group:
                if turn < contender.rounds:
                    contender.times.append(contender.call())


def results(groups: dict[str, list[Contender]], product: Contender, n: int) -> list[dict[str, Any]]:
    """One record per activation and contender, and one for the product, with ratios of medians."""
    relu = groups["relu"][0] if "relu" in groups else None

    def record(activation: str, contender: Contender, ours: Contender | None) -> dict[str, Any]:
        extra = contender.memory()
        return {
            "activation": activation,
            "side": contender.name,
            "mode": contender.mode,
            "first_call_seconds": round(contender.first, 6),
            "seconds": measure.summary(contender.times),
            "times_the_product": contender.median / product.median,
            "times_gpntk": contender.median / ours.median if ours else None,
            "times_gpntk_relu": contender.median / relu.median if relu else None,
            "extra_peak_bytes": extra,
            "beyond_outputs_bytes": extra - contender.outputs * n * n * 4,
        }

    records = [record(name, c, group[0]) for name, group in groups.items() for c in group if c is not product]
    return [*records, record("", product, None)]


def show(records: list[dict[str, Any]]) -> str:
    """The records as a table for people."""
    header = (
        "",
        "first s",
        "median s",
        "min s",
        "/ product",
        "/ gpntk",
        "/ gpntk relu",
        "peak MB",
        "less outputs",
    )

    def ratio(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    rows = [
        (
            f"{r['activation']} {r['side']} {r['mode']}".strip(),
            f"{r['first_call_seconds']:.2f}",
            f"{r['seconds']['median']:.4f}",
            f"{r['seconds']['min']:.4f}",
            ratio(r["times_the_product"]),
            ratio(r["times_gpntk"]),
            ratio(r["times_gpntk_relu"]),
            f"{r['extra_peak_bytes'] / MB:.0f}",
            f"{r['beyond_outputs_bytes'] / MB:.0f}",
        )
        for r in records
    ]
    return measure.table(header, rows)


def main() -> None:
    args = arguments()
    x = inputs(args.n, args.d)
    if args.measure_memory:
        report_memory(json.loads(args.measure_memory), x)
        return
    hardware = measure.hardware()
    machine = f"{hardware['cpu']}, {hardware['cores']} cores"
    print(f"N = {args.n}, d = {args.d}, depth {args.depth}, float32; {machine}")
    peer = None if args.no_peer else peers.NeuralTangents()
    try:
        data = peer.put(x) if peer else ""
        peer_versions = peer.versions() if peer else {}
        product = product_contender(args, x)
        groups = {name: [*contenders(name, args, x, peer, data), product] for name in args.activation}
        time_in_alternation(groups, args.repeat)
    finally:
        if peer:
            peer.close()
    # The timing worker is gone: memory is measured with the machine to itself.
    records = results(groups, product, args.n)
    print(show(records))
    print(f"peak MB: {measure.MEMORY_DEFINITION}.")
    settings = {
        key: getattr(args, key) for key in ("n", "d", "depth", "weight_variance", "bias_variance", "repeat")
    }
    content = measure.context() | {
        "benchmark": "NNGP and NTK Gram matrices of an MLP, float32, CPU",
        "settings": settings,
        "memory_definition": measure.MEMORY_DEFINITION,
        "peer_versions": peer_versions,
        "results": records,
    }
    measure.write_json(args.output, content)
    print(f"written to {args.output.name} in {args.output.parent.name}/")


if __name__ == "__main__":
    main()
