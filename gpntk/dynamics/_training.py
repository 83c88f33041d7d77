"""Wide networks in training: mean and covariance of the outputs after a given time."""

import abc
import contextlib
import functools
from collections.abc import Callable
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from gpjax.kernels import AbstractKernel
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from gpntk import _checks
from gpntk._products import matmul
from gpntk.dynamics._arguments import (
    check_probabilities,
    checked_parameter,
    checked_solver,
    checked_steps,
    checked_targets,
    checked_time_vector,
    checked_weights,
)
from gpntk.dynamics._cross_entropy import cross_entropy_coefficients
from gpntk.dynamics._dense import (
    factorise,
    products,
    propagated,
    quadratic,
    responded,
    smallest_pivot,
    solved,
    spread_in_eigenbasis,
    weighted,
)
from gpntk.dynamics._matrix_free import (
    COLUMNS,
    MatrixFree,
    RegularisedGram,
    SolverReport,
    largest_eigenvalue,
    respond,
    solve,
)
from gpntk.dynamics._responses import DESCENT, FLOW, Response, Steps
from gpntk.dynamics._spectral import Eigensystem, eigensystem
from gpntk.kernels import NNGP, NTK, GramOperator, nngp_and_ntk

# The largest Gram matrix that `solver="auto"` stores, in bytes. About three times as much is held while it is
# factorised, which fits into the 8 GiB of a small machine. Up to there a factorisation is faster than iterations.
_LARGEST_STORED_GRAM = 2**31


def _computed_once(method: Callable) -> Callable:
    """A method without arguments whose result is kept, unless something it depends on is traced."""

    @functools.wraps(method)
    def kept(self):
        return self._cached(method.__name__, lambda: method(self))

    return kept


class AbstractKernelTraining(abc.ABC):
    """Training in the limit of infinite width, where the outputs are a linear map of the targets.

    With `S = diag(sqrt(w))` and `B = S Theta S + alpha I` the outputs at `x` are `f_0(x) + A(x) (y - f_0(X))`,
    `A(x) = Theta(x, X) S r(B) S`; what the response `r` is, subclasses say.
    """

    _response: Response

    def __init__(self, ntk, nngp, X, y, learning_rate, alpha, reduction, sample_weight, solver):
        kernel = "a GPJax kernel such as gpntk.NTK(gpntk.MLP())"
        self.ntk = _checks.instance("ntk", ntk, AbstractKernel, kernel)
        self.nngp = None if nngp is None else _checks.instance("nngp", nngp, AbstractKernel, f"{kernel} or None")
        self.learning_rate = checked_parameter("learning_rate", learning_rate, strict=True)
        self.alpha = checked_parameter("alpha", alpha)
        self.reduction = _checks.option("reduction", reduction, ("sum", "mean"))
        self.solver = checked_solver(solver)
        self.X = _at_once(lambda: _at_least_single(_checks.inputs("X", X)), X)
        self.y = checked_targets(y, self.X)
        weights = checked_weights(sample_weight, self.X)
        self._total_weight = weights.sum() if reduction == "mean" else 1
        if not _checks.is_traced(weights) and not weights.all():
            # Rows of weight zero are left out: at alpha = 0 they would make B singular.
            used = np.flatnonzero(weights)
            self.X, self.y, weights = _at_once(lambda: self.X[used], self.X), self.y[used], weights[used]
        self._root_weights = (jnp if _checks.is_traced(weights) else np).sqrt(weights)[:, None]
        self._dependencies = (ntk, nngp, self.X, self.y, self.learning_rate, self.alpha, weights)
        self._cache: dict[Any, Any] = {}
        self._iterative = _iterative(solver, self.X)
        self.solver_report: SolverReport | None = None
        if self._iterative is None:
            self.gram  # noqa: B018 (an infinite one is refused here)
        else:
            self._operator()

    def __getstate__(self):
        # JAX would restore float64 arrays in float32 wherever the float64 flag is off; NumPy keeps them.
        return jax.tree.map(lambda leaf: np.asarray(leaf) if isinstance(leaf, jax.Array) else leaf, self.__dict__)

    @abc.abstractmethod
    def _clock(self, times: Float[Array, " T"]) -> Any:
        """The clock of the response at the given (checked) times, every leaf with leading axis T."""

    # What the public methods of subclasses share

    def _mean(self, X_test, time):
        times = checked_time_vector(time, self.X.dtype)
        X_test = self._test_inputs(X_test)
        coefficients = self._coefficients(times)
        columns = jnp.moveaxis(coefficients, 1, 0).reshape(len(self.X), -1)
        outputs = self._cast(self._operator().cross_product(X_test, columns))
        outputs = jnp.moveaxis(outputs.reshape(len(X_test), len(times), -1), 1, 0)
        return outputs.reshape(*np.shape(time), len(X_test), *self.y.shape[1:])

    def _covariance(self, X_test, time, diagonal):
        self._prior()
        times = checked_time_vector(time, self.X.dtype)
        X_test = self._test_inputs(X_test)
        # Variances of some test inputs do not need the others: no more of them at once than there are rows.
        size = len(self.X) if self._iterative is None else max(1, COLUMNS // len(times))
        parts = range(0, len(X_test), size) if diagonal else [0]
        spread = [self._spread(X_test[i : i + size] if diagonal else X_test, times, diagonal) for i in parts]
        return jnp.concatenate(spread, axis=1).reshape(*np.shape(time), *spread[0].shape[2:], len(X_test))

    def _spread(self, X_test, times, diagonal) -> Float[Array, "T ..."]:
        prior_cross, cross = self._cross_kernels(X_test)
        prior = self._prior()
        prior = self._cast(lx.diagonal(prior.diagonal(X_test)) if diagonal else prior.gram(X_test).as_matrix())
        if self._iterative is None and not self._by_cholesky(times) and not _checks.is_traced(self._dependencies):
            clock = self._clock(times)
            system, rotated, weights = self._resolved_eigensystem(clock), self._rotated_prior(), self._root_weights
            return spread_in_eigenbasis(
                self._response, system, clock, rotated, weights, prior, prior_cross, cross, diagonal
            )
        # One time after the other, where none gains from the others: each needs a matrix as large as `cross`.
        groups = [times] if self._iterative else [times[i : i + 1] for i in range(len(times))]
        values = []
        for group in groups:
            responses = self._respond(group, cross.T)
            images = self._prior_product(responses)
            values.append(propagated(prior, images, prior_cross, responses, diagonal))
        return jnp.concatenate(values)

    def dual_coefficients(self, time: float | Float[ArrayLike, " T"]) -> Float[Array, "..."]:
        """Dual coefficients c of the mean output `Theta(x, X) c`.

        They have the shape of the targets, without rows of weight zero; a vector of T times adds a leading axis.
        """
        coefficients = self._coefficients(checked_time_vector(time, self.X.dtype))
        return coefficients.reshape(*np.shape(time), *self.y.shape)

    def _coefficients(self, times: Float[Array, " T"]) -> Float[Array, "T N q"]:
        """Dual coefficients c: the mean output at x is `Theta(x, X) c`."""
        targets = self.y.reshape(len(self.y), -1)
        if self._iterative is None or _checks.is_traced(times):
            return self._respond(times, targets)

        def compute():
            coefficients = self._respond(times, targets)
            return coefficients, self.solver_report

        coefficients, self.solver_report = self._cached(f"coefficients at {times.tolist()}", compute)
        return coefficients

    def _respond(self, times: Float[Array, " T"], rhs: Float[Array, "N m"]) -> Float[Array, "T N m"]:
        """`S r(B) S rhs` at the given times."""
        if self._iterative is not None:
            return self._respond_iteratively(times, rhs, self._iterative)
        if self._by_cholesky(times):
            return solved(self._cholesky(), self._root_weights, rhs, len(times))
        clock = self._clock(times)
        return responded(self._response, self._resolved_eigensystem(clock), clock, self._root_weights, rhs)

    def _respond_iteratively(self, times, rhs, settings: MatrixFree):
        gram = self._regularised_gram()
        rhs = self._root_weights * rhs
        at_infinity = np.zeros(len(times), bool) if _checks.is_traced(times) else np.isinf(times)
        limit: Any = None
        finite, reports = iter(()), []
        if at_infinity.any():
            limit, report = solve(gram, self._preconditioner(), rhs, settings)
            reports.append(report)
        if not at_infinity.all():
            clock = self._clock(times[~at_infinity])
            resolved = functools.partial(self._check_resolution, clock=clock)
            finite, report = respond(gram, self._response, clock, rhs, settings, resolved)
            finite, reports = iter(finite), [*reports, report]
        values = jnp.stack([limit if infinite else next(finite) for infinite in at_infinity])
        if None not in reports:
            self.solver_report = max(reports, key=lambda report: report.residual)
        return self._cast(self._root_weights * values)

    def _by_cholesky(self, times) -> bool:
        converged = not _checks.is_traced(times) and bool(np.isinf(times).all())
        if self.solver == "cholesky" and not converged:
            raise ValueError(
                "`solver` must be 'auto', 'eigh' or 'matrix_free' at finite times, got 'cholesky' for time "
                f"{times}: a Cholesky factor gives the limit of infinite time only."
            )
        return converged and self.solver != "eigh"

    # Factorisations

    @_computed_once
    def _eigensystem(self) -> Eigensystem:
        return eigensystem(weighted(self.gram, self._root_weights, self.alpha))

    @_computed_once
    def _cholesky(self) -> Float[Array, "N N"]:
        factor = factorise(self.gram, self._root_weights, self.alpha)
        pivot = smallest_pivot(factor, self.gram, self._root_weights, self.alpha)
        # Each pivot is what is left of a variance given the inputs before, as a fraction of that variance. Its
        # rounding error grows like the root of the number of subtractions.
        limit = float(jnp.finfo(factor.dtype).eps) * len(factor) ** 0.5
        return _require(
            pivot > limit,  # false for NaN, which is what a negative pivot leaves
            factor,
            f"{self._described_gram} is not positive definite in the working precision. {_remedy(factor.dtype)}",
        )

    @_computed_once
    def _rotated_prior(self) -> Float[Array, "N N"]:
        return quadratic(self._prior_gram(), self._root_weights * self._eigensystem().eigenvectors)

    def _resolved_eigensystem(self, clock) -> Eigensystem:
        """The eigensystem, if rounding errors in its eigenvalues do not matter at this clock."""
        system = self._eigensystem()
        return self._check_resolution(system.eigenvalues[0], system.eigenvalues[-1], system, clock)

    def _check_resolution(self, smallest, largest, value, clock) -> Any:
        """`value`, if rounding errors in eigenvalues between these two do not matter at this clock.

        The response cannot tell eigenvalues much below 1/r(0) from zero: early stopping regularises like `alpha`.
        """
        noise = jnp.maximum(jnp.finfo(self.X.dtype).eps * largest, -(smallest - self.alpha))
        reach = jnp.max(self._response.value(jnp.zeros((), self.X.dtype), clock))
        return _require(
            smallest + 1 / reach >= 4 * noise,
            value,
            f"{self._described_gram} is too close to singular for so long a training time: its smallest "
            f"eigenvalues are rounding errors. {_remedy(self.X.dtype)} Or train for a shorter time.",
        )

    def max_learning_rate(self) -> Float[Array, ""]:
        """The learning rate at and above which gradient *descent* with these settings diverges.

        It is `2 / (largest eigenvalue of the loss's Hessian)`, in the same units as `learning_rate`.
        """
        return 2 * self._total_weight / self._largest_eigenvalue()

    @_computed_once
    def _largest_eigenvalue(self):
        if self._iterative is None:
            return self._eigensystem().eigenvalues[-1]
        return largest_eigenvalue(self._regularised_gram(), self._iterative)

    # Kernels

    def _cross_kernels(self, X_test):
        """Prior and training kernel between test and training inputs, in one pass where they share a network."""
        if self.nngp is self.ntk:
            cross = self._cast(self.ntk.cross_covariance(X_test, self.X))
            return cross, cross
        if _are_of_one_network(self.nngp, self.ntk):
            return tuple(map(self._cast, nngp_and_ntk(self.ntk.net, X_test, self.X)))
        return tuple(self._cast(kernel.cross_covariance(X_test, self.X)) for kernel in (self._prior(), self.ntk))

    @property
    @_computed_once
    def gram(self) -> Float[Array, "N N"]:
        """The Gram matrix of the kernel that trains, without rows of weight zero; computed if it was not."""
        gram = self._cast(self.ntk.gram(self.X).as_matrix())
        message = "The Gram matrix of `ntk` holds infinity or NaN: scale the inputs down."
        return _require(_checks.all_finite(gram), gram, message)

    @_computed_once
    def _operator(self) -> GramOperator:
        """The same matrix as a function of vectors, and its rows for new inputs."""
        return GramOperator(self.ntk, self.X)

    def _regularised_gram(self) -> RegularisedGram:
        return RegularisedGram(self._operator(), self._root_weights, jnp.asarray(self.alpha, float))

    @_computed_once
    def _preconditioner(self) -> Callable:
        return self._regularised_gram().preconditioner(cast(MatrixFree, self._iterative).rank)

    def _prior(self) -> AbstractKernel:
        if self.nngp is None:
            raise ValueError("`nngp` must be a kernel for a covariance, which needs the prior, got None.")
        return self.nngp

    @_computed_once
    def _prior_gram(self):
        return self.gram if self.nngp is self.ntk else self._cast(self._prior().gram(self.X).as_matrix())

    @_computed_once
    def _prior_operator(self) -> GramOperator:
        return GramOperator(self._prior(), self.X)

    def _prior_product(self, vectors: Float[Array, "T N M"]) -> Float[Array, "T N M"]:
        """The prior's Gram matrix times vectors."""
        if self._iterative is None:
            return products(self._prior_gram(), vectors)
        columns = jnp.moveaxis(vectors, 1, 0).reshape(len(self.X), -1)
        images = self._cast(self._prior_operator() @ columns).reshape(len(self.X), len(vectors), -1)
        return jnp.moveaxis(images, 1, 0)

    def _test_inputs(self, X_test):
        X_test = _checks.inputs("X_test", X_test)
        _checks.equal_columns(X=self.X, X_test=X_test)
        return X_test.astype(self.X.dtype)

    def _cast(self, values: Any) -> Array:
        return values.astype(self.X.dtype)

    @property
    def _described_gram(self) -> str:
        alpha = "traced" if _checks.is_traced(self.alpha) else f"{float(self.alpha):g}"
        n, dtype = len(self.X), self.X.dtype
        return f"The regularised Gram matrix ({n} x {n}, {dtype}, alpha = {alpha})"

    def _cached(self, name: str, compute: Callable) -> Any:
        if _checks.is_traced(self._dependencies):  # a cache would carry tracers out of their transformation
            return compute()
        if name not in self._cache:
            self._cache[name] = _at_once(compute)
        return self._cache[name]


class GradientFlow(AbstractKernelTraining):
    r"""Infinitely wide networks trained by gradient flow for a time $t$.

    For the squared loss $\frac12 \sum_i w_i |f(x_i) - y_i|^2 + \frac\alpha2 |\theta - \theta_0|^2$ the outputs are
    a Gaussian process with

    $$m_t(x) = A_t(x) y, \qquad
      c_t(x, x') = K(x, x') + A_t(x) K A_t(x')^T - A_t(x) K(X, x') - K(x, X) A_t(x')^T$$
    $$A_t(x) = \Theta(x, X)\, S B^{-1} (I - e^{-\eta B t}) S, \qquad B = S \Theta S + \alpha I, \quad
      S = \mathrm{diag}(\sqrt{w})$$

    (Jacot, Gabriel & Hongler 2018, arXiv:1806.07572, section 5; Lee et al. 2019, arXiv:1902.06720, equations 14
    to 16). Pass the NNGP as first kernel to train the readout layer only. The first finite time costs one
    eigendecomposition, every further time a matrix-vector product for the mean and a product of the N x N matrix
    with one column a test input for the spread; infinite time costs a Cholesky factor. Data sets whose Gram matrix
    does not fit into memory are left to iterative solvers, see `gpntk.MatrixFree`.

    For `loss="cross_entropy"` targets are class probabilities, one row an input, and the mean is the softmax
    cross-entropy flow $\dot f = -\eta (\Theta\, \partial L/\partial f + \alpha f)$ from $f = 0$, the prior mean.
    That is not the mean of an ensemble, because the flow is nonlinear, and there is no covariance.

    All methods are differentiable (once, at finite times) with respect to hyperparameters of the kernels,
    `learning_rate`, `alpha` and times, and work under `jit` and `vmap`.

    Args:
        ntk: the kernel that trains, a GPJax kernel.
        nngp: the kernel of the prior; `None` for means only.
        X: training inputs, (N, D).
        y: targets, (N,) or (N, q).
        learning_rate: the factor $\eta$ in front of the gradient, positive.
        alpha: what is added to the diagonal of the Gram matrix: weight decay towards the initialisation.
        loss: "squared" or "cross_entropy".
        reduction: "sum", or "mean": all of the loss, weight decay included, is divided by the sum of the sample
            weights, which slows the clock: $\eta \to \eta / \sum_i w_i$.
        sample_weight: (N,), non-negative; `None` means ones. A weight of 2 equals a row given twice.
        solver: "cholesky" (infinite time only), "eigh", "matrix_free" or its settings `MatrixFree(...)`, or
            "auto": matrix-free for Gram matrices above 2 GiB, otherwise the cheaper one of the others.

    Raises:
        ValueError: naming the argument, what is allowed and what was given; a Gram matrix too close to singular
            for the time asked for. Inside `jit` the latter is a runtime error.
        TypeError: for arguments of the wrong kind.

    Warns:
        ConvergenceWarning: scikit-learn's, if an iterative solver does not reach its tolerance.

    Attributes:
        solver_report: what the iterative solver did last, a `SolverReport`; `None` for the others.

    >>> import gpntk, numpy as np
    >>> net = gpntk.MLP(depth=1, bias_variance=0.1)
    >>> X, y = np.array([[-1.0], [0.0], [1.0]]), np.array([1.0, 0.0, 1.0])
    >>> flow = gpntk.GradientFlow(gpntk.NTK(net), gpntk.NNGP(net), X, y)
    >>> flow.mean(X, np.array([0.0, np.inf])).round(3).tolist()
    [[0.0, 0.0, 0.0], [1.0, 0.0, 1.0]]
    """

    _response = FLOW

    def __init__(
        self,
        ntk: AbstractKernel,
        nngp: AbstractKernel | None,
        X: Float[ArrayLike, "N D"],
        y: Float[ArrayLike, "N ..."],
        learning_rate: float = 1.0,
        alpha: float = 0.0,
        loss: str = "squared",
        reduction: str = "sum",
        sample_weight: Float[ArrayLike, " N"] | None = None,
        solver: str | MatrixFree = "auto",
    ):
        self.loss = _checks.option("loss", loss, ("squared", "cross_entropy"))
        super().__init__(ntk, nngp, X, y, learning_rate, alpha, reduction, sample_weight, solver)
        if loss == "cross_entropy":
            check_probabilities(self.y)

    def mean(self, X_test: Float[ArrayLike, "M D"], time: float | Float[ArrayLike, " T"]) -> Float[Array, "..."]:
        """Mean output at a training time, or at each of a vector of times.

        Args:
            X_test: inputs, (M, D).
            time: at least 0, infinity allowed.

        Returns:
            (M,), or (M, q) for targets of shape (N, q); a vector of T times adds a leading axis.
        """
        return self._mean(X_test, time)

    def covariance(
        self, X_test: Float[ArrayLike, "M D"], time: float | Float[ArrayLike, " T"]
    ) -> Float[Array, "*T M M"]:
        """Covariance of the outputs over initialisations, the same for every output.

        Arguments are those of `mean`. Returns (M, M); a vector of T times adds a leading axis.
        """
        self._check_gaussian()
        return self._covariance(X_test, time, diagonal=False)

    def variance(
        self, X_test: Float[ArrayLike, "M D"], time: float | Float[ArrayLike, " T"]
    ) -> Float[Array, "*T M"]:
        """The diagonal of `covariance`, without the rest of it; rounding errors below zero are set to zero."""
        self._check_gaussian()
        return self._covariance(X_test, time, diagonal=True)

    def max_learning_rate(self) -> Float[Array, ""]:
        if self.loss == "squared":
            return super().max_learning_rate()
        # The Hessian of the cross-entropy in the outputs of one input is at most 1/2.
        largest = self._largest_eigenvalue() - self.alpha
        return 2 * self._total_weight / (largest / 2 + self.alpha)

    def _clock(self, times):
        return jnp.asarray(times) * jnp.asarray(self.learning_rate / self._total_weight, times.dtype)

    def _coefficients(self, times):
        if self.loss == "squared":
            return super()._coefficients(times)
        product = self._operator().__matmul__ if self._iterative else jax.tree_util.Partial(matmul, self.gram)
        alpha = jnp.asarray(self.alpha, self.X.dtype)
        return cross_entropy_coefficients(product, self.y, self._root_weights**2, alpha, self._clock(times))

    def _check_gaussian(self):
        if self.loss != "squared":
            raise ValueError(
                f"`loss` must be 'squared' for covariances, got {self.loss!r}, which is not linear in the prior."
            )


class GradientDescent(AbstractKernelTraining):
    r"""Infinitely wide networks trained by full-batch gradient descent with a finite step size.

    The formulas are those of `GradientFlow` with $(I - \eta B)^k$ after $k$ steps in the place of
    $e^{-\eta B t}$; for small steps they agree at $t = k$. The loss is the squared one.

    Arguments are those of `GradientFlow`; `learning_rate` is the step size and must be below
    `max_learning_rate()`, and `solver="cholesky"` does not apply.

    Raises:
        ValueError: as for `GradientFlow`, and for a step size at which gradient descent diverges.
    """

    _response = DESCENT

    def __init__(
        self,
        ntk: AbstractKernel,
        nngp: AbstractKernel | None,
        X: Float[ArrayLike, "N D"],
        y: Float[ArrayLike, "N ..."],
        learning_rate: float,
        alpha: float = 0.0,
        reduction: str = "sum",
        sample_weight: Float[ArrayLike, " N"] | None = None,
        solver: str | MatrixFree = "auto",
    ):
        if checked_solver(solver) == "cholesky":
            raise ValueError("`solver` must be 'auto', 'eigh' or 'matrix_free' for descent, got 'cholesky'.")
        super().__init__(ntk, nngp, X, y, learning_rate, alpha, reduction, sample_weight, solver)

    def mean(self, X_test: Float[ArrayLike, "M D"], steps: int | Float[ArrayLike, " T"]) -> Float[Array, "..."]:
        """Mean output after a number of steps, or after each of a vector of numbers; see `GradientFlow.mean`."""
        return self._mean(X_test, checked_steps(steps))

    def covariance(
        self, X_test: Float[ArrayLike, "M D"], steps: int | Float[ArrayLike, " T"]
    ) -> Float[Array, "*T M M"]:
        """Covariance of the outputs over initialisations; see `GradientFlow.covariance`."""
        return self._covariance(X_test, checked_steps(steps), diagonal=False)

    def variance(
        self, X_test: Float[ArrayLike, "M D"], steps: int | Float[ArrayLike, " T"]
    ) -> Float[Array, "*T M"]:
        """The diagonal of `covariance`; see `GradientFlow.variance`."""
        return self._covariance(X_test, checked_steps(steps), diagonal=True)

    def _clock(self, times):
        limit = self.max_learning_rate()
        known = not _checks.is_traced((limit, self.learning_rate))
        figures = f" = {float(limit):g}, got {self.learning_rate:g}" if known else ""
        rate = _require(
            self.learning_rate < limit,
            jnp.asarray(self.learning_rate / self._total_weight, times.dtype),
            f"Gradient descent diverges: `learning_rate` must be below max_learning_rate(){figures}.",
        )
        return Steps(jnp.asarray(times), jnp.broadcast_to(rate, times.shape))


def _at_least_single(X: Float[Array, "N D"]) -> Float[Array, "N D"]:
    """`X`, in float32 where it is in half precision, for which LAPACK has no factorisations."""
    return X.astype(jnp.promote_types(X.dtype, jnp.float32))


def _at_once(compute: Callable, *dependencies: Any) -> Any:
    """`compute()`, at once even inside `jit`, unless something it depends on is traced."""
    inside_jit = _checks.is_traced(jnp.zeros(()))
    concrete = not _checks.is_traced(dependencies)
    with jax.ensure_compile_time_eval() if inside_jit and concrete else contextlib.nullcontext():
        return compute()


def _require(condition: Any, value: Any, message: str) -> Any:
    """`value` if `condition` holds, otherwise an error: at once where it is known, at run time under `jit`."""
    if _checks.is_traced(condition):
        return eqx.error_if(value, jnp.logical_not(condition), message)
    if not condition:
        raise ValueError(message)
    return value


def _remedy(dtype) -> str:
    if jnp.finfo(dtype).bits < 64:
        return (
            "Raise `alpha`, or compute in float64: `jax.enable_x64(True)`, or `dtype='float64'` of an estimator."
        )
    return "Raise `alpha`, look for duplicate inputs, or train for a finite `time`."


def _iterative(solver: str | MatrixFree, X: Float[Array, "N D"]) -> MatrixFree | None:
    """Settings of the solver that does without the Gram matrix, if it is the one to use."""
    if isinstance(solver, MatrixFree):
        return solver
    too_large = len(X) ** 2 * X.dtype.itemsize > _LARGEST_STORED_GRAM
    return MatrixFree() if solver == "matrix_free" or (solver == "auto" and too_large) else None


def _are_of_one_network(nngp, ntk) -> bool:
    """Whether `nngp_and_ntk` computes the two: of one network, of infinite width, unscaled, on all columns."""
    return (
        isinstance(nngp, NNGP)
        and isinstance(ntk, NTK)
        and nngp.net is ntk.net
        and all(k.width is None and k.variance is None and k.active_dims == slice(None) for k in (nngp, ntk))
    )
