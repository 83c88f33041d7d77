"""The regressor of finite width: the posterior it wraps, its draws, and both methods on scaled targets."""

import numpy as np
import pytest

import gpntk
from gpntk import FiniteWidthRegressor

RNG = np.random.default_rng(2)
X, X_TEST = RNG.normal(size=(5, 2)), RNG.normal(size=(3, 2))
Y = np.stack([np.sin(X[:, 0]), 10.0 + 5.0 * X[:, 1]], axis=1)
NET = gpntk.MLP(2, gpntk.Erf(), weight_variance=1.7, bias_variance=0.2)
MCMC = {"method": "mcmc", "num_warmup": 100, "num_samples": 400}


def test_closed_form_of_normalised_targets():
    model = FiniteWidthRegressor(NET, width=64, noise_variance=0.1, normalize_y=True, n_points=64).fit(X, Y)
    shift, scale = Y.mean(0), Y.std(0)
    posterior = gpntk.finite_width_posterior(
        NET, X, (Y - shift) / scale, X_TEST, width=64, noise_variance=0.1, n_points=64
    )
    mean, std = model.predict(X_TEST, return_std=True)
    np.testing.assert_allclose(mean, posterior.mean * scale + shift, rtol=1e-12)
    np.testing.assert_allclose(std, np.sqrt(posterior.variance) * scale, rtol=1e-12)
    covariance = model.predict(X_TEST, return_cov=True)[1]
    np.testing.assert_allclose(covariance, posterior.cov * np.outer(scale, scale), rtol=1e-10)


@pytest.mark.parametrize(
    ("method", "y"),
    [
        pytest.param({}, Y, id="closed form, two outputs"),
        pytest.param({}, Y[:, 0], id="closed form, one output"),
        pytest.param(MCMC, Y[:, 0], id="mcmc, one output", marks=pytest.mark.slow),
        pytest.param(MCMC, Y, id="mcmc, two outputs", marks=pytest.mark.slow),
    ],
)
def test_draws_have_the_predicted_moments(method, y):
    model = FiniteWidthRegressor(NET, width=64, noise_variance=0.1, normalize_y=True, n_points=64, **method)
    mean, covariance = model.fit(X, y).predict(X_TEST, return_cov=True)
    draws = model.sample_y(X_TEST, n_samples=4000, random_state=3)
    assert draws.shape == (*mean.shape, 4000)
    np.testing.assert_array_equal(draws, model.sample_y(X_TEST, n_samples=4000, random_state=3))
    flat = draws.reshape(-1, 4000)
    order = (0, 1) if y.ndim == 1 else (0, 2, 1, 3)
    covariance = covariance.transpose(order).reshape(len(flat), len(flat))
    variance = np.diag(covariance)
    assert np.all(np.abs(flat.mean(1) - mean.ravel()) < 4 * np.sqrt(variance / 4000))
    error = np.sqrt((np.outer(variance, variance) + covariance**2) / 4000)
    assert np.all(np.abs(np.cov(flat) - covariance) < 5 * error)


@pytest.mark.slow
def test_mcmc_at_infinite_width_is_the_gaussian_process():
    """Without fluctuations of the kernel every draw has the same conditional moments."""
    model = FiniteWidthRegressor(
        NET, width=np.inf, noise_variance=0.1, normalize_y=True, method="mcmc", num_warmup=10, num_samples=10
    ).fit(X, Y)
    shift, scale = Y.mean(0), Y.std(0)
    prior = np.asarray(gpntk.nngp_and_ntk(NET, np.concatenate([X, X_TEST]))[0], float)
    gain = prior[5:, :5] @ np.linalg.inv(prior[:5, :5] + 0.1 * np.eye(5))
    covariance = prior[5:, 5:] - gain @ prior[:5, 5:]
    mean, std = model.predict(X_TEST, return_std=True)
    np.testing.assert_allclose(mean, gain @ ((Y - shift) / scale) * scale + shift, atol=1e-5)
    np.testing.assert_allclose(std, np.sqrt(np.diagonal(covariance))[:, None] * scale, rtol=1e-5)
    joint = model.predict(X_TEST, return_cov=True)[1]
    expected = covariance[:, :, None, None] * np.diag(scale**2)
    np.testing.assert_allclose(joint, expected, atol=1e-5 * scale.max() ** 2)
    draws = model.sample_y(X_TEST, n_samples=2000, random_state=0)
    assert np.all(np.abs(draws.mean(-1) - mean) < 4 * std / 2000**0.5)


def test_constant_targets_have_unit_scale():
    """The mean of equal numbers may differ from them by rounding, which is no scale."""
    options = {"width": np.inf, "n_points": 16}
    constant = FiniteWidthRegressor(NET, normalize_y=True, **options).fit(X[:3], np.full(3, 0.1))
    mean, std = constant.predict(X, return_std=True)
    np.testing.assert_allclose(mean, 0.1)
    zeros = FiniteWidthRegressor(NET, **options).fit(X[:3], np.zeros(3))
    np.testing.assert_allclose(std, zeros.predict(X, return_std=True)[1])
