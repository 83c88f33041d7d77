r"""Bayesian regression with a network of finite width in closed form, to order 1/n.

The outputs of a network of width n are Gaussian with a random kernel, of mean $K + K_1/n$ and covariance $V/n$.
Any function f of the kernel has the mean $f(K) + Lf/n$, $Lf = Df[K_1] + \tfrac12 D^2f[V]$ (the delta method). Here
f is the evidence of the Gaussian process, and the evidence times its posterior moments.
"""

import dataclasses
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_solve
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from gpntk import _checks
from gpntk._products import einsum
from gpntk.finite_width._fluctuations import FactorBatch, fluctuation_sums, random_kernel
from gpntk.finite_width._pairs import warn_if_narrow
from gpntk.networks import MLP

_FEWEST_POINTS, _MOST_POINTS, _POINTS_BY_PAIRS = 2**10, 2**13, 2**24


@dataclasses.dataclass(frozen=True)
class FiniteWidthPosterior:
    """Posterior of a Bayesian network of finite width, to order 1/width.

    NumPy arrays, or JAX arrays where an argument was traced. Fields of predictions are `None` without test inputs.
    """

    width: float
    mean: Float[Array, " M"] | Float[Array, "M q"] | None
    """Posterior mean of the outputs."""
    variance: Float[Array, " M"] | Float[Array, "M q"] | None
    """Posterior variance of the outputs, without the noise."""
    cov: Float[Array, "M M"] | Float[Array, "M M q q"] | None
    """Posterior covariance; its diagonal is `variance`."""
    log_marginal_likelihood: float
    r"""$\log Z = l + h(c/n)$, l the evidence of the Gaussian process, summed over outputs."""
    evidence_slope: float
    """The coefficient c of 1/n in the logarithm of the evidence."""
    evidence_slope_se: float
    """Standard error of c from the quasi-Monte Carlo integration of its moments."""


def finite_width_posterior(
    net: MLP,
    X: Float[ArrayLike, "N D"],
    y: Float[ArrayLike, " N"] | Float[ArrayLike, "N q"],
    X_test: Float[ArrayLike, "M D"] | None = None,
    *,
    width: float,
    noise_variance: float,
    n_points: int | None = None,
    seed: int = 0,
    return_cov: bool = True,
) -> FiniteWidthPosterior:
    r"""Posterior of a Bayesian network of finite width with Gaussian noise, in closed form to order 1/n.

    With $l(K) = \log N(y; 0, K + s^2)$, m and C the mean and covariance of the posterior process of kernel K,
    $Lf = Df[K_1] + \tfrac12 D^2f[V]$ and $\langle f, h\rangle = V(Df, Dh)$,

    $$c = L l + \tfrac12 \langle l, l\rangle, \qquad \log Z = l + h(c/n), \qquad
      \mathrm{mean} = m + \frac{L m + \langle l, m\rangle}n\,h'(c/n),$$

    and likewise the second moment. Every h with $h(u) = u + O(u^2)$ is right to this order. Here $h(u) = u$ for
    $u < 0$, where the logarithm of the evidence is expanded, in which independent data add up; and
    $h(u) = \log(1 + u)$ for $u > 0$, where the evidence is, and corrected numerators are divided by it: targets
    that are unlikely for the Gaussian process make c grow with the fourth power of y, and the evidence does not
    grow with its exponential. Several outputs share the random kernel, so that each tells something about the
    others. `width=np.inf` is the Gaussian process.

    In double precision, and differentiable (`jax.grad`, NumPyro) in `y`, `noise_variance` and the variances of the
    network within `jax.enable_x64(True)`; where these are traced, values are not checked, and
    `log_marginal_likelihood` is minus infinity where $1 + c/n \le 0$. Means and variances at a test input do not
    depend on which others are asked for.

    Args:
        net: the architecture. Unequal widths enter through its `width_ratios`.
        X: inputs, one per row.
        y: targets of one output, (N,), or of q outputs, (N, q).
        X_test: inputs of predictions; `None` means the evidence only.
        width: width n of the last hidden layer, at least 1; infinity is allowed.
        noise_variance: variance $s^2$ of the noise of each target, positive.
        n_points: quasi-Monte Carlo points per layer in each of four replicates, a power of two. `None` takes 8192
            for up to 45 training inputs, and fewer for more, 1024 at least.
        seed: of the randomisation of the points.
        return_cov: whether to compute `cov`, which takes as long as all the rest.

    Raises:
        TypeError: if `net` is not an MLP, and for traced arguments outside of `jax.enable_x64(True)`.
        ValueError: for bad inputs; if a kernel with its noise is singular in double precision, or its fluctuations
            overflow; and where the expansion has no meaning: $1 + c/n \le 0$, with the smallest usable width.

    Warns:
        UserWarning: where $|c|/n$ exceeds 1/2, where the kernel fluctuates by more than half of itself, or where a
            corrected variance is not positive (it is then set to 0).
    """
    _checks.instance("net", net, MLP, "a gpntk.MLP")
    width = _checks.real_number("width", width, minimum=1.0, infinite=True)
    _checks.boolean("return_cov", return_cov)
    n_points = checked_points(n_points, seed, len(np.atleast_1d(_checks.as_array("X", X))))
    is_double = jnp.result_type(float) == jnp.float64
    if _checks.is_traced(net, X, y, X_test, noise_variance) and not is_double:
        raise TypeError(
            "`finite_width_posterior` computes in double precision: trace and differentiate it within "
            "`with jax.enable_x64(True):`, or switch on the flag `jax_enable_x64`."
        )
    if not _checks.is_traced(noise_variance):
        noise_variance = _checks.real_number("noise_variance", noise_variance, minimum=0.0, strict=True)
    with jax.enable_x64(True):
        x = jnp.asarray(_checks.inputs("X", X, net.n_features), jnp.float64)
        targets = checked_targets(y, len(x))
        n_train = len(x)
        if X_test is not None:
            x_test = jnp.asarray(_checks.inputs("X_test", X_test, net.n_features), jnp.float64)
            _checks.equal_columns(X=x, X_test=x_test)
            x = jnp.concatenate([x, x_test])
        random = random_kernel(net, x)
        gp = condition(random.kernel, targets, noise_variance)
        marginal = fluctuation_sums(random, n_train, marginal_sums, (gp,), n_points, seed)
        corrections = _corrections(gp, marginal)
        slope = corrections.slope.mean()
        slope_se = corrections.slope.std(ddof=1) / len(corrections.slope) ** 0.5
        if not _checks.is_traced(slope):
            _check_finite(gp, corrections, n_train, noise_variance)
            _check_expansion(float(slope), width)
            warn_if_narrow(width, np.asarray(gp.prior_variance), np.asarray(corrections.own_variance))
        log_evidence = gp.log_evidence + _resummed(slope / width)
        mean = variance = cov = None
        if X_test is not None:
            step = (1.0 / width) / (1.0 + jnp.maximum(slope, 0.0) / width)
            shift = step * corrections.mean
            mean = gp.mean + shift
            variance = _not_negative(gp.variance[:, None] + step * corrections.variance - shift**2)
            if return_cov:
                joint = fluctuation_sums(random, len(x), _joint_sums, (gp,), n_points, seed)
                cov = _covariance(gp, joint, shift, step, variance)
            if np.ndim(y) == 1:
                mean, variance, cov = mean[:, 0], variance[:, 0], None if cov is None else cov[:, :, 0, 0]
        results: tuple[Any, ...] = (mean, variance, cov, log_evidence, slope, slope_se)
        if not _checks.is_traced(results):
            results = (*(None if a is None else np.asarray(a) for a in results[:3]), *map(float, results[3:]))
    return FiniteWidthPosterior(width, *results)


def checked_targets(y: Any, n: int) -> Float[Array, "N q"]:
    """Targets as a matrix with one column an output.

    Raises:
        ValueError: if `y` is not numeric and finite with one row for each of the `n` inputs.
    """
    y = _checks.real_array("y", y, jnp.result_type(float))
    if y.ndim not in (1, 2) or len(y) != n or y.size == 0:
        raise ValueError(f"`y` must have shape ({n},) or ({n}, n_outputs), got {y.shape}.")
    return jnp.asarray(y).reshape(n, -1)


def checked_points(n_points: Any, seed: Any, n_train: int) -> int:
    """How many points integrate the fluctuations; by default as many as take about the same time for N^2 pairs."""
    _checks.integer("seed", seed, minimum=0)
    if n_points is None:
        affordable = _POINTS_BY_PAIRS // max(n_train, 1) ** 2
        return 1 << (int(np.clip(affordable, _FEWEST_POINTS, _MOST_POINTS)).bit_length() - 1)
    n_points = _checks.integer("n_points", n_points, minimum=16)
    if n_points & (n_points - 1):
        raise ValueError(f"`n_points` must be a power of two, got {n_points}.")
    return n_points


class _Process(NamedTuple):
    """The Gaussian process of infinite width, conditioned on the data."""

    inverse: Float[Array, "N N"]
    coefficients: Float[Array, "N q"]
    gradient: Float[Array, "N N"]
    """Of the evidence with respect to the kernel of the training inputs."""
    weights: Float[Array, "M N"]
    """Of the targets in the posterior means."""
    mean: Float[Array, "M q"]
    covariance: Float[Array, "M M"]
    variance: Float[Array, " M"]
    """The diagonal of `covariance`: where only it is used, the compiler leaves out the rest."""
    prior_variance: Float[Array, " T"]
    log_evidence: Float[Array, ""]


@jax.jit
def condition(kernel: Float[Array, "T T"], y: Float[Array, "N q"], noise_variance) -> _Process:
    """The process of the given kernel of N training and M test inputs, given noisy outputs at the former."""
    n, outputs = y.shape
    identity = jnp.eye(n, dtype=kernel.dtype)
    factor = jnp.linalg.cholesky(kernel[:n, :n] + noise_variance * identity)
    inverse, coefficients = cho_solve((factor, True), identity), cho_solve((factor, True), y)
    weights = cho_solve((factor, True), kernel[:n, n:]).T
    quadratic = jnp.sum(y * coefficients)
    log_determinant = 2.0 * jnp.sum(jnp.log(jnp.diagonal(factor)))
    prior_variance = jnp.diagonal(kernel)
    return _Process(
        inverse,
        coefficients,
        0.5 * (coefficients @ coefficients.T - outputs * inverse),
        weights,
        weights @ y,
        kernel[n:, n:] - weights @ kernel[:n, n:],
        prior_variance[n:] - jnp.sum(weights * kernel[n:, :n], axis=1),
        prior_variance,
        -0.5 * (quadratic + outputs * (log_determinant + n * np.log(2.0 * np.pi))),
    )


class _MarginalSums(NamedTuple):
    """Contractions of V that the evidence, posterior means and posterior variances need."""

    evidence: Float[Array, ""]
    mean: Float[Array, "M q"]
    variance: Float[Array, "M q"]
    own_variance: Float[Array, " T"]


def marginal_sums(factors: FactorBatch, gp: _Process) -> _MarginalSums:
    n = len(gp.inverse)
    train = factors.block[:, :n, :n]
    slope = einsum("rab,ab->r", train, gp.gradient)
    moved = train @ gp.coefficients
    solved = train @ gp.inverse
    outputs = gp.coefficients.shape[1]
    # 1/2 D^2 l + 1/2 (D l)^2
    evidence = 0.5 * jnp.sum(slope**2) - 0.5 * jnp.sum(moved * (gp.inverse @ moved))
    evidence += 0.25 * outputs * jnp.sum(solved * solved.swapaxes(1, 2))
    # First derivatives of the mean, (F_xA - P F_AA) a, and of the variance.
    rows, own = left_over_moves(factors, gp.weights)
    mean_slope = rows @ gp.coefficients
    mean = einsum("r,rxq->xq", slope, mean_slope) - jnp.sum(rows @ (gp.inverse @ moved), axis=0)
    variance = (
        jnp.sum(mean_slope**2, axis=0)
        + jnp.sum(slope[:, None] * own - jnp.sum(rows * (rows @ gp.inverse), axis=2), axis=0)[:, None]
    )
    return _MarginalSums(evidence, mean, variance, jnp.sum(factors.diagonal**2, axis=0))


def left_over_moves(factors: FactorBatch, weights: Float[Array, "M N"]) -> tuple[Array, Array]:
    """How the factors F move the kernel of test inputs given the training inputs A, of weights P.

    Returns:
        `F_xA - P F_AA`, (..., M, N), and the diagonal of `[-P, 1] F [-P, 1]^T`, (..., M).
    """
    n = weights.shape[1]
    train, test = factors.block[..., :n, :n], factors.block[..., n:, :n]
    rows = test - weights @ train
    return rows, factors.diagonal[..., n:] - jnp.sum((test + rows) * weights, axis=-1)


def _joint_sums(factors: FactorBatch, gp: _Process) -> Float[Array, "M M q q"]:
    """The contraction of V in the numerator of the posterior covariance."""
    n = len(gp.inverse)
    train, test = factors.block[:, :n, :n], factors.block[:, n:, :n]
    slope = einsum("rab,ab->r", train, gp.gradient)
    rows = test - gp.weights @ train
    mean_slope = rows @ gp.coefficients
    squares = einsum("rxi,rwj->xwij", mean_slope, mean_slope)
    corner, rows_twice = (einsum("r,rxw->xw", slope, part) for part in (factors.block[:, n:, n:], test + rows))
    moved = _through_residual(corner, rows_twice, gp.weights)
    common = moved - einsum("rxa,rwa->xw", rows @ gp.inverse, rows)
    return squares + common[:, :, None, None] * jnp.eye(gp.coefficients.shape[1])


def _through_residual(test_test, rows_twice, weights):
    """`[-P, 1] F [-P, 1]^T`, from the corner of F and `rows_twice` = F_xA + (F_xA - P F_AA)."""
    half = rows_twice @ weights.T
    return test_test - 0.5 * (half + half.T)


class _Corrections(NamedTuple):
    """Coefficients of 1/n: of the evidence, by replicate, and of the numerators of posterior moments."""

    slope: Float[Array, " R"]
    mean: Float[Array, "M q"]
    variance: Float[Array, "M q"]
    own_variance: Float[Array, " T"]


@jax.jit
def _corrections(gp: _Process, marginal) -> _Corrections:
    n = len(gp.inverse)
    shift, sums = marginal.shift, marginal.sums
    slope = jnp.sum(shift.block[:, :n] * gp.gradient, axis=(1, 2)) + sums.evidence
    rows, own = left_over_moves(FactorBatch(shift.block.mean(0), shift.diagonal.mean(0)), gp.weights)
    return _Corrections(
        slope,
        rows @ gp.coefficients + sums.mean.mean(0),
        own[:, None] + sums.variance.mean(0),
        sums.own_variance.mean(0),
    )


@jax.jit
def _covariance(gp: _Process, joint, shift, step, variance) -> Float[Array, "M M q q"]:
    n, outputs = gp.coefficients.shape
    kernel_shift = joint.shift.block.mean(0)
    test = kernel_shift[n:, :n]
    moved = _through_residual(kernel_shift[n:, n:], 2.0 * test - gp.weights @ kernel_shift[:n, :n], gp.weights)
    identity = jnp.eye(outputs)
    correction = joint.sums.mean(0) + moved[:, :, None, None] * identity
    cov = gp.covariance[:, :, None, None] * identity + step * correction
    cov -= shift[:, None, :, None] * shift[None, :, None, :]
    # Integrated jointly, the diagonal has errors of its own: the covariance keeps its correlations.
    own = einsum("xxii->xi", cov)
    ratio = jnp.sqrt(jnp.where(own > 0, variance / jnp.where(own > 0, own, 1.0), 0.0))
    return cov * (ratio[:, None, :, None] * ratio[None, :, None, :])


def _resummed(relative):
    """h(c/n), minus infinity for an argument of -1 or less (which only a traced one can be)."""
    value = jnp.where(relative > 0.0, jnp.log1p(jnp.maximum(relative, 0.0)), relative)
    return jnp.where(relative > -1.0, value, -jnp.inf)


def _not_negative(variance):
    if not _checks.is_traced(variance) and float(variance.min()) < 0.0:
        warnings.warn(
            f"The corrected posterior variance is negative at {int(jnp.sum(jnp.any(variance < 0, axis=1)))} of "
            f"{len(variance)} test inputs and was set to 0: the width is too small for the expansion there.",
            stacklevel=3,
        )
    return jnp.maximum(variance, 0.0)


def check_resolved(scale: float, smallest: float, noise_variance: float) -> None:
    """Of the kernel with its noise, the smallest eigenvalue must stand out from the errors of the fluctuations.

    Preactivations are sampled with an error of 1e-10 of their variances.
    """
    if not smallest > 1e-9 * scale:
        raise ValueError(
            f"The noise variance {noise_variance:.3g} is too small: the kernel of the training inputs with its "
            f"noise, of diagonal {scale:.3g}, has an eigenvalue below 1e-9 of that, where fluctuations cannot be "
            "told from rounding. Raise the noise, or take duplicates out of `X`."
        )


def _check_finite(gp: _Process, corrections: _Corrections, n_train: int, noise_variance: float) -> None:
    inverse = np.asarray(gp.inverse)
    smallest = 1.0 / np.linalg.eigvalsh(inverse)[-1] if np.isfinite(inverse).all() else 0.0
    check_resolved(float(gp.prior_variance[:n_train].max()), smallest, noise_variance)
    if not all(np.isfinite(a).all() for a in (gp.log_evidence, *corrections)):
        raise ValueError(
            f"The corrections at order 1/width are not finite: the kernel of the inputs reaches "
            f"{gp.prior_variance.max():.3g}, and they go with its square and with the fourth power of the "
            "targets. Scale `X` and `y`."
        )


def _check_expansion(slope: float, width: float) -> None:
    if 1.0 + slope / width <= 0.0:
        raise ValueError(
            f"The corrected evidence 1 + c/n is not positive at `width`={width:g}: c = {slope:.4g} for these "
            f"data. The smallest usable width is {int(np.floor(-slope)) + 1}; the expansion is accurate for "
            "n >> |c|."
        )
    if abs(slope) / width > 0.5:
        warnings.warn(
            f"`width`={width:g} is small for these data: the correction c/n of the evidence is "
            f"{slope / width:.3g}, and the expansion asks for |c|/n below 1/2, a width of "
            f"{int(np.ceil(2 * abs(slope)))} or more.",
            stacklevel=3,
        )
