"""Arguments of training, checked; whatever is wrong with them is an error that names them."""

from typing import Any

import numpy as np
from jaxtyping import Array, Float

from gpntk import _checks
from gpntk.dynamics._matrix_free import MatrixFree

SOLVERS = ("auto", "cholesky", "eigh", "matrix_free")


def checked_solver(solver: Any) -> Any:
    """`solver`, one of the names above or settings of the matrix-free one."""
    if isinstance(solver, MatrixFree):
        return solver
    if not isinstance(solver, str):
        raise TypeError(
            f"`solver` must be one of {', '.join(map(repr, SOLVERS))} or MatrixFree(), got {solver!r}."
        )
    return _checks.option("solver", solver, SOLVERS)


def checked_parameter(name: str, value: Any, *, strict: bool = False) -> Any:
    """A number of at least 0 (above it if `strict`), unless it is traced."""
    if _checks.is_traced(value):
        return value
    return _checks.real_number(name, value, minimum=0.0, strict=strict)


def _concrete(values: Any) -> Any:
    """An array of NumPy, whose values `jit` leaves visible, unless it is traced."""
    return values if _checks.is_traced(values) else np.asarray(values)


def checked_targets(y: Any, X: Float[Array, "N D"]) -> Any:
    """Targets `y` of the inputs `X`, (N,) or (N, q)."""
    y = _concrete(_checks.real_array("y", y, X.dtype))
    if y.ndim not in (1, 2) or y.shape[0] != X.shape[0] or y.size == 0:
        raise ValueError(
            f"`y` must have shape ({X.shape[0]},) or ({X.shape[0]}, n_outputs) for X of shape {X.shape}, "
            f"got {y.shape}."
        )
    return y


def checked_weights(weights: Any, X: Float[Array | np.ndarray, "N D"]) -> Any:
    """Weights of the inputs `X`, (N,); ones for `None`."""
    if weights is None:
        return np.ones(X.shape[0], X.dtype)
    weights = _concrete(_checks.real_array("sample_weight", weights, X.dtype))
    if weights.shape != X.shape[:1]:
        raise ValueError(
            f"`sample_weight` must have shape {X.shape[:1]} for X of shape {X.shape}, got {weights.shape}."
        )
    if not _checks.is_traced(weights) and not ((weights >= 0).all() and (weights > 0).any()):
        raise ValueError(
            "`sample_weight` must be finite, >= 0 and somewhere positive, got values from "
            f"{weights.min():g} to {weights.max():g}."
        )
    return weights


def check_probabilities(y: Float[Array | np.ndarray, "N ..."]) -> None:
    """Raise `ValueError` for targets of the cross-entropy that are no class probabilities."""
    if y.ndim != 2:
        raise ValueError(f"`y` must have shape (N, n_classes) for loss='cross_entropy', got {y.shape}.")
    if _checks.is_traced(y):
        return
    values = np.asarray(y)
    sums = values.sum(1)
    if (values < 0).any() or not np.allclose(sums, 1.0, atol=1e-5):
        raise ValueError(
            "`y` must hold class probabilities for loss='cross_entropy': rows >= 0 that sum to 1, "
            f"got values from {values.min():g} and row sums from {sums.min():g} to {sums.max():g}."
        )


def checked_time_vector(time: Any, dtype) -> Any:
    """Times as a vector, also where it is a single one."""
    time = _concrete(checked_times("time", time))
    return time.reshape(-1).astype(dtype)


def checked_times(name: str, values: Any) -> Any:
    """Times (or numbers of steps), checked: a number or a vector, not negative, infinity allowed."""
    values = _checks.as_array(name, values)
    if values.ndim > 1 or values.size == 0:
        raise ValueError(f"`{name}` must be a number or a vector, got shape {values.shape}.")
    if not _checks.is_traced(values):
        for number in np.ravel(np.asarray(values)).tolist():
            _checks.real_number(name, number, minimum=0.0, infinite=True)
    return values


def checked_steps(steps: Any) -> Any:
    """Numbers of steps: times that are whole or infinite."""
    steps = checked_times("steps", steps)
    if not _checks.is_traced(steps):
        finite = np.asarray(steps)[np.isfinite(steps)]
        if (finite % 1 > 0).any():
            raise ValueError(f"`steps` must be whole numbers, got {finite[finite % 1 > 0][0]:g}.")
    return steps
