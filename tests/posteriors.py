"""Small posteriors that importance sampling over networks resolves, for tests of the order 1/n."""

import functools

import jax
import numpy as np

import gpntk

RNG = np.random.default_rng(0)
X, X_TEST = RNG.normal(size=(4, 2)), RNG.normal(size=(3, 2))
Y = 1.5 * np.sin(X[:, 0])
ERF = gpntk.MLP(2, gpntk.Erf(), weight_variance=1.7, bias_variance=0.2)
RELU = gpntk.MLP(2, weight_variance=1.7, bias_variance=0.2)
PAIRS = np.stack([Y, np.cos(X[:, 1])], axis=1)
# Network, observations, noise.
SETTINGS = {
    "erf": (ERF, Y, 0.05),
    "relu": (RELU, Y, 0.05),
    "relu, three observations": (RELU, Y[:3], 0.1),
    "two outputs": (ERF, PAIRS, 0.05),
    "two outputs, larger": (ERF, 1.5 * PAIRS, 0.05),
}
FIELDS = ("mean", "variance", "log_marginal_likelihood")


@functools.cache
def closed_form(name, width):
    net, y, noise = SETTINGS[name]
    return gpntk.finite_width_posterior(
        net, X[: len(y)], y, X_TEST, width=width, noise_variance=noise, n_points=2**14, return_cov=False
    )


@functools.cache
def exact(name, width, n_samples):
    net, y, noise = SETTINGS[name]
    key = jax.random.key(width)
    return gpntk.sample_finite_width_posterior(
        net, X[: len(y)], y, X_TEST, width=width, noise_variance=noise, n_samples=n_samples, key=key
    )
