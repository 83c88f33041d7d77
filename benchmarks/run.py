"""All benchmarks, one after the other.

    python benchmarks/run.py --short                      # at small sizes: do they run? some minutes
    python benchmarks/run.py --tables path/to/uci         # the real thing, which takes hours
    python benchmarks/run.py --short --only planar bayes

Where neural-tangents cannot be installed, benchmarks run without it or, if they only compare with it, are skipped
with the reason; so are the tables of `uci_regression.py` where there is no folder of them. A benchmark that fails
does not stop the others. The exit status is 1 if one failed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import measure
import peers

HERE = Path(__file__).resolve().parent
TABLES = HERE.parent / "shared" / "data" / "uci"
NOT_BENCHMARKS = {"measure", "nt_worker", "peers", "report", "run"}
# What they do without neural-tangents: run without it, or nothing.
WITHOUT_PEER = {
    "mlp_kernels": ["--no-peer"],
    "training_dynamics": ["--no-peer"],
    "mlp_agreement": None,
    "planar": None,
}


def main() -> int:
    names = sorted(path.stem for path in HERE.glob("*.py") if path.stem not in NOT_BENCHMARKS)
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--short", action="store_true", help="small sizes: only shows that the benchmarks work")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--tables", type=Path, default=TABLES, help="folder of the tables of uci_regression.py")
    args = parser.parse_args()

    without_peer = peer_problem(args.only)
    rows, failed = [], False
    for name in args.only:
        options, reason = options_of(name, args, without_peer)
        if options is None:
            rows.append([name, "", f"skipped: {reason}"])
            continue
        print(f"\n=== {name} ===", flush=True)
        started = time.perf_counter()
        status = subprocess.run([sys.executable, str(HERE / f"{name}.py"), *options], check=False).returncode
        failed |= status != 0
        outcome = f"failed with status {status}" if status else "done" + (f", {reason}" if reason else "")
        rows.append([name, f"{time.perf_counter() - started:.0f}", outcome])
    print("\n" + measure.table(["benchmark", "seconds", ""], [[n, t, o] for n, t, o in rows]))
    return int(failed)


def options_of(name: str, args: argparse.Namespace, without_peer: str) -> tuple[list[str] | None, str]:
    """Command-line options of one benchmark, `None` to skip it; and what is special, in words."""
    options, reason = ["--short"] if args.short else [], ""
    if name == "uci_regression":
        if not args.tables.is_dir():
            return None, "no folder of tables, name one with --tables"
        return [str(args.tables), *options], ""
    if without_peer and name in WITHOUT_PEER:
        if (instead := WITHOUT_PEER[name]) is None:
            return None, without_peer
        options, reason = [*options, *instead], without_peer
    return options, reason


def peer_problem(names: list[str]) -> str:
    """Why neural-tangents cannot be run here, in one line; empty if it can."""
    if not set(names) & set(WITHOUT_PEER):
        return ""
    try:
        peers.NEURAL_TANGENTS.ensure()
    except (RuntimeError, subprocess.CalledProcessError, OSError) as error:
        print(f"neural-tangents cannot be installed: {error}", file=sys.stderr, flush=True)
        return "without neural-tangents"
    return ""


if __name__ == "__main__":
    sys.exit(main())
