"""Models of GPJax without the Gram matrix: predictions and the marginal likelihood by iterative solvers."""

from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from gpjax import Dataset
from gpjax.conditioning import Posterior
from gpjax.distributions import GaussianDistribution
from gpjax.gps import ConjugateModel
from gpjax.likelihoods import Gaussian
from gpjax.parameters import val
from jaxtyping import Array, Float

from gpntk import _checks
from gpntk._products import matmul
from gpntk.dynamics._krylov import Preconditioner, extend_krylov_spaces, krylov_spaces, quadratures_of_logarithm
from gpntk.dynamics._matrix_free import MatrixFree, RegularisedGram, solve, working_precision
from gpntk.kernels import GramOperator


class MatrixFreePosterior(Posterior):
    """A Gaussian process of GPJax conditioned on data without its Gram matrix.

    What `model.condition(train_data)` is for data sets whose Gram matrix fits into memory. Conditioning is one
    solve; a mean then costs the kernel between test and training inputs once, a covariance a further solve with
    one right-hand side a test input, of which 64 share the evaluations of the kernel.

    Args:
        model: a prior times a Gaussian likelihood.
        train_data: inputs (N, D) and one output (N, 1).
        solver: settings of the conjugate gradients.

    Raises:
        ValueError: for several outputs, and if the regularised Gram matrix is not positive definite in the working
            precision.
        TypeError: for arguments of the wrong kind, and for a likelihood that is not Gaussian.

    Warns:
        ConvergenceWarning: scikit-learn's, if a solve does not reach the tolerance. Inside `jit` that is an error.

    >>> import gpjax as gpx, gpntk, jax.numpy as jnp
    >>> prior = gpx.gps.Prior(kernel=gpntk.NTK(gpntk.MLP()), mean_function=gpx.mean_functions.Zero())
    >>> x = jnp.linspace(-1.0, 1.0, 50)[:, None]
    >>> posterior = gpntk.MatrixFreePosterior(prior * gpx.likelihoods.Gaussian(), gpx.Dataset(x, jnp.abs(x)))
    >>> posterior(x[:3], covariance="diagonal").mean.shape
    (3,)
    """

    prior: Any
    likelihood: Any
    train_data: Dataset
    representer_weights: Float[Array, "N 1"]
    _gram: RegularisedGram
    _precondition: Callable  # of all solves
    _solver: MatrixFree = eqx.field(static=True)

    def __init__(self, model: ConjugateModel, train_data: Dataset, solver: MatrixFree = MatrixFree()):  # noqa: B008
        self._solver = _checks.instance("solver", solver, MatrixFree, "settings such as gpntk.MatrixFree()")
        self._gram, residual = _system(model, train_data, "train_data")
        self.prior, self.likelihood, self.train_data = model.prior, model.likelihood, train_data
        self._precondition = self._gram.preconditioner(solver.rank)
        self.representer_weights, _ = solve(self._gram, self._precondition, residual, solver)

    def __call__(
        self, test_inputs: Float[Array, "M D"], *, covariance: Literal["dense", "diagonal"] = "dense"
    ) -> GaussianDistribution:
        """The process at test inputs, with all of their covariance or its diagonal alone."""
        _checks.option("covariance", covariance, ("dense", "diagonal"))
        kernel, x = self.prior.kernel, self.train_data.X
        mean = self.prior.mean_function(test_inputs)[:, 0]
        mean += self._gram.operator.cross_product(test_inputs, self.representer_weights[:, 0])
        cross = kernel.cross_covariance(x, test_inputs)
        solved, _ = solve(self._gram, self._precondition, cross, self._solver)
        if covariance == "dense":
            values = kernel.gram(test_inputs).as_matrix() - matmul(cross.T, solved)
            values = (values + values.T) / 2 + self.prior.jitter * jnp.eye(len(test_inputs))
            return GaussianDistribution(mean, lx.MatrixLinearOperator(values, lx.positive_semidefinite_tag))
        values = lx.diagonal(kernel.diagonal(test_inputs)) - jnp.sum(cross * solved, axis=0)
        # The solution is not exact: what is left of a small variance may be less than the error.
        return GaussianDistribution(mean, lx.DiagonalLinearOperator(jnp.maximum(values, 0.0) + self.prior.jitter))


def matrix_free_mll(
    model: ConjugateModel,
    data: Dataset,
    *,
    solver: MatrixFree = MatrixFree(),  # noqa: B008 (immutable)
    key: Array | None = None,
    probes: int = 16,
    lanczos_steps: int = 32,
    return_std: bool = False,
) -> Float[Array, ""] | tuple[Float[Array, ""], Float[Array, ""]]:
    r"""Marginal log-likelihood of a GPJax model without the Gram matrix, an objective for `gpjax.fit`.

    $$\log p(y) = -\tfrac12 \left(r^T B^{-1} r + \log\det B + N \log 2\pi\right), \qquad B = K + \sigma^2 I,$$

    `gpjax.objectives.conjugate_mll` for large data sets. Conjugate gradients solve for r and for random probes at
    the same time; the logarithm of the determinant is that of the preconditioner, plus the trace of the logarithm
    of the preconditioned matrix by stochastic Lanczos quadrature (Ubaru, Chen & Saad 2017, SIAM J. Matrix Anal.
    Appl. 38; with a preconditioner as in Wenger et al. 2022, arXiv:2107.00243). Gradients are those of the exact
    value, with the trace of $B^{-1} \partial B$ estimated from the same probes (Gardner et al. 2018,
    arXiv:1809.11165): they are unbiased, but not the derivative of the estimate, and their error, typically some
    per cent, falls with the number of probes and not with the rank of the preconditioner. They serve stochastic
    gradient methods rather than line searches, and have no derivatives of their own that mean anything. The same
    key gives the same probes, so that an optimiser sees a smooth function.

    Args:
        model: a prior times a Gaussian likelihood.
        data: inputs (N, D) and one output (N, 1).
        solver: settings of the conjugate gradients. A larger `rank` of the preconditioner makes the value more
            precise, too.
        key: of the random probes; `None` means `jax.random.key(0)`.
        probes: number of random vectors; the standard error falls with its root.
        lanczos_steps: nodes of the quadrature. With a condition number $\kappa$ after preconditioning its error is
            about $e^{-4 \cdot \mathrm{steps} / \sqrt\kappa}$.
        return_std: whether to return the error of the estimate as well; needs two probes.

    Returns:
        The estimate; with `return_std` a pair of it and its error: the standard error from the spread over probes,
        and added in squares what half of the nodes would have changed.

    Raises:
        ValueError: for several outputs, numbers below 1, and if B is not positive definite in the working
            precision. Inside `jit` the latter is a runtime error.
        TypeError: for arguments of the wrong kind, and for a likelihood that is not Gaussian.

    Warns:
        ConvergenceWarning: scikit-learn's, if a solve does not reach the tolerance. Inside `jit` that is an error.
    """
    _checks.instance("solver", solver, MatrixFree, "settings such as gpntk.MatrixFree()")
    _checks.boolean("return_std", return_std)
    probes = _checks.integer("probes", probes, minimum=2 if return_std else 1)
    steps = _checks.integer("lanczos_steps", lanczos_steps, minimum=1)
    probe_key: Any = _checks.key("key", jax.random.key(0) if key is None else key)
    gram, residual = _system(model, data, "data")
    fixed, residual_now = jax.lax.stop_gradient(gram), jax.lax.stop_gradient(residual)
    signs = jax.random.rademacher(probe_key, (len(residual), probes), residual.dtype)
    # Without a preconditioner for the solves, the trace has one of rank 1: probes keep their meaning.
    precondition: Any = fixed.preconditioner(1 if solver.rank == 0 else solver.rank)
    for_solves = fixed.preconditioner(0) if solver.rank == 0 else precondition
    # Probes w with E[w w^T] = B in the approximation of the preconditioner, and what it makes of them.
    forward, backward = precondition.power(signs, -0.5), precondition.power(signs, 0.5)
    solved, _ = solve(fixed, for_solves, jnp.concatenate([residual_now, forward], axis=1), solver)
    weights, images = solved[:, :1], solved[:, 1:]
    traces, coarse = map(
        _require_numbers, _traces_of_logarithm(fixed, precondition, signs, min(steps, len(signs)))
    )
    log_determinant = jnp.mean(traces) - precondition.log_determinant()
    value = -0.5 * (jnp.sum(residual_now * weights) + log_determinant + len(residual) * jnp.log(2 * jnp.pi))
    if _checks.is_traced(gram, residual):
        # Zero, with the gradient of the value: d(r' B^-1 r) = 2 c'dr - c'dB c, and d log det B = E[u' dB w].
        products = gram(jnp.concatenate([weights, backward], axis=1))
        quadratic = jnp.sum(weights * products[:, :1]) / 2 - jnp.sum(weights * residual)
        slope = quadratic - jnp.sum(images * products[:, 1:]) / (2 * probes)
        value += slope - jax.lax.stop_gradient(slope)
    if not return_std:
        return value
    errors = jnp.std(traces, ddof=1) / probes**0.5, jnp.mean(traces - coarse)
    return value, jnp.hypot(*errors) / 2


@eqx.filter_jit
def _traces_of_logarithm(
    gram: RegularisedGram, precondition: Preconditioner, signs: Float[Array, "N m"], steps: int
) -> tuple[Float[Array, " m"], Float[Array, " m"]]:
    """Estimates of the trace of log(P^-1/2 B P^-1/2) from each vector of signs, and those of half of the nodes."""

    def product(vectors):
        return precondition.power(gram(precondition.power(vectors, 0.5)), 0.5)

    spaces = extend_krylov_spaces(product, krylov_spaces(signs).with_room(steps), 0, steps)
    return quadratures_of_logarithm(spaces, steps), quadratures_of_logarithm(spaces, max(1, steps // 2))


def _require_numbers(traces: Float[Array, " m"]) -> Float[Array, " m"]:
    """Traces of logarithms, refused where a Ritz value was not positive."""
    message = "The Gram matrix of the model is not positive definite in the working precision: raise the noise."
    if _checks.is_traced(traces):
        return eqx.error_if(traces, ~jnp.isfinite(traces), message)
    if not jnp.isfinite(traces).all():
        raise ValueError(message)
    return traces


def _system(model: ConjugateModel, data: Dataset, name: str) -> tuple[RegularisedGram, Float[Array, "N 1"]]:
    """`K + noise` as a function of vectors, and the targets without the prior mean."""
    _checks.instance("model", model, ConjugateModel, "a GPJax prior times a Gaussian likelihood")
    _checks.instance("likelihood", model.likelihood, Gaussian, "a Gaussian likelihood")
    _checks.instance(name, data, Dataset, "a gpjax.Dataset")
    x: Any = data.X
    if data.y is None or data.y.shape != (len(x), 1):
        shape = None if data.y is None else data.y.shape
        raise ValueError(f"`{name}` must have one output of shape ({len(x)}, 1), got {shape}.")
    deviation = jnp.asarray(val(model.likelihood.obs_stddev), float)
    if deviation.size != 1:
        raise ValueError(f"`obs_stddev` of the likelihood must be one number, got shape {deviation.shape}.")
    residual = working_precision(data.y - model.prior.mean_function(x))
    if not _checks.is_traced(residual) and not jnp.isfinite(residual).all():
        raise ValueError(f"`{name}` must have finite targets where the prior mean is finite, got NaN or infinity.")
    operator = GramOperator(model.prior.kernel, x)
    # Vectors are where the features are, which may be many devices.
    residual = operator.kernel.blocked_engine.placed(residual)
    variance = deviation.reshape(()) ** 2 + model.prior.jitter
    return RegularisedGram(operator, jnp.ones((operator.size, 1)), variance), residual
