"""The page of benchmarks in the documentation, from the stored results of all of them.

    python benchmarks/report.py            # writes docs/benchmarks.md
    python benchmarks/report.py --check    # exits with 1 if the page is not what the results say

Every file of `results/` becomes a section: what was run, on what, and the ratios of times. A benchmark tells how
its file is read by an entry of `SECTIONS`; one that has none gets a list of all its times.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS, PAGE = HERE / "results", HERE.parent / "docs" / "benchmarks.md"
Json = dict[str, Any]

INTRODUCTION = """\
# Benchmarks

Written by `python benchmarks/report.py` from the files of `benchmarks/results/`; do not edit it.

Both sides of a comparison run on the same machine in the same run, in alternation where a call is short; their
results are compared too, by the same script or by the tests. Times are medians after the first call, which
compiles; *first* is that call. **Ratio** is the other's time over that of gpntk: above 1 gpntk is faster.
Absolute times depend on the machine, ratios do much less. `make bench` runs all scripts at small sizes, to show
that they work; each without options repeats the figures below and says at its top what it does. neural-tangents
and equivariant-ntk run in an environment of their own, with the JAX that they need; the scripts create it.
"""


@dataclass(frozen=True)
class Row:
    """One comparison: a case, another way to do it, and seconds on both sides, steady and of the first call."""

    case: str
    ours: float
    other: str
    theirs: float
    our_first: float | None = None
    their_first: float | None = None
    note: str = ""

    def cells(self) -> list[str]:
        ratio = self.theirs / self.ours
        times = [seconds(t) for t in (self.ours, self.our_first, self.theirs, self.their_first)]
        return [self.case, *times[:2], self.other, *times[2:], f"**{figures(ratio)}**", self.note]


HEADER = ("case", "gpntk", "first", "other", "its time", "first", "ratio", "")


def seconds(value: float | None) -> str:
    if value is None:
        return ""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= size or unit == "µs":
            return f"{figures(value / size)} {unit}"
    raise AssertionError


def figures(value: float) -> str:
    """Two significant figures, three from 100 on."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.{max(0, 1 - math.floor(math.log10(value)))}f}"


def markdown(header: tuple[str, ...], rows: list[list[str]], numbers: tuple[int, ...]) -> str:
    """A table of which some columns are aligned to the right."""
    rule = ["---:" if column in numbers else "---" for column in range(len(header))]
    return "\n".join("| " + " | ".join(line) + " |" for line in [list(header), rule, *rows])


# What the file of each benchmark says


def mlp_kernels(results: Json) -> Iterator[Row]:
    records = {(r["activation"], r["side"]): r for r in results["results"]}
    product = records["", "product"]
    for (activation, side), ours in records.items():
        if side != "gpntk":
            continue
        time, first = ours["seconds"]["median"], ours["first_call_seconds"]
        others = {"neural-tangents": records.get((activation, "neural-tangents")), "`x @ x.T` alone": product}
        for name, other in others.items():
            if other:
                memory = f"memory {ours['beyond_outputs_bytes'] / 1e6:.0f} MB, other's {_megabytes(other)}"
                theirs, their_first = other["seconds"]["median"], other["first_call_seconds"]
                yield Row(activation, time, name, theirs, first, their_first, memory)


def _megabytes(record: Json) -> str:
    return f"{record['beyond_outputs_bytes'] / 1e6:.0f} MB"


def planar(results: Json) -> Iterator[Row]:
    for case, times in results["speed"].items():
        if case != "versions":
            yield from _against(case, "gpntk", times)


def spherical(results: Json) -> Iterator[Row]:
    for bandlimit, times in results["bandlimits"].items():
        for ours in (name for name in times if name.startswith("gpntk")):
            rule = ours.removeprefix("gpntk, ")
            case = f"bandlimit {bandlimit}, quadrature {rule}"
            yield from _against(case, ours, {k: t for k, t in times.items() if k == ours or k[:5] != "gpntk"})


def training_dynamics(results: Json) -> Iterator[Row]:
    times = results["fit_and_predict"]
    for ours in (name for name in times if name.startswith("gpntk")):
        case = ours.removeprefix("gpntk, ")
        clock, precision = case.split(", float")
        others = {f"neural-tangents, {clock}, float32"}
        if clock == "t = inf":
            others |= {"GaussianProcessRegressor", "KernelRidge"}
        others = {k: t for k, t in times.items() if k in others and (precision == "32" or "neural" not in k)}
        yield from _against(f"fit and predict, {case}", ours, {ours: times[ours], **others})


def finite_width(results: Json) -> Iterator[Row]:
    for case in results["equal error"]:
        for other in case["cubature"]:
            good = [o for o in case["ours"] if o["error"] <= max(other["error"], 1e-12)]
            if good:
                ours = min(good, key=lambda o: o["median"])
                errors = f"errors {ours['error']:.0e}, {other['error']:.0e}"
                name = f"SciPy cubature, {other['rule']}"
                label = f"{case['activation']}, {case['inputs']} inputs"
                yield Row(label, ours["median"], name, other["seconds"], case["first"], note=errors)


def bayes(results: Json) -> Iterator[Row]:
    kernel, weights = (results["comparison"]["methods"][name] for name in ("random kernel", "weights"))
    times = (m["seconds_to_equal_error"] for m in (kernel, weights))
    firsts = (m["first_call_s"] for m in (kernel, weights))
    ours, theirs = times
    yield Row("posterior mean to equal error", ours, "NUTS over all weights", theirs, *firsts)
    ours, theirs = (1 / m["effective_samples_per_s"] for m in (kernel, weights))
    yield Row("one effective sample", ours, "NUTS over all weights", theirs)


def _against(case: str, ours: str, times: Json) -> Iterator[Row]:
    """Our time against those of all others that were timed beside it."""
    own = times[ours]
    for name, other in times.items():
        if name != ours:
            errors = f"errors {own['error']:.0e}, {other['error']:.0e}" if "error" in own else ""
            name = name.split(", t = ")[0]
            yield Row(case, own["median"], name, other["median"], own.get("first"), other.get("first"), errors)


def all_times(results: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, float, float | None]]:
    """Every median of a file that has no section of its own, by where it stands."""
    if isinstance(results, dict):
        if isinstance(results.get("median"), int | float):
            yield ", ".join(path), results["median"], results.get("first")
        else:
            for key, value in results.items():
                yield from all_times(value, (*path, str(key)))
    elif isinstance(results, list):
        for index, value in enumerate(results):
            yield from all_times(value, (*path, str(index + 1)))


def uci_regression(results: Json) -> str:
    """Wins and losses: errors, not times."""
    ours, theirs = (results.get(model, {}) for model in ("NTKRegressor", "GaussianProcessRegressor"))
    rows = []
    for table in ours:
        splits = sorted(set(ours[table]) & set(theirs.get(table, {})), key=int)
        if len(splits) < 2:
            continue
        pairs = [[side[table][s]["rmse"] for s in splits] for side in (ours, theirs)]
        gaps = [a - b for a, b in zip(*pairs, strict=True)]
        rows.append([table, *(_with_error(values) for values in (*pairs, gaps))])
    header = ("table", "`NTKRegressor`", "`GaussianProcessRegressor`, RBF", "difference")
    return markdown(header, rows, (1, 2, 3))


def _with_error(values: list[float]) -> str:
    """The mean and its standard error, of which two figures are shown."""
    mean, error = statistics.fmean(values), statistics.stdev(values) / len(values) ** 0.5
    places = max(0, 1 - math.floor(math.log10(error)))
    return f"{mean:.{places}f} ± {error:.{places}f}".replace("-", "\N{MINUS SIGN}")


def scaling(results: Json) -> str:
    """Growth with N, one product and the whole solve."""
    rows = [
        [
            f"{r['n']:,}",
            seconds(r["product_seconds"]),
            str(r["iterations"]),
            seconds(r["solve_seconds"]),
            f"{r['peak_bytes'] / 1e9:.2f} GB",
            f"{4 * r['n'] ** 2 / 1e9:.2f} GB",
        ]
        for r in results["solve"]
    ]
    header = ("N", "one product", "iterations", "solve", "peak memory", "a Gram matrix")
    return markdown(header, rows, (0, 1, 2, 3, 4, 5))


def gpu(results: Json) -> str:
    """Times and shares of the device's ceilings."""
    rows = []
    for name, found in results["kernels"].items():
        share = f"{found['share']:.0%} of {found['binding'].replace('_', ' ')}" if "share" in found else ""
        times = [seconds(found[key]) for key in ("seconds", "first_seconds")]
        rows.append([name, f"{found['n']:,}", *times, share, f"{found['error']:.0e}"])
    solve = results["solve"]
    rows.append(["solve", f"{solve['n']:,}", seconds(solve["seconds"]), seconds(solve["first_seconds"]), "", ""])
    return markdown(("", "N", "time", "first", "share of the ceiling", "error"), rows, (1, 2, 3, 5))


@dataclass(frozen=True)
class Section:
    """How results are shown: title, what is measured, rows or a table of its own, and the script if not theirs."""

    title: str
    text: str
    rows: Callable[[Json], Iterator[Row]] | None = None
    table: Callable[[Json], str] | None = None
    script: str | None = None


SECTIONS = {
    "mlp_kernels": Section(
        "Kernels of multilayer perceptrons",
        "NNGP and NTK Gram matrices together, N = {n}, d = {d}, depth {depth}, float32. Memory is what is needed\n"
        "beyond the matrices returned. `x @ x.T` is the least that any dense kernel must do. neural-tangents has\n"
        "no closed form for tanh.",
        mlp_kernels,
    ),
    "planar": Section(
        "Convolutions in the plane",
        "NNGP and NTK Gram matrices together, ReLU, 3 layers, filters of 3 x 3, pooled, float32. The last row is\n"
        "the recursion on all pairs of group elements, compiled.",
        planar,
    ),
    "spherical": Section(
        "Rotations of the sphere",
        "NNGP and NTK Gram matrices together, two erf layers, 4 signals of 2 channels, float64. Errors (ours,\n"
        "the other's) are the largest of a matrix, relative to its largest entry. The double transform is the\n"
        "recursion on all pairs of rotations as it stands in the definition.",
        spherical,
    ),
    "training_dynamics": Section(
        "Fit and predict",
        "N = {n}, d = {d}, {n_test} test inputs, depth 2. The Gaussian process and ridge regression have RBF\n"
        "kernels with fixed hyperparameters.",
        training_dynamics,
    ),
    "scaling": Section(
        "Without the Gram matrix",
        "Regression with N inputs of dimension 8, depth 2, float32, alpha = 1/100 of the mean diagonal, to a\n"
        "relative residual of {tolerance:g}, each in a process of its own. Peak memory is all of the process.\n"
        "[Scale](scale.md) has the exponents.",
        table=scaling,
    ),
    "gpu": Section(
        "A GPU and its ceilings",
        "On one {device}, float32: NTK Gram matrices, the least time that the binding resource allows (its rate\n"
        "is measured in the same run) over the time taken, and the largest error against float64 among 200\n"
        "inputs. The solve is that of the section before.",
        table=gpu,
    ),
    "gpu_on_cpu": Section(
        "A processor and its ceilings", "The same script without a GPU.", table=gpu, script="gpu"
    ),
    "finite_width": Section(
        "Tensors at order 1/n",
        "All fourth moments of one layer at equal or smaller error of ours (errors: ours, the other's; relative\n"
        "Frobenius norms). Integrals over two inputs are easy for everybody.",
        finite_width,
    ),
    "bayes": Section(
        "Posteriors at finite width",
        "NUTS over the random kernel of the last layer against NUTS over all weights of the same network of\n"
        "width 32, 8 observations, two chains; *first* is set-up, compilation and warm-up.",
        bayes,
    ),
    "uci_regression": Section(
        "Test errors on real tables",
        "Root mean squared errors over the ten splits of each table, mean and standard error, and the paired\n"
        "difference: negative where `NTKRegressor` is better.",
        table=uci_regression,
    ),
}


def page(results: dict[str, Json]) -> str:
    """The whole page, from the contents of the files by name."""
    known = [name for name in SECTIONS if name in results]
    names = [*known, *sorted(set(results) - set(known))]
    return "\n".join([INTRODUCTION, *(section(name, results[name]) for name in names)])


def section(name: str, results: Json) -> str:
    described = SECTIONS.get(name, Section(name.replace("_", " ").capitalize(), "All times of this benchmark."))
    text = described.text.format(**results.get("settings", {}))
    if described.table:
        body = described.table(results)
    elif described.rows:
        rows = [row.cells() for row in described.rows(results)]
        # Columns that are empty everywhere are left out.
        shown = [i for i in range(len(HEADER)) if any(row[i] for row in rows)]
        numbers = tuple(place for place, i in enumerate(shown) if i in (1, 2, 4, 5, 6))
        body = markdown(tuple(HEADER[i] for i in shown), [[row[i] for i in shown] for row in rows], numbers)
    else:
        times = [[case, seconds(t), seconds(first)] for case, t, first in all_times(results)]
        body = markdown(("case", "time", "first"), times, (1, 2))
    return f"## {described.title}\n\n{text}\n\n{body}\n\n{provenance(described.script or name, results)}\n"


def provenance(name: str, results: Json) -> str:
    """The script, the machine, the versions and the date, as far as the file has them."""
    parts = [f"`python benchmarks/{name}.py`"]
    if hardware := results.get("hardware"):
        parts.append("{cpu}, {cores} cores, {memory_gib} GiB, {system}".format(**hardware))
    own = results.get("versions") or {"versions": "not recorded"}
    peers = results.get("peer_versions") or results.get("speed", {}).get("versions", {})
    parts += [_versions("", own), _versions("other side: ", peers), results.get("date", "")]
    return "; ".join(filter(None, parts)) + "."


def _versions(label: str, versions: dict[str, str]) -> str:
    return label + ", ".join(itertools.starmap("{} {}".format, versions.items())) if versions else ""


def stored() -> dict[str, Json]:
    files = sorted(path for path in RESULTS.glob("*.json") if not path.stem.endswith("_short"))
    return {path.stem: json.loads(path.read_text()) for path in files}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="only compare the page with the results")
    args = parser.parse_args()
    text = page(stored())
    if args.check:
        up_to_date = PAGE.exists() and PAGE.read_text() == text
        print("up to date" if up_to_date else "docs/benchmarks.md is not: run python benchmarks/report.py")
        return 0 if up_to_date else 1
    PAGE.write_text(text)
    print(f"written to {PAGE.relative_to(HERE.parent)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
