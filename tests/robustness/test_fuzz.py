"""Every parameter of everything public, given what it cannot use.

The outcome must be a `ValueError` or `TypeError` (for a path also a `FileNotFoundError`) that names the parameter,
raised by this package or by scikit-learn's validation of data, or finite results. Values that no reader of the
documentation would expect to work must be refused.
"""

import contextlib
import functools
import inspect
import re
import signal
import traceback
import warnings
from pathlib import Path

import jax
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from calls import INTERFACE, KINDS, Call, Made, calls
from values import VALUES

import gpntk

matplotlib.use("Agg")

CALLS = calls()
# Records that the package makes, and what those who extend it build on.
RECORDS = {
    "Corrected",
    "CorrectedFactors",
    "CriticalInitialization",
    "Cumulants",
    "Dense",
    "FactoredCumulants",
    "FiniteWidthPosterior",
    "KernelState",
    "Molecules",
    "NetworkFeatures",
    "Nonlinearity",
    "Repeat",
    "SampledCumulants",
    "SampledKernels",
    "SampledPosterior",
    "SolverReport",
}
PACKAGE = str(Path(gpntk.__file__).parent)
SECONDS = 60  # for one case; the slowest takes a few, with what it compiles


class TookTooLong(Exception):
    pass


@contextlib.contextmanager
def _limited():
    def stop(*_):
        raise TookTooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _kind(call: Call, parameter: str):
    return call.kinds.get(parameter) or KINDS[parameter]


def _is_refusal(error: Exception, names: set[str]) -> bool:
    """Whether the package (or scikit-learn's validation) raised it, about one of the parameters."""
    origin = traceback.extract_tb(error.__traceback__)[-1].filename
    if names & {"X", "y", "sample_weight"} and any(
        "sklearn" in f.filename for f in traceback.extract_tb(error.__traceback__)
    ):
        return True
    words = set(re.findall(r"\w+", str(error)))
    return origin.startswith(PACKAGE) and bool(words & names)


def _all_finite(result) -> bool:
    leaves = [leaf for leaf in jax.tree.leaves(result) if hasattr(leaf, "dtype") or isinstance(leaf, float)]
    return all(np.isfinite(leaf).all() for leaf in leaves if np.asarray(leaf).dtype.kind in "fc")


def outcome(name: str, parameter: str, label: str) -> str | None:
    """What is wrong with the answer to one wrong (or right) value; `None` if nothing is."""
    call, value = CALLS[name], VALUES[label]
    must_refuse = _kind(call, parameter)(value)
    # A refusal may be about what the value does to another parameter, unless the value is wrong by itself.
    names = {parameter.split("__")[-1]} if must_refuse else {*call.arguments, *KINDS, "inputs"}
    try:
        with _limited(), warnings.catch_warnings(), np.errstate(over="ignore"):
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", UserWarning)  # those about accuracy
            finite = _all_finite(call(**{parameter: value}))
    except (ValueError, TypeError, FileNotFoundError) as error:
        if _is_refusal(error, names):
            return None
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} at {where.filename}:{where.lineno} {str(error)[:200]!r}"
    except TookTooLong:
        return f"took longer than {SECONDS} s"
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} at {where.filename}:{where.lineno} {str(error)[:200]!r}"
    finally:
        plt.close("all")
    if must_refuse:
        return "accepted"
    return None if finite else "not finite"


@pytest.mark.slow
def test_valid_calls_work():
    """Without this the fuzz would be of calls that are wrong anyway."""
    for call in CALLS.values():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # those about accuracy
            assert _all_finite(call())
            for parameter, value in call.arguments.items():
                value = value.make() if isinstance(value, Made) else value
                assert not _kind(call, parameter)(value), (call.function, parameter)
    plt.close("all")


def _public():
    """Everything public with its dotted name, and the public methods of classes that take arguments."""
    for home in gpntk._PUBLIC:
        for name, value in vars(getattr(gpntk, home)).items():
            if name.startswith(("_", "Abstract")) or name in RECORDS | INTERFACE or not callable(value):
                continue
            yield name, value
            if inspect.isclass(value):
                for method in dir(value):
                    bound = getattr(value, method)
                    if method.startswith("_") or method in INTERFACE or not callable(bound):
                        continue
                    function = inspect.unwrap(getattr(bound, "__func__", bound))
                    if function.__module__.startswith("gpntk") and set(inspect.signature(bound).parameters) - {
                        "self"
                    }:
                        yield f"{name}.{method}", bound


@pytest.mark.parametrize("name", sorted({name for name, _ in _public()}))
def test_everything_public_is_fuzzed(name):
    value = dict(_public())[name]
    home, _, method = name.rpartition(".")
    # A method is fuzzed with one of the classes that have it.
    entries = {key.removeprefix("groups.").removeprefix("datasets.").removeprefix("models.") for key in CALLS}
    entries |= {key.rpartition(".")[2] for key in CALLS}
    assert name in entries or (home and method in entries)
    if not home and name in CALLS:
        parameters = {
            p.name
            for p in inspect.signature(value).parameters.values()
            if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        }
        assert parameters <= set(CALLS[name].arguments)


@functools.cache
def _shuffled() -> tuple[list, list]:
    """All cases that must be refused, and those that may give results, in random order."""
    cases = [(name, p, label) for name, call in CALLS.items() for p in call.arguments for label in VALUES]
    shuffled = [cases[i] for i in np.random.default_rng(0).permutation(len(cases))]
    must = [bool(_kind(CALLS[name], p)(VALUES[label])) for name, p, label in shuffled]
    refused, others = ([c for c, m in zip(shuffled, must, strict=True) if m is kind] for kind in (True, False))
    return refused, others


def _run(cases) -> None:
    failures = {case: problem for case in cases if (problem := outcome(*case))}
    listed = "\n".join(f"{name}({parameter}={label}): {p}" for (name, parameter, label), p in failures.items())
    assert not failures, f"{len(failures)} of {len(cases)} cases:\n{listed}"


def test_wrong_values_are_refused():
    _run(_shuffled()[0][:500])


@pytest.mark.slow
def test_all_wrong_values_are_refused(record_testsuite_property):
    refused, _ = _shuffled()
    assert len(refused) > 40_000
    record_testsuite_property("wrong values", len(refused))
    _run(refused)


@pytest.mark.slow
def test_other_values_are_refused_or_give_finite_results():
    """Zero, infinity, numbers at the ends of what floats can hold, arrays of other shapes: where they may work."""
    _run(_shuffled()[1][:1500])
