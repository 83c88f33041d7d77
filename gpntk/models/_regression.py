"""Regression with the random kernel of a network of finite width."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax.scipy.linalg import cho_solve
from jax.typing import ArrayLike
from jaxtyping import Float
from numpyro.distributions import Distribution, constraints

from gpntk import _checks
from gpntk._products import einsum, matmul
from gpntk.finite_width._action import QuarticAction
from gpntk.finite_width._posterior import checked_targets
from gpntk.finite_width._whitened import exponential
from gpntk.models._setup import (
    RandomKernelSetup,
    half_exponential_times,
    posterior_rows,
    preparation,
    sample_exponent,
    sample_outputs,
)
from gpntk.networks import MLP


def finite_width_regression(
    X: Float[ArrayLike, "N D"],
    y: Float[ArrayLike, " N"] | Float[ArrayLike, "N q"] | None = None,
    X_test: Float[ArrayLike, "M D"] | None = None,
    *,
    net: MLP | None = None,
    width: float | None = None,
    action: QuarticAction | None = None,
    noise_variance: float | Distribution,
    n_outputs: int | None = None,
    retained: float = 0.999,
    most_modes: int = 512,
    n_points: int | None = None,
    seed: int = 0,
) -> None:
    r"""NumPyro model of regression with a Bayesian network of finite width, to order 1/n.

    Given the random kernel G of the network, outputs are Gaussian and integrated out; latent are only the standard
    normal coordinates of G along its modes, site `kernel_modes` in the plate `mode`. All outputs share them. The
    model is proper at every width, and the Gaussian process for `width=np.inf`. It agrees with the exact posterior
    of the network to order 1/n.

    Run it on the training set, and predict with `numpyro.infer.Predictive`, passing the same X and y and `X_test`:

        kernel = numpyro.infer.NUTS(gpntk.models.finite_width_regression)
        mcmc = numpyro.infer.MCMC(kernel, num_warmup=500, num_samples=1000)
        mcmc.run(key, X, y, net=net, width=64, noise_variance=0.1)
        predict = numpyro.infer.Predictive(gpntk.models.finite_width_regression, mcmc.get_samples())
        draws = predict(key, X, y, X_test, net=net, width=64, noise_variance=0.1)

    Sites: `kernel_modes`; `noise_variance` where it has a prior; `y` observed; at test inputs `f`, draws of the
    outputs, with `f_mean` and `f_variance`, their moments given the other sites (the posterior mean is the average
    of `f_mean`, the posterior variance that of `f_variance` plus the variance of `f_mean`). Predictions at one
    input do not depend on the others asked for. What depends on X and the network alone is computed once and
    remembered.

    Args:
        X: training inputs.
        y: targets; `None` samples them from the prior.
        X_test: inputs of predictions.
        net: the architecture, with `width`.
        width: width of the last hidden layer.
        action: a `QuarticAction` in the place of `net` and `width`, made from the cumulants of the rows of X
            followed by those of `X_test`.
        noise_variance: a number, or a NumPyro distribution whose support is bounded from below by a positive
            number, such as `TruncatedNormal(low=...)`, `Uniform` or a shifted `LogNormal`: that bound is the
            metric.
        n_outputs: number of outputs to sample where `y` is `None`; the default is a single one.
        retained: share of the fluctuations of the kernel, in the metric of the noise, that is sampled. What is not
            enters through the closed form to first order.
        most_modes: largest number of modes sampled.
        n_points: quasi-Monte Carlo points of the moments, as for `gpntk.finite_width_posterior`.
        seed: of those points.

    Raises:
        TypeError: for arguments of the wrong kind.
        ValueError: for bad inputs, and a prior of the noise without a positive lower bound.

    Warns:
        UserWarning: where the kernel fluctuates by more than half of itself: the width is too small.
    """
    floor = _noise_floor(noise_variance)
    setup = RandomKernelSetup(X, X_test, net, width, action, floor, retained, most_modes, n_points, seed)
    y = None if y is None else _checks.as_array("y", y)
    columns = np.ndim(y) == 2 if y is not None else n_outputs is not None
    if y is not None:
        if _checks.is_traced(y):
            y = checked_targets(y, setup.n_train)
        else:
            with preparation():
                y = np.asarray(checked_targets(y, setup.n_train))
    outputs = 1 if n_outputs is None else _checks.integer("n_outputs", n_outputs, minimum=1)
    if y is not None:
        if n_outputs is not None and y.shape[1] != outputs:
            raise ValueError(f"`n_outputs`={n_outputs} does not agree with `y`, which has {y.shape[1]} output(s).")
        outputs = y.shape[1]
    whitened = setup.whitened()

    coordinates, exponent = sample_exponent(whitened)
    excess = 0.0
    if isinstance(noise_variance, Distribution):
        excess = numpyro.sample("noise_variance", noise_variance) - floor
    basis, roots = jnp.asarray(whitened.basis), jnp.asarray(whitened.roots)
    fixed = not isinstance(noise_variance, Distribution)
    likelihood = RandomKernelNormal(exponent, basis, roots, None if fixed else excess, outputs, columns)
    observed = None if y is None else (y if columns else y[:, 0])
    targets = jnp.asarray(numpyro.sample("y", likelihood, obs=observed))
    if X_test is None:
        return
    rows = setup.appended(observed)
    targets = matmul(basis.T, targets.reshape(setup.n_train, outputs))
    if fixed:
        whitened_outputs, spread = targets / roots[:, None], None
    else:
        # What of the targets is not noise above the floor.
        kernel, scale_tril = noisy_factor(exponent, roots, excess)
        whitened_kernel = kernel / roots[:, None]
        whitened_outputs = matmul(whitened_kernel, cho_solve((scale_tril, True), targets))
        spread = excess * matmul(whitened_kernel, cho_solve((scale_tril, True), jnp.diag(1.0 / roots)))
    sample_outputs(rows, *posterior_rows(rows, coordinates, whitened_outputs, spread), columns)


class RandomKernelNormal(Distribution):
    r"""Noisy outputs given the random kernel, whose columns are independent.

    Their covariance is $A^{1/2} e^E A^{1/2}$, plus the excess of the noise over its floor. Without an excess
    neither a factorisation nor an inverse is needed: $\log\det e^E = \mathrm{tr}\,E$.
    """

    pytree_data_fields = ("exponent", "basis", "roots", "excess")
    pytree_aux_fields = ("outputs", "columns")

    def __init__(self, exponent, basis, roots, excess, outputs: int, columns: bool, *, validate_args=None):
        self.exponent, self.basis, self.roots, self.excess = exponent, basis, roots, excess
        self.outputs, self.columns = outputs, columns
        shape = (len(roots), outputs) if columns else (len(roots),)
        super().__init__((), shape, validate_args=validate_args)

    @property
    def support(self):
        return constraints.independent(constraints.real, len(self.event_shape))

    def log_prob(self, value):
        value = value if self.columns else value[..., None]
        targets = einsum("ai,...aq->...iq", self.basis, value)
        batch = targets.shape[:-2]
        targets = jnp.moveaxis(targets, -2, 0)
        flat = targets.reshape(targets.shape[0], -1)
        size = len(self.exponent)
        if self.excess is None:
            whitened = flat / self.roots[:, None]
            moved = exponential(-0.5 * self.exponent, whitened[:size])
            squares = jnp.sum(moved**2, axis=0) + jnp.sum(whitened[size:] ** 2, axis=0)
            log_determinant = 2.0 * jnp.sum(jnp.log(self.roots)) + jnp.trace(self.exponent)
        else:
            factor = self._scale_tril()
            whitened = jax.scipy.linalg.solve_triangular(factor, flat, lower=True)
            squares = jnp.sum(whitened**2, axis=0)
            log_determinant = 2.0 * jnp.sum(jnp.log(jnp.diagonal(factor)))
        each = -0.5 * (squares + log_determinant + len(self.roots) * np.log(2.0 * np.pi))
        return each.reshape(*batch, self.outputs).sum(-1)

    def sample(self, key: Any, sample_shape=()):
        shape = (len(self.roots), *sample_shape, self.outputs)
        noise = jax.random.normal(key, shape, self.roots.dtype).reshape(len(self.roots), -1)
        if self.excess is None:
            moved = self.roots[:, None] * half_exponential_times(self.exponent, noise)
        else:
            moved = matmul(self._scale_tril(), noise)
        value = jnp.moveaxis(matmul(self.basis, moved).reshape(shape), 0, -2)
        return value if self.columns else value[..., 0]

    def _scale_tril(self):
        return noisy_factor(self.exponent, self.roots, self.excess)[1]


def noisy_factor(exponent, roots, excess):
    """The random kernel with its floor, and the lower factor of it with the excess of the noise, (N, N) each."""
    half = half_exponential_times(exponent, jnp.diag(roots))
    kernel = matmul(half.T, half)
    return kernel, jnp.linalg.cholesky(kernel + excess * jnp.eye(len(roots), dtype=kernel.dtype))


def _noise_floor(noise_variance: Any) -> float:
    if _checks.is_traced(noise_variance) and not isinstance(noise_variance, Distribution):
        raise TypeError(
            "`noise_variance` must have a value, because the model prepares itself from it: pass its prior as a "
            "NumPyro distribution, and the model samples it."
        )
    if not isinstance(noise_variance, Distribution):
        return _checks.real_number("noise_variance", noise_variance, minimum=0.0, strict=True)
    with jax.ensure_compile_time_eval():  # the support of a transformed distribution is computed when asked for
        floor = getattr(noise_variance.support, "lower_bound", None)
    if floor is None or noise_variance.batch_shape or noise_variance.event_shape or not float(floor) > 0.0:
        raise ValueError(
            "The prior of `noise_variance` must be a scalar distribution with a positive lower bound on its "
            "support, such as numpyro.distributions.Uniform(0.01, 1.0) or TruncatedNormal(low=0.01), got "
            f"{type(noise_variance).__name__} on {noise_variance.support}."
        )
    return float(floor)
