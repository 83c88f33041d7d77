"""What a sampler of the random-kernel model converges to, by quasi-Monte Carlo over its latent coordinates."""

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.handlers import seed, substitute, trace
from scipy.special import ndtri
from scipy.stats import qmc

from gpntk import models


def integrated_posterior(X, y, X_test, *, draws=2**13, replicates=8, **arguments):
    """Posterior mean, variance and log evidence of `finite_width_regression`, with standard errors.

    Importance weights are the likelihoods of prior draws. Points come in pairs of opposite signs: what is odd in
    the coordinates, and so of order 1/sqrt(n), cancels.
    """

    def run(coordinates):
        model = substitute(seed(models.finite_width_regression, 0), {"kernel_modes": coordinates})
        sites = trace(model).get_trace(X, y, X_test, **arguments)
        likelihood = sites["y"]["fn"].log_prob(sites["y"]["value"])
        return likelihood, sites["f_mean"]["value"], sites["f_variance"]["value"]

    sites = trace(seed(models.finite_width_regression, 0)).get_trace(X, y, X_test, **arguments)
    dimension = len(sites["kernel_modes"]["value"])
    evaluate = jax.jit(lambda points: jax.lax.map(run, points, batch_size=256))
    results = []
    for replicate in range(replicates):
        uniform = qmc.Sobol(dimension, rng=np.random.default_rng(replicate)).random(draws)
        points = ndtri(np.clip(uniform, 1e-12, 1 - 1e-12))
        likelihood, mean, variance = map(np.asarray, evaluate(jnp.concatenate([points, -points])))
        weights = np.exp(likelihood - likelihood.max())
        log_evidence = likelihood.max() + np.log(weights.mean())
        weights /= weights.sum()
        first = np.tensordot(weights, mean, 1)
        results.append((first, np.tensordot(weights, variance + mean**2, 1) - first**2, log_evidence))
    stacked = [np.stack(values) for values in zip(*results, strict=True)]
    return [(a.mean(0), a.std(0, ddof=1) / replicates**0.5) for a in stacked]
