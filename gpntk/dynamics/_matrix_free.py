"""Training without the Gram matrix: iterative solvers around products that are recomputed in tiles."""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from tqdm import tqdm

from gpntk import _checks
from gpntk._products import einsum
from gpntk.dynamics._krylov import (
    KrylovSpaces,
    Preconditioner,
    column_norms,
    conjugate_gradients,
    conjugate_gradients_start,
    extend_krylov_spaces,
    krylov_spaces,
    normalised,
    preconditioner,
    ritz_pairs,
)
from gpntk.dynamics._responses import Response
from gpntk.kernels import GramOperator

# Iterations between two looks at the residual from outside of the compiled loop.
_AT_ONCE = 10
# Right-hand sides that share the evaluations of the kernel. More of them cost as much as the kernel does.
COLUMNS = 64
# Krylov vectors there is room for at least.
_LEAST_ROOM = 64
# Numbers that bases of Krylov spaces may take at the same time: 1 GiB in double precision.
_BASIS_BUDGET = 2**27


@dataclasses.dataclass(frozen=True)
class MatrixFree:
    """How `GradientFlow` and the estimators solve without storing the Gram matrix, given as their `solver`.

    Infinite training time is a linear system, solved by conjugate gradients with a preconditioner from a pivoted
    partial Cholesky factor. Finite times are functions of the matrix, which Lanczos' method applies in a Krylov
    space, one for all times; it has no preconditioner, and long times need more iterations. One iteration
    evaluates the kernel for all pairs of training inputs. Where JAX's float64 flag is on (in the estimators it
    always is), vectors are kept in float64 even if the kernel is float32.

    Args:
        tolerance: largest relative residual $|y - B c| / |y|$ of the dual coefficients; at finite times the same
            of their equation of motion, at every time up to the last.
        max_iterations: after which a solver gives up, with a warning that says what was reached.
        rank: number of columns of the preconditioner's factor; 0 means no preconditioner. It takes N x rank
            numbers and as much work as `rank**2 / N` iterations or fewer. `None` means N / 50, at least 256 and at
            most 1024.
        progress: whether to show a progress bar.

    Raises:
        ValueError: naming the argument, what is allowed and what was given.
        TypeError: for arguments of the wrong kind.

    >>> import gpntk, numpy as np
    >>> X = np.random.default_rng(0).normal(size=(300, 3))
    >>> model = gpntk.NTKRegressor(alpha=0.1, solver=gpntk.MatrixFree(tolerance=1e-8)).fit(X, X[:, 0])
    >>> exact = gpntk.NTKRegressor(alpha=0.1).fit(X, X[:, 0])
    >>> bool(abs(model.predict(X) - exact.predict(X)).max() < 1e-7)
    True
    """

    tolerance: float = 1e-6
    max_iterations: int = 1000
    rank: int | None = None
    progress: bool = False

    def __post_init__(self):
        _checks.real_number("tolerance", self.tolerance, minimum=0.0, strict=True)
        _checks.integer("max_iterations", self.max_iterations, minimum=1)
        if self.rank is not None:
            _checks.integer("rank", self.rank, minimum=0)
        _checks.boolean("progress", self.progress)


class SolverReport(NamedTuple):
    """What an iterative solver did.

    Attributes:
        method: "Conjugate gradients" or "Lanczos".
        iterations: products with the Gram matrix, the largest number among the right-hand sides.
        residual: the largest relative residual among the right-hand sides; see `MatrixFree`.
        converged: whether it is within the tolerance.
    """

    method: str
    iterations: int
    residual: float
    converged: bool


class RegularisedGram(eqx.Module):
    """`B = S Theta S + alpha I` as a function of vectors."""

    operator: GramOperator
    root_weights: Float[Array, "N 1"]
    alpha: Float[Array, ""]

    def __call__(self, vectors: Float[Array, "N m"]) -> Float[Array, "N m"]:
        weights = jnp.asarray(self.root_weights, vectors.dtype)
        return weights * (self.operator @ (weights * vectors)) + jnp.asarray(self.alpha, vectors.dtype) * vectors

    def preconditioner(self, rank: int | None) -> Callable:
        """An approximate inverse of the rank in `MatrixFree`; the identity for rank 0."""
        size = self.operator.size
        # What it costs should grow like what it saves.
        rank = min(size, min(max(256, size // 50), 1024) if rank is None else rank)
        if rank == 0:
            return jax.tree_util.Partial(_identity)  # a pytree, as preconditioners are
        return _preconditioner(jax.lax.stop_gradient(self), rank)


def _identity(vectors):
    return vectors


@eqx.filter_jit
def _preconditioner(gram: RegularisedGram, rank: int) -> Preconditioner:
    weights = jnp.asarray(gram.root_weights)[:, 0]

    def columns(indices):
        return weights[:, None] * gram.operator.columns(indices) * weights[indices]

    diagonal = weights**2 * gram.operator.diagonal()
    return preconditioner(columns, diagonal, jnp.asarray(gram.alpha, diagonal.dtype), rank)


def working_precision(vectors: Any) -> Float[Array, "..."]:
    """`vectors` as an array of the highest precision that JAX's flags allow."""
    return jnp.asarray(vectors).astype(float)


# Infinite time


def solve(gram: RegularisedGram, precondition: Callable, rhs: Float[Array, "N m"], settings: MatrixFree):
    """`B^-1 rhs` and, unless something is traced, a `SolverReport`."""
    rhs = working_precision(rhs)
    if _checks.is_traced(gram, rhs):
        return _solve_traced(gram, precondition, rhs, settings), None
    parts = [_solve(gram, precondition, part, settings) for part in _groups(rhs, COLUMNS)]
    return jnp.concatenate([solution for solution, _ in parts], axis=1), _together([r for _, r in parts])


def _solve(gram, precondition, rhs, settings):
    # Columns of norm 1: squares of very large or small ones would not be numbers of the working precision.
    rhs, norms = normalised(rhs)
    # Half of the tolerance, because the recurred residual is not quite the true one.
    threshold = jnp.full_like(norms, settings.tolerance / 2)
    state = _start(precondition, jnp.zeros_like(rhs), rhs, jnp.zeros((), int))
    before = np.inf
    with tqdm(desc="conjugate gradients", unit=" iterations", disable=not settings.progress) as bar:
        while True:
            until = min(int(state.iterations) + _AT_ONCE, settings.max_iterations)
            state = _advance(gram, precondition, state, threshold, np.asarray(until))
            if state.indefinite or not jnp.isfinite(state.residual).all():
                raise ValueError(
                    f"The regularised Gram matrix ({_described(gram)}) is not positive definite in the working "
                    f"precision. {_remedy(gram)}"
                )
            iterations, recurred = int(state.iterations), _largest_norm(state.residual)
            bar.set_postfix(residual=f"{recurred:.1e}", refresh=False)
            bar.update(iterations - bar.n)
            if recurred > settings.tolerance / 2 and iterations < settings.max_iterations:
                continue
            residual = _true_residual(gram, rhs, state.solution)
            reached = _largest_norm(residual)
            # Rounding errors separate the true residual from the recurred one; a new start from it helps until
            # the precision is exhausted.
            if reached <= settings.tolerance or iterations == settings.max_iterations or not reached <= before / 2:
                break
            before = reached
            state = _start(precondition, state.solution, residual, state.iterations)
    report = SolverReport("Conjugate gradients", iterations, reached, reached <= settings.tolerance)
    if not report.converged:
        given_up = iterations == settings.max_iterations
        more = ", raise `max_iterations` or the preconditioner's `rank`" if given_up else ""
        _warn(report, gram, settings, more)
    return norms * state.solution, report


_start, _advance = eqx.filter_jit(conjugate_gradients_start), eqx.filter_jit(conjugate_gradients)


@eqx.filter_jit
def _true_residual(gram, rhs, solution):
    return rhs - gram(solution)


def _solve_traced(gram, precondition, rhs, settings):
    """The solution as one compiled loop, differentiable in the matrix and the right-hand side."""

    def iterate(product, rhs):
        rhs, norms = normalised(rhs)
        start = conjugate_gradients_start(precondition, jnp.zeros_like(rhs), rhs, jnp.zeros((), int))
        threshold = jnp.full_like(norms, settings.tolerance / 2)
        end = conjugate_gradients(product, precondition, start, threshold, settings.max_iterations)
        converged = jnp.all(column_norms(end.residual) <= threshold)
        return eqx.error_if(
            norms * end.solution,
            ~converged,
            f"Conjugate gradients did not converge to a relative residual of {settings.tolerance:g} in "
            f"{settings.max_iterations} iterations. Raise `alpha`, `max_iterations` or the `rank` of the "
            "preconditioner.",
        )

    return jax.lax.custom_linear_solve(gram, rhs, iterate, symmetric=True)


# Finite times


def respond(
    gram: RegularisedGram,
    response: Response,
    clock: Any,
    rhs: Float[Array, "N m"],
    settings: MatrixFree,
    check: Callable,
) -> tuple[Float[Array, "T N m"], SolverReport]:
    """`r(B, clock) rhs` for a vector of clocks; `check(smallest, largest, value)` is given the Ritz values."""
    rhs = working_precision(rhs)
    if _checks.is_traced(gram, rhs, clock):
        raise NotImplementedError(
            "Finite training times without the Gram matrix cannot be traced by `jit`, `grad` or `vmap`: the "
            "number of Lanczos steps depends on the data. Use solver='eigh', or time = inf."
        )
    columns = max(1, _BASIS_BUDGET // (len(rhs) * min(settings.max_iterations, len(rhs))))
    parts = [_respond(gram, response, clock, p, settings, check) for p in _groups(rhs, min(columns, COLUMNS))]
    return jnp.concatenate([values for values, _ in parts], axis=2), _together([r for _, r in parts])


def _respond(gram, response, clock, rhs, settings, check):
    # Times of the past, because the error of today is made of the residuals of all of them.
    last = jax.tree.map(lambda leaf: jnp.max(leaf, axis=0), clock)
    past = response.earlier(jax.tree.map(lambda leaf: leaf[None], last), 0.5 ** np.arange(40.0))
    past = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, 40), past)

    def residual(ritz):
        check(ritz.values.min(), ritz.values.max(), None)
        values = _response_values(response, ritz, past)
        coupled = np.einsum("km,tkm,km->tm", ritz.vectors[-1], values, ritz.vectors[0])
        return np.max(np.abs(ritz.next_length * coupled))

    spaces, ritz, report = _lanczos(gram, rhs, residual, settings)
    if not report.converged:
        _warn(report, gram, settings, ", raise `max_iterations`, train for a shorter time, or use solver='eigh'")
    weights = np.einsum("jkm,tkm,km->tjm", ritz.vectors, _response_values(response, ritz, clock), ritz.vectors[0])
    return _combined(spaces, jnp.asarray(_with_room(weights, 1), spaces.basis.dtype)), report


def largest_eigenvalue(gram: RegularisedGram, settings: MatrixFree) -> float:
    """The largest eigenvalue, to `settings.tolerance`."""

    def residual(ritz):
        return np.max(np.abs(ritz.next_length * ritz.vectors[-1, -1]) / ritz.values[-1])

    # A vector with positive entries is never orthogonal to the leading eigenvector of a positive kernel.
    start = jnp.ones((gram.operator.size, 1), float)
    return float(_lanczos(gram, start, residual, settings)[1].values[-1, 0])


def _lanczos(gram, start, residual: Callable, settings) -> tuple[KrylovSpaces, Any, SolverReport]:
    """Extend Krylov spaces until a function of their Ritz pairs is below the tolerance."""
    spaces, size, limit = krylov_spaces(start), 0, min(settings.max_iterations, len(start))
    with tqdm(desc="Lanczos", unit=" iterations", disable=not settings.progress) as bar:
        while True:
            new_size = min(limit, size + max(_AT_ONCE, size // 4))
            # Room in powers of two: the loop is compiled anew for every size of the arrays.
            room = max(_LEAST_ROOM, 2 ** (new_size - 1).bit_length())
            # Sizes are arrays: numbers would be constants of the compiled loop.
            spaces = extend_krylov_spaces(gram, spaces.with_room(room), np.asarray(size), np.asarray(new_size))
            bar.update(new_size - size)
            size = new_size
            ritz = ritz_pairs(spaces, size)
            reached = float(residual(ritz))
            bar.set_postfix(residual=f"{reached:.1e}")
            if not reached > settings.tolerance or size == limit:
                break
    return spaces, ritz, SolverReport("Lanczos", size, reached, reached <= settings.tolerance)


def _response_values(response, ritz, clock) -> Float[np.ndarray, "T k m"]:
    size = len(ritz.values)
    return np.asarray(_evaluate(response, _with_room(ritz.values, 0), clock))[:, :size]


@eqx.filter_jit
def _evaluate(response, values, clock):
    return jax.vmap(lambda clock: response.value(values, clock))(clock)


@eqx.filter_jit
def _combined(spaces, weights):
    basis = spaces.basis[: weights.shape[1]]
    return spaces.norms * einsum("jnm,tjm->tnm", basis, weights)


def _with_room(values: np.ndarray, axis: int) -> np.ndarray:
    """`values` with zeros up to the next power of two along an axis, so that few shapes are ever compiled."""
    size = values.shape[axis]
    missing = max(_LEAST_ROOM, 2 ** (size - 1).bit_length()) - size
    return np.pad(values, [(0, missing if i == axis else 0) for i in range(values.ndim)])


# Shared


def _groups(columns: Float[Array, "N m"], size: int) -> list:
    return [columns[:, i : i + size] for i in range(0, columns.shape[1], size)]


def _together(reports: list[SolverReport]) -> SolverReport:
    return SolverReport(
        reports[0].method,
        max(report.iterations for report in reports),
        max(report.residual for report in reports),
        all(report.converged for report in reports),
    )


def _largest_norm(residual) -> float:
    return float(jnp.max(column_norms(residual)))


def _warn(report: SolverReport, gram: RegularisedGram, settings: MatrixFree, remedy: str) -> None:
    from sklearn.exceptions import ConvergenceWarning  # here, because it takes longer to import than our package

    warnings.warn(
        f"{report.method} reached a relative residual of {report.residual:.1e} in {report.iterations} iterations, "
        f"which is above the tolerance of {settings.tolerance:g} (Gram matrix: {_described(gram)}). "
        f"{_remedy(gram, remedy)}",
        ConvergenceWarning,
        stacklevel=2,
    )


def _described(gram: RegularisedGram) -> str:
    n, dtype = gram.operator.size, gram.operator.dtype
    return f"{n} x {n}, {dtype}, alpha = {float(gram.alpha):g}"


def _remedy(gram: RegularisedGram, more: str = "") -> str:
    single = ", compute in float64" if jnp.finfo(gram.operator.dtype).bits < 64 else ""
    return f"Raise `alpha`{more}{single}."
