"""Regression with Bayesian networks of finite width."""

import dataclasses
from typing import Any, Self

import jax
import numpy as np
from numpyro.infer import MCMC, NUTS, Predictive
from sklearn.base import MultiOutputMixin, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from gpntk import _checks, models
from gpntk.estimators._base import (
    AbstractNetworkEstimator,
    check_spread,
    default_network,
    location_and_scale,
    padded,
)
from gpntk.finite_width import FiniteWidthPosterior, finite_width_posterior
from gpntk.networks import MLP


class FiniteWidthRegressor(MultiOutputMixin, RegressorMixin, AbstractNetworkEstimator):
    r"""Regression with a Bayesian network of finite width, to order 1/width.

    Predictions are the mean, and on request the standard deviation or covariance, of the posterior of the
    network's outputs given targets with Gaussian noise. `method="closed_form"` is `gpntk.finite_width_posterior`:
    no sampling, and an error where the width is too small for the data. `method="mcmc"` samples the random kernel
    with NUTS (`gpntk.models.finite_width_regression`), and exists at every width. At `width=np.inf` both are
    Gaussian process regression. Standardise the features, and the target or set `normalize_y`: the prior has a
    scale.

    Args:
        network: a `gpntk.MLP`. `None` means `MLP(depth=2, bias_variance=0.1)`. Its arguments are parameters of the
            estimator, `network__depth` and so on.
        width: width of the last hidden layer, at least 1, or infinity.
        noise_variance: variance of the noise of the targets (of the normalised ones, with `normalize_y`).
        method: "closed_form" or "mcmc".
        normalize_y: whether each target is shifted and scaled to zero mean and unit variance for the fit.
        n_points: quasi-Monte Carlo points per layer and replicate, as for `gpntk.finite_width_posterior`.
        num_warmup: warm-up steps of NUTS.
        num_samples: its draws.
        num_chains: its chains, one after the other.
        random_state: seed or `RandomState` of NUTS.
        progress: whether NUTS shows a progress bar.

    Attributes:
        network_: the architecture used.
        log_marginal_likelihood_: logarithm of the evidence of the targets the fit sees, to order 1/width, and
        evidence_slope_: its coefficient c of 1/width (closed form only).
        samples_: draws of the latent coordinates of the random kernel (NUTS only).
        n_divergences_: number of divergent transitions (NUTS only).
        n_features_in_: number of features.
        feature_names_in_: their names, where they are strings.

    >>> import gpntk, numpy as np
    >>> X = np.linspace(-1, 1, 5)[:, None]
    >>> model = gpntk.FiniteWidthRegressor(width=512, n_points=64).fit(X, np.sin(3 * X[:, 0]))
    >>> mean, std = model.predict([[0.1]], return_std=True)
    >>> mean.round(1).tolist()
    [0.3]
    """

    def __init__(
        self,
        network: MLP | None = None,
        width: float = 256,
        noise_variance: float = 1e-2,
        method: str = "closed_form",
        normalize_y: bool = False,
        n_points: int | None = None,
        num_warmup: int = 500,
        num_samples: int = 1000,
        num_chains: int = 1,
        random_state: Any = 0,
        progress: bool = False,
    ):
        self.network = network
        self.width = width
        self.noise_variance = noise_variance
        self.method = method
        self.normalize_y = normalize_y
        self.n_points = n_points
        self.num_warmup = num_warmup
        self.num_samples = num_samples
        self.num_chains = num_chains
        self.random_state = random_state
        self.progress = progress

    def fit(self, X: Any, y: Any) -> Self:
        """Compute the evidence, or run NUTS.

        Args:
            X: (n_samples, n_features).
            y: (n_samples,) or (n_samples, n_outputs).

        Raises:
            ValueError: for bad parameters or data, and where `width` is too small for the closed form.
        """
        _checks.option("method", self.method, ("closed_form", "mcmc"))
        _checks.real_number("width", self.width, minimum=1.0, infinite=True)
        _checks.real_number("noise_variance", self.noise_variance, minimum=0.0, strict=True)
        for name in ("normalize_y", "progress"):
            _checks.boolean(name, getattr(self, name))
        for name in ("num_warmup", "num_samples", "num_chains"):
            _checks.integer(name, getattr(self, name), minimum=1)
        X, y = validate_data(self, X, y, dtype="float64", multi_output=True, y_numeric=True)
        self.network_ = default_network() if self.network is None else self.network
        _checks.instance("network", self.network_, MLP, "a gpntk.MLP or None")
        y = _checks.real_array("y", y, float)
        self._y_mean, self._y_scale = location_and_scale(y, self.normalize_y)
        self._X, self._y = X, (y - self._y_mean) / self._y_scale
        # What predictions need is kept: `set_params` says what the next fit does.
        names = ("width", "noise_variance", "n_points")
        self._settings = {"net": self.network_, **{name: getattr(self, name) for name in names}}
        self._is_sampled = self.method == "mcmc"
        if not self._is_sampled:
            posterior = self._closed_form(None, return_cov=False)
            self.log_marginal_likelihood_ = posterior.log_marginal_likelihood
            self.evidence_slope_ = posterior.evidence_slope
        else:
            self._run()
        return self

    def predict(
        self, X: Any, return_std: bool = False, return_cov: bool = False
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Posterior mean of the outputs, and their spread (without noise).

        Args:
            X: (n_samples, n_features).
            return_std: also return standard deviations, of the shape of the mean.
            return_cov: also return covariances, (n_samples, n_samples), or (n_samples, n_samples, n_outputs,
                n_outputs), because the data correlate the outputs of a finite network.

        Returns:
            (n_samples,) or (n_samples, n_outputs), followed by the spread if asked for.
        """
        check_spread(return_std, return_cov)
        X = self._test_inputs(X)
        if not self._is_sampled:
            posterior = self._closed_form(X, return_cov=return_cov)
            mean, variance = np.asarray(posterior.mean), np.asarray(posterior.variance)
            covariance = np.asarray(posterior.cov)  # of None where it is not asked for
        else:
            mean, variance, covariance = self._sampled_moments(X, return_cov=return_cov)
        mean = mean * self._y_scale + self._y_mean
        if return_std:
            return mean, np.sqrt(variance) * self._y_scale
        if return_cov:
            return mean, covariance * np.multiply.outer(self._y_scale, self._y_scale)
        return mean

    def sample_y(self, X: Any, n_samples: int = 1, random_state: Any = 0) -> np.ndarray:
        """Outputs of networks from the posterior, jointly over the rows of X: Gaussian draws for the closed form.

        Returns:
            (n_rows, n_samples) or (n_rows, n_outputs, n_samples), as in scikit-learn's Gaussian processes.
        """
        n_samples = _checks.integer("n_samples", n_samples, minimum=1)
        rng = check_random_state(random_state)
        X = self._test_inputs(X)
        if not self._is_sampled:
            mean, covariance = self.predict(X, return_cov=True)
            order = (0, 1) if mean.ndim == 1 else (0, 2, 1, 3)
            covariance = covariance.transpose(order).reshape(mean.size, mean.size)
            eigenvalues, vectors = np.linalg.eigh(covariance)
            factor = vectors * np.sqrt(np.maximum(eigenvalues, 0.0))
            draws = mean.ravel() + rng.standard_normal((n_samples, mean.size)) @ factor.T
            return np.moveaxis(draws.reshape(n_samples, *mean.shape), 0, -1)
        chosen = rng.randint(len(self.samples_["kernel_modes"]), size=n_samples)
        samples = {name: values[chosen] for name, values in self.samples_.items()}
        draws = self._predictive(X, samples, rng)["f"]
        return np.moveaxis(draws * self._y_scale + self._y_mean, 0, -1)

    def _test_inputs(self, X):
        check_is_fitted(self)
        return validate_data(self, X, dtype="float64", reset=False)

    def _closed_form(self, X, *, return_cov) -> FiniteWidthPosterior:
        test = X if X is None or return_cov else padded(X)
        posterior = finite_width_posterior(
            X=self._X, y=self._y, X_test=test, return_cov=return_cov, **self._settings
        )
        if X is None:
            return posterior
        mean, variance = (np.asarray(values)[: len(X)] for values in (posterior.mean, posterior.variance))
        return dataclasses.replace(posterior, mean=mean, variance=variance)

    def _run(self):
        seed = check_random_state(self.random_state).randint(2**31 - 1)
        with jax.enable_x64(True):
            mcmc = MCMC(
                NUTS(models.finite_width_regression),
                num_warmup=self.num_warmup,
                num_samples=self.num_samples,
                num_chains=self.num_chains,
                chain_method="sequential",
                progress_bar=self.progress,
            )
            mcmc.run(jax.random.key(seed), self._X, self._y, **self._settings)
            self.samples_ = {"kernel_modes": np.asarray(mcmc.get_samples()["kernel_modes"])}
            self.n_divergences_ = int(mcmc.get_extra_fields()["diverging"].sum())

    def _predictive(self, X, samples, rng):
        with jax.enable_x64(True):
            predictive = Predictive(models.finite_width_regression, samples, batch_ndims=1)
            key = jax.random.key(rng.randint(2**31 - 1))
            sites = predictive(key, self._X, self._y, X, **self._settings)
            return {name: np.asarray(sites[name]) for name in ("f", "f_mean", "f_variance")}

    def _sampled_moments(self, X, *, return_cov):
        rows = len(X)
        sites = self._predictive(padded(X), self.samples_, np.random.RandomState(0))
        mean, variance = sites["f_mean"][:, :rows], sites["f_variance"][:, :rows]
        posterior = mean.mean(0), variance.mean(0) + mean.var(0)
        if not return_cov:
            return *posterior, None
        columns = [a.reshape(*a.shape[:2], -1) for a in (mean - posterior[0], np.sqrt(variance))]
        between = np.einsum("sxi,swj->xwij", columns[0], columns[0]) / len(mean)
        within = np.einsum("sxi,swi->xwi", columns[1], columns[1]) / len(mean)
        correlation = self._correlation(X)[:, :, None, None] * np.eye(columns[0].shape[2])
        covariance = between + within[:, :, :, None] * correlation
        return *posterior, covariance[:, :, 0, 0] if mean.ndim == 2 else covariance

    def _correlation(self, X):
        """Of the outputs within a draw: that of the Gaussian process given the training inputs."""
        limit = finite_width_posterior(
            self.network_,
            self._X,
            np.zeros(len(self._X)),
            X,
            width=np.inf,
            noise_variance=self._settings["noise_variance"],
            n_points=16,
        )
        covariance = np.asarray(limit.cov)
        deviation = np.sqrt(np.maximum(np.diagonal(covariance), 1e-30))
        return covariance / np.multiply.outer(deviation, deviation)
