"""float64 agreement of gpntk's MLP kernels with neural-tangents, for every activation that both have.

    python benchmarks/mlp_agreement.py                       # all of them; exits with 1 if any differs
    python benchmarks/mlp_agreement.py --only relu erf --details

Depth 1 and 3, NNGP and NTK, with and without bias, on random inputs, an exact duplicate, an antipode, a zero
input, and pairs at 1 - |rho| of 1e-9 and 3e-8. What is compared with what:

    generic   1 - |rho| > 1e-8: gpntk with the peer, to 1e-10 (sign: 1e-9, see `CASES`)
    exact     the diagonal, duplicates and antipodes: to 1e-10
    close     0 < 1 - |rho| <= 1e-8: to 1e-7
    zero      a zero input without bias: gpntk must be finite; what the peer has there is printed, not judged

On exact and close pairs the peer itself loses half the digits for activations with a kink: it takes the
angle from sqrt(K11 K22 - K12^2), which rounding leaves near 1e-8 where it should vanish. There gpntk is
compared with 50-digit arithmetic instead (column "against"), and the peer's own error is printed beside it.

Errors are |a - b| / |b|. Where kernels vanish by cancellation (odd activations at rho = 0, ReLU towards
rho = -1, where rounding of rho alone costs eps / (1 + rho)) no library has relative accuracy: entries below
1e-3 sqrt(K11 K22) enter only the second column, |a - b| / sqrt(K11 K22). Both columns must pass.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import mpmath
import numpy as np

import measure
import peers

TOLERANCES = {"generic": 1e-10, "exact": 1e-10, "close": 1e-7}
CLOSE = 1e-8  # 1 - |rho| up to which a pair counts as close
SIGNIFICANT = 1e-3  # entries smaller than this times sqrt(K11 K22) vanish by cancellation

Matrices = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Case:
    """An activation by gpntk's name, and the variances it is tested with."""

    label: str
    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    fast_growing: bool = False  # small weight variance, or the kernels explode with depth
    unit_variance: bool = False  # the peer's formula holds only for inputs of unit variance, without bias
    ill_conditioned: bool = False  # rounding of the input covariance alone can cost more than 1e-10

    def tolerance(self, kind: str) -> float:
        """The error allowed for a class of pairs."""
        return 1e-9 if self.ill_conditioned and kind == "generic" else TOLERANCES[kind]

    def networks(self) -> Iterator[peers.Net]:
        for depth in (1, 3):
            for weight, bias in self._variances():
                yield peers.mlp((self.name, self.arguments), depth, weight, bias)

    def _variances(self) -> tuple[tuple[float, float], ...]:
        if self.unit_variance:
            return ((1.0, 0.0),)
        return ((0.3, 0.1), (0.3, 0.0)) if self.fast_growing else ((1.7, 0.2), (1.7, 0.0))


CASES = [
    Case("relu", "ReLU"),
    Case("leaky relu", "LeakyReLU", {"negative_slope": 0.01}),
    Case("leaky relu 0.3", "LeakyReLU", {"negative_slope": 0.3}),
    Case("abrelu -0.3 1.4", "ABReLU", {"a": -0.3, "b": 1.4}),
    Case("abs", "Abs"),
    # Every layer takes the root of 1 - rho: at 1 - rho = 1e-8 and depth 3, one rounding of the input's
    # covariance moves the kernel by 1e-10, and the peer itself is 2.5e-10 away from 50-digit arithmetic.
    Case("sign", "Sign", ill_conditioned=True),
    Case("erf", "Erf"),
    Case("erf a b c", "Erf", {"a": 0.7, "b": 1.3, "c": 0.4}),
    Case("gelu", "GELU"),
    Case("sin", "Sin"),
    Case("sin a b c", "Sin", {"a": 0.8, "b": 1.2, "c": 0.5}),
    Case("cos", "Cos"),
    Case("cos a b c", "Cos", {"a": 0.8, "b": 1.2, "c": 0.5}),
    Case("exp", "Exp", {}, fast_growing=True),
    Case("exp a b", "Exp", {"a": 0.6, "b": 0.7}, fast_growing=True),
    Case("gaussian", "Gaussian"),
    Case("gaussian a b", "Gaussian", {"a": 1.2, "b": -0.4}),
    Case("rbf", "Rbf"),
    Case("rbf 0.4", "Rbf", {"gamma": 0.4}),
    *(Case(f"monomial {k}", "Monomial", {"k": k}, fast_growing=k > 1) for k in range(6)),
    Case("polynomial", "Polynomial", {"coefficients": [0.3, -0.7, 0.5, 0.2]}, fast_growing=True),
    *(Case(f"hermite {k}", "Hermite", {"k": k}, unit_variance=True) for k in range(6)),
    Case("identity", "Identity"),
]


def slopes(case: Case) -> tuple[float, float] | None:
    """Slopes below and above zero of the activations with a kink; None for the others."""
    given = case.arguments
    return {
        "ReLU": (0.0, 1.0),
        "LeakyReLU": (given.get("negative_slope", 0.01), 1.0),
        "ABReLU": (given.get("a", 0.0), given.get("b", 1.0)),
        "Abs": (-1.0, 1.0),
    }.get(case.name)


# --- inputs -------------------------------------------------------------------------------------------------


def inputs(unit_variance: bool, n: int = 16, d: int = 7) -> np.ndarray:
    """Random rows, then a duplicate, an antipode, four rows near to others or their opposites, a zero row."""
    rng = np.random.default_rng(7)
    x = rng.standard_normal((n, d))
    if unit_variance:
        x /= np.sqrt(np.mean(x**2, axis=1, keepdims=True))
    special = [x[0], -x[1]]
    for row, sign, distance in ((2, 1, 1e-9), (3, -1, 1e-9), (4, 1, 3e-8), (5, -1, 3e-8)):
        special.append(sign * _at_distance(x[row], distance, rng))
    if not unit_variance:
        special.append(np.zeros(d))
    return np.vstack([x, *special])


def _at_distance(x: np.ndarray, distance: float, rng: np.random.Generator) -> np.ndarray:
    """A vector as long as `x` at 1 - rho = `distance` from it."""
    other = rng.standard_normal(x.shape)
    other -= x * (other @ x) / (x @ x)
    other *= np.linalg.norm(x) / np.linalg.norm(other)
    return (1 - distance) * x + np.sqrt(distance * (2 - distance)) * other


def classes_of_pairs(x: np.ndarray, bias: bool) -> dict[str, np.ndarray]:
    """A mask for each class of pairs in the module's docstring."""
    norms = np.linalg.norm(x, axis=1)
    zero = (norms == 0) & (not bias)
    zero_pair = zero[:, None] | zero[None, :]
    equal = (x[:, None] == x[None]).all(-1)
    opposite = (x[:, None] == -x[None]).all(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        rho = (x @ x.T) / np.outer(norms, norms)
    near = (1 - np.abs(np.nan_to_num(rho)) <= CLOSE) & ~equal & ~opposite
    exact = (equal | opposite) & ~zero_pair
    return {
        "exact": exact,
        "close": near & ~zero_pair,
        "generic": ~(exact | near | zero_pair),
        "zero": zero_pair,
    }


# --- kernels ------------------------------------------------------------------------------------------------


def our_kernels(net: peers.Net, x: np.ndarray) -> Matrices:
    """gpntk's, in float64."""
    from gpntk import nngp_and_ntk

    nngp, ntk = nngp_and_ntk(peers.to_gpntk(net), jnp.asarray(x))
    if nngp.dtype != np.float64:
        raise SystemExit(f"gpntk returned {nngp.dtype} under jax_enable_x64.")
    return np.asarray(nngp), np.asarray(ntk)


def precise_kernels(case: Case, net: peers.Net, x: np.ndarray, wanted: np.ndarray, theirs: Matrices) -> Matrices:
    """`theirs`, with the wanted pairs replaced by a kinked activation's closed forms in 50 digits."""
    nngp, ntk = theirs[0].copy(), theirs[1].copy()
    with mpmath.workdps(50):
        for i, j in zip(*np.nonzero(wanted), strict=True):
            k, theta = _precise_pair(case, net, x[i], x[j])
            nngp[i, j], ntk[i, j] = float(k), float(theta)
    return nngp, ntk


def _precise_pair(case: Case, net: peers.Net, x: np.ndarray, y: np.ndarray) -> tuple[mpmath.mpf, mpmath.mpf]:
    """NNGP and NTK of one pair, by the recursion of dense layers."""
    weight, bias = mpmath.mpf(net["weight_variance"]), mpmath.mpf(net["bias_variance"])

    def first(u: np.ndarray, v: np.ndarray) -> mpmath.mpf:
        return bias + weight * mpmath.fdot(map(mpmath.mpf, u), map(mpmath.mpf, v)) / len(u)

    q1, q2, k = first(x, x), first(y, y), first(x, y)
    theta = k
    for _ in range(net["depth"]):
        dual, derivative = _kinked_dual(case, k, q1, q2)
        variances = [bias + weight * _kinked_dual(case, q, q, q)[0] for q in (q1, q2)]
        q1, q2, k = variances[0], variances[1], bias + weight * dual
        theta = k + weight * derivative * theta
    return k, theta


def _kinked_dual(case: Case, k: mpmath.mpf, q1: mpmath.mpf, q2: mpmath.mpf) -> tuple[mpmath.mpf, mpmath.mpf]:
    """E[s(u) s(v)] and E[s'(u) s'(v)] for a x below zero and b x above, or for the sign."""
    scale = mpmath.sqrt(q1 * q2)
    rho = max(mpmath.mpf(-1), min(mpmath.mpf(1), k / scale))
    angle = mpmath.acos(rho)
    found = slopes(case)
    if found is None:
        return 1 - 2 * angle / mpmath.pi, mpmath.mpf(0)
    a, b = map(mpmath.mpf, found)
    derivative = (a**2 + b**2) / 2 - (a - b) ** 2 * angle / (2 * mpmath.pi)
    return (a - b) ** 2 * scale * mpmath.sin(angle) / (2 * mpmath.pi) + derivative * k, derivative


# --- errors -------------------------------------------------------------------------------------------------


def errors(ours: np.ndarray, reference: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    """Largest |a - b| / |b| over significant entries of `mask`, and |a - b| / sqrt(K11 K22) over all of it.

    Not-a-number counts as an infinite error.
    """
    if not mask.any():
        return 0.0, 0.0
    diagonal = np.abs(np.diag(reference))
    scale = np.sqrt(np.outer(diagonal, diagonal))[mask]
    size = np.abs(reference[mask])
    difference = np.nan_to_num(np.abs(ours - reference)[mask], nan=np.inf)
    significant = (size > SIGNIFICANT * scale) & (size > 0)
    relative = difference[significant] / size[significant]
    scaled = difference / np.where(scale > 0, scale, 1.0)
    return float(relative.max(initial=0.0)), float(scaled.max())


@dataclass
class Findings:
    """The worst that was seen for one activation."""

    case: Case
    worst: dict[str, tuple[float, float]] = field(default_factory=dict)  # class of pairs -> (relative, scaled)
    peer_exact: float = 0.0  # the peer's own error on exact pairs, where 50 digits are known
    zero_finite: bool = True  # is gpntk finite at the zero input?
    zero_missing: int = 0  # entries there that are not finite in the peer
    zero_difference: float = 0.0

    def add(self, kind: str, found: tuple[float, float]) -> None:
        old = self.worst.get(kind, (0.0, 0.0))
        self.worst[kind] = (max(old[0], found[0]), max(old[1], found[1]))

    @property
    def kinked(self) -> bool:
        return slopes(self.case) is not None or self.case.name == "Sign"

    @property
    def passed(self) -> bool:
        small = all(max(found) <= self.case.tolerance(kind) for kind, found in self.worst.items())
        return small and self.zero_finite

    def row(self) -> list[str]:
        cells = [self.case.label]
        for kind in TOLERANCES:
            cells += [f"{value:.0e}" for value in self.worst[kind]]
        cells.append("50 digits" if self.kinked else "peer")
        cells.append(f"{self.peer_exact:.0e}" if self.kinked else "")
        cells.append(self._zero())
        cells.append("ok" if self.passed else "FAILED")
        return cells

    def _zero(self) -> str:
        if self.case.unit_variance:
            return "-"
        if not self.zero_finite:
            return "gpntk not finite"
        missing = f"peer NaN {self.zero_missing}x; " if self.zero_missing else ""
        return f"{missing}{self.zero_difference:.0e}"


HEADER = ["", *(f"{kind}{column}" for kind in TOLERANCES for column in ("", " /scale"))]
HEADER += ["against", "peer's exact", "zero input", ""]


def examine(case: Case, peer: peers.NeuralTangents, details: bool) -> Findings:
    """Compare all networks of one activation."""
    findings = Findings(case)
    x = inputs(case.unit_variance)
    data = peer.put(x)
    for net in case.networks():
        pairs = classes_of_pairs(x, bias=net["bias_variance"] > 0)
        ours, theirs = our_kernels(net, x), peer.kernels(net, data)
        reference = theirs
        if findings.kinked:
            reference = precise_kernels(case, net, x, pairs["exact"] | pairs["close"], theirs)
        for kernel, a, b, c in zip(("nngp", "ntk"), ours, reference, theirs, strict=True):
            for kind in TOLERANCES:
                found = errors(a, b, pairs[kind])
                findings.add(kind, found)
                if details:
                    name = f"{case.label:18s} {kernel:4s} {_variant(net)}"
                    print(f"{name} {kind:8s} {found[0]:.1e} {found[1]:.1e}")
            findings.peer_exact = max(findings.peer_exact, max(errors(c, b, pairs["exact"])))
            _look_at_zero(findings, a, c, pairs["zero"])
    return findings


def _variant(net: peers.Net) -> str:
    return f"depth {net['depth']} C_W {net['weight_variance']} C_b {net['bias_variance']}"


def _look_at_zero(findings: Findings, ours: np.ndarray, theirs: np.ndarray, mask: np.ndarray) -> None:
    """At the zero input without bias: are we finite, and does the peer agree where it is?"""
    finite = np.isfinite(theirs) & mask
    findings.zero_finite &= bool(np.isfinite(ours[mask]).all())
    findings.zero_missing += int((mask & ~finite).sum())
    if finite.any():
        difference = np.nan_to_num(np.abs(ours - theirs)[finite], nan=np.inf)
        size = np.maximum(np.abs(theirs[finite]), 1.0)
        findings.zero_difference = max(findings.zero_difference, float((difference / size).max()))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--only", nargs="+", metavar="WORD", help="activations whose label begins with one of these"
    )
    parser.add_argument("--details", action="store_true", help="print every network and kernel too")
    parser.add_argument("--short", action="store_true", help="only relu and erf: shows that the comparison works")
    args = parser.parse_args()
    if args.short:
        args.only = ["relu", "erf"]
    chosen = [c for c in CASES if not args.only or c.label.startswith(tuple(args.only))]
    if not chosen:
        parser.error(f"no activation begins with {args.only}; there are {', '.join(c.label for c in CASES)}.")
    jax.config.update("jax_enable_x64", True)
    with peers.NeuralTangents(x64=True) as peer:
        findings = [examine(case, peer, args.details) for case in chosen]
    print(measure.table(HEADER, [f.row() for f in findings]))
    failed = [f.case.label for f in findings if not f.passed]
    limits = ", ".join(f"{kind} {limit:.0e}" for kind, limit in TOLERANCES.items())
    print(f"allowed: {limits} (sign: generic 1e-09)")
    print(f"{len(failed)} of {len(findings)} failed{': ' if failed else ''}{', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
