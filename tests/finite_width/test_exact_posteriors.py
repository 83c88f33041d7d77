"""The order 1/n of the posterior against exact posteriors of networks, by importance sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import multivariate_normal
from posteriors import ERF, FIELDS, SETTINGS, X_TEST, X, Y, closed_form, exact

import gpntk


def analytic_coefficients(name):
    """At a width where the next order is below rounding."""
    far, limit = closed_form(name, 1e8), closed_form(name, np.inf)
    return {f: 1e8 * (np.asarray(getattr(far, f)) - getattr(limit, f)) for f in FIELDS}, limit


def extrapolate(widths, values, errors, degree):
    """Least squares in 1/n, weighted: the value at 1/n = 0 and its standard error."""
    design = (1.0 / np.array(widths))[:, None] ** np.arange(degree + 1)
    flat, spread = (np.stack([np.ravel(v) for v in a]) for a in (values, errors))
    results = []
    for column in range(flat.shape[1]):
        weighted = design / spread[:, column, None]
        covariance = np.linalg.inv(weighted.T @ weighted)
        solution = covariance @ weighted.T @ (flat[:, column] / spread[:, column])
        results.append((solution[0], covariance[0, 0] ** 0.5))
    return np.array(results).T


def check_coefficients(name, widths, n_samples, degree, planted=0.0):
    coefficients, limit = analytic_coefficients(name)
    samples = [exact(name, n, n_samples) for n in widths]
    for field in FIELDS:
        scaled = [
            n * (np.asarray(getattr(s, field)) - getattr(limit, field))
            for n, s in zip(widths, samples, strict=True)
        ]
        errors = [n * np.asarray(getattr(s, f"{field}_se")) for n, s in zip(widths, samples, strict=True)]
        estimate, error = extrapolate(widths, scaled, errors, degree)
        expected = np.ravel(coefficients[field]) * (1.0 + planted)
        assert np.linalg.norm(error) < 0.15 * np.linalg.norm(expected), field
        assert np.all(np.abs(estimate - expected) < 4 * error), (field, (estimate - expected) / error)


def test_coefficient_of_one_over_n():
    check_coefficients("erf", (64, 128), 16_384, 1)


def test_the_check_can_fail():
    with pytest.raises(AssertionError, match=r"mean|variance|log"):
        check_coefficients("erf", (64, 128), 16_384, 1, planted=0.5)


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_coefficient_of_one_over_n_in_all_settings(name):
    # The coefficient of the evidence of two outputs is nearly zero, and takes more networks to resolve.
    check_coefficients(name, (32, 64, 128, 256), 2**17 if name == "two outputs" else 2**16, 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_error_at_width_64(name):
    """Of the closed form, at most a third of the Gaussian process's for moments, a tenth for the evidence."""
    truth, closed, limit = exact(name, 64, 2**18), closed_form(name, 64), closed_form(name, np.inf)
    for field, share in zip(FIELDS, (1 / 3, 1 / 3, 1 / 10), strict=True):
        if field == "log_marginal_likelihood" and abs(limit.evidence_slope) < 1:
            continue  # the Gaussian process is right by accident: c is a difference of larger numbers
        errors = [np.linalg.norm(np.asarray(getattr(p, field)) - getattr(truth, field)) for p in (closed, limit)]
        sampling = np.linalg.norm(getattr(truth, f"{field}_se"))
        assert errors[0] + 2 * sampling < share * errors[1], field


@pytest.mark.slow
def test_importance_sampling_draws_networks(x64):
    """Gaussian draws layer by layer against networks with weights: the evidence of their readout kernels."""
    net, y, noise = SETTINGS["erf"]
    width, members = 8, 40_000
    sampled = exact("erf", width, members)

    def likelihood(key):
        hidden = net.hidden(net.init(key, 2, width), jnp.asarray(X))
        kernel = 0.2 + 1.7 * hidden @ hidden.T / width
        return jnp.exp(multivariate_normal.logpdf(y, jnp.zeros(4), kernel + noise * jnp.eye(4)))

    values = np.asarray(jax.lax.map(likelihood, jax.random.split(jax.random.key(5), members), batch_size=1000))
    error = np.hypot(values.std() / members**0.5 / values.mean(), sampled.log_marginal_likelihood_se)
    assert abs(np.log(values.mean()) - sampled.log_marginal_likelihood) < 4 * error
    assert error < 0.02


def test_a_zero_input_has_zero_outputs():
    sampled = gpntk.sample_finite_width_posterior(
        gpntk.MLP(2), np.concatenate([X, 0 * X[:1]]), np.append(Y, 0.1), 0 * X[:1],
        width=8, noise_variance=0.1, n_samples=256, key=jax.random.key(0),
    )  # fmt: skip
    assert (sampled.mean.item(), sampled.variance.item()) == (0.0, 0.0)


def test_bad_input():
    arguments = {"width": 8, "noise_variance": 0.1, "n_samples": 256, "key": jax.random.key(0)}
    with pytest.raises(ValueError, match="`n_samples` must be an integer >= 256, got 10"):
        gpntk.sample_finite_width_posterior(ERF, X, Y, X_TEST, **arguments | {"n_samples": 10})
    with pytest.raises(ValueError, match="`width` must be an integer >= 1, got 0"):
        gpntk.sample_finite_width_posterior(ERF, X, Y, X_TEST, **arguments | {"width": 0})
    with pytest.raises(ValueError, match=r"`y` must have shape \(4,\)"):
        gpntk.sample_finite_width_posterior(ERF, X, Y[:2], X_TEST, **arguments)
    with pytest.raises(ValueError, match="weights of the networks overflow"):
        gpntk.sample_finite_width_posterior(ERF, X, 300.0 * Y, X_TEST, **arguments)
