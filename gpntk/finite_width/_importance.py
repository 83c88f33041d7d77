"""The exact posterior of Bayesian networks of finite width, by importance sampling over networks."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, PRNGKeyArray
from tqdm import tqdm

from gpntk import _checks
from gpntk.finite_width._fluctuations import (
    FactorBatch,
    RandomKernel,
    correlation_factor,
    first_order,
    random_kernel,
)
from gpntk.finite_width._posterior import checked_targets, condition
from gpntk.finite_width._schedule import Schedule
from gpntk.networks import MLP

_GROUPS = 64
_NUMBERS_AT_ONCE = 2**22


@dataclasses.dataclass(frozen=True)
class SampledPosterior:
    """Monte Carlo counterparts of the fields of `FiniteWidthPosterior`, each with its standard error `*_se`."""

    width: int
    n_samples: int
    mean: Float[np.ndarray, " M"] | Float[np.ndarray, "M q"]
    variance: Float[np.ndarray, " M"] | Float[np.ndarray, "M q"]
    log_marginal_likelihood: float
    mean_se: Float[np.ndarray, " M"] | Float[np.ndarray, "M q"]
    variance_se: Float[np.ndarray, " M"] | Float[np.ndarray, "M q"]
    log_marginal_likelihood_se: float
    effective_sample_size: float
    """Of the importance weights: (sum w)^2 / sum w^2. Distrust results where it is small."""


def sample_finite_width_posterior(
    net: MLP,
    X: Float[ArrayLike, "N D"],
    y: Float[ArrayLike, " N"] | Float[ArrayLike, "N q"],
    X_test: Float[ArrayLike, "M D"],
    *,
    width: int,
    noise_variance: float,
    n_samples: int,
    key: PRNGKeyArray,
    progress: bool = False,
) -> SampledPosterior:
    r"""Posterior of a Bayesian network of finite width, exact up to a sampling error, for few observations.

    Given its hidden weights a network is a Gaussian process with the kernel G of `readout_kernels`, so that its
    posterior given those weights and its evidence $w = N(y; 0, G + s^2)$ are exact. Networks are drawn from the
    prior and weighted by w. Neither their weights nor their inputs are needed: given one layer, the preactivations
    of each neuron of the next at the inputs at hand are Gaussian, and are drawn as such.

    The fluctuations of G to first order, which have no mean at any width, are subtracted from every average (as a
    control variate); errors of n (result - Gaussian process) then do not grow with n. Networks come in 64 groups,
    whose jackknife gives the standard errors.

    Args:
        net: the architecture.
        X: inputs, one per row.
        y: targets, (N,) or (N, q).
        X_test: inputs of predictions.
        width: width of the last hidden layer.
        noise_variance: variance of the noise, positive.
        n_samples: number of networks, at least 256; rounded up to a multiple of 64.
        key: JAX random key.
        progress: whether to show a progress bar.

    Raises:
        TypeError: if `net` is not an MLP.
        ValueError: for bad inputs or parameters.
    """
    _checks.instance("net", net, MLP, "a gpntk.MLP")
    _checks.key("key", key)
    _checks.boolean("progress", progress)
    width = _checks.integer("width", width, minimum=1)
    noise_variance = _checks.real_number("noise_variance", noise_variance, minimum=0.0, strict=True)
    per_group = -(-_checks.integer("n_samples", n_samples, minimum=4 * _GROUPS) // _GROUPS)
    with jax.enable_x64(True):
        x = jnp.asarray(_checks.inputs("X", X, net.n_features), jnp.float64)
        x_test = jnp.asarray(_checks.inputs("X_test", X_test, net.n_features), jnp.float64)
        _checks.equal_columns(X=x, X_test=x_test)
        targets = checked_targets(y, len(x))
        random = random_kernel(net, jnp.concatenate([x, x_test]))
        widths = net.hidden_widths(width)
        at_once = max(1, min(per_group, _NUMBERS_AT_ONCE // (max(widths) * len(random.x))))
        groups = []
        for group_key in tqdm(jax.random.split(key, _GROUPS), disable=not progress, desc="networks", unit="group"):
            keys = jax.random.split(group_key, per_group)
            groups.append(jax.tree.map(np.asarray, _group(random, targets, noise_variance, keys, widths, at_once)))
        base = float(condition(random.kernel, targets, noise_variance).log_evidence)
    sums = [np.stack(leaf) for leaf in zip(*groups, strict=True)]
    if not all(np.isfinite(s).all() for s in sums):
        raise ValueError(
            "The weights of the networks overflow: the targets `y` are next to impossible for the Gaussian "
            f"process of infinite width (log evidence {base:.4g}), beside which they are weighted. Scale the "
            "targets, or raise `noise_variance`."
        )
    # Leaving out one group at a time: the jackknife.
    left_out = [_results([(s.sum(0) - s[i]) / (_GROUPS - 1) for s in sums[:3]], base) for i in range(_GROUPS)]
    results = _results([s.mean(0) for s in sums[:3]], base)
    errors = [((_GROUPS - 1) * np.var(np.stack(values), axis=0)) ** 0.5 for values in zip(*left_out, strict=True)]
    if np.ndim(y) == 1:
        results, errors = ([a[:, 0] if np.ndim(a) == 2 else a for a in values] for values in (results, errors))
    weight, square = sums[3].sum(), sums[4].sum()
    (mean, variance, evidence), (mean_se, variance_se, evidence_se) = results, errors
    return SampledPosterior(
        width,
        per_group * _GROUPS,
        mean,
        variance,
        float(evidence),
        mean_se,
        variance_se,
        float(evidence_se),
        float(weight**2 / square),
    )


def _results(averages, base):
    """Posterior mean, variance and log evidence from the averages of w, w m and w (m^2 + C)."""
    evidence, first, second = averages
    mean = first / evidence
    return mean, second / evidence - mean**2, base + np.log(evidence)


@functools.partial(jax.jit, static_argnames=("widths", "at_once"))
def _group(random: RandomKernel, y, noise_variance, keys, widths, at_once):
    """Averages of w, w m and w (m^2 + C), relative to the evidence at infinite width, and sums of w and w^2."""
    base = condition(random.kernel, y, noise_variance).log_evidence

    def weighted(kernel):
        gp = condition(kernel, y, noise_variance)
        weight = jnp.exp(gp.log_evidence - base)
        return weight, weight * gp.mean, weight * (gp.mean**2 + gp.variance[:, None])

    def one(key):
        kernel, linear = _draw(random, widths, key)
        values = weighted(kernel)
        _, slopes = jax.jvp(weighted, (random.kernel,), (linear,))
        return (*(v - s for v, s in zip(values, slopes, strict=True)), values[0])

    evidence, first, second, weights = jax.lax.map(one, keys, batch_size=at_once)
    return evidence.mean(0), first.mean(0), second.mean(0), weights.sum(), jnp.sum(weights**2)


def _draw(random: RandomKernel, widths, key):
    """The readout kernel of one network, and the part of it that is linear in the fluctuations and has no mean."""
    net, _, layers, infinite = random
    weight, (_, *biases), _ = Schedule.of(net, infinite.dtype)
    kernel, linear = layers[0].kernel, jnp.zeros_like(infinite)
    for layer, width, next_bias, layer_key in zip(
        layers, widths, biases, jax.random.split(key, net.depth), strict=True
    ):
        deviations, factor = correlation_factor(kernel)
        normals = jax.random.normal(layer_key, (len(kernel), width), kernel.dtype)
        values = net.activation(deviations[:, None] * (factor @ normals))
        variance = jnp.diagonal(kernel)
        expected = net.activation.dual(kernel, variance[:, None], variance[None, :])
        average = values @ values.T / width
        moved = first_order(layer.dual, FactorBatch(linear[None], jnp.diagonal(linear)[None])).block[0]
        linear = weight * (moved + average - expected)
        kernel = next_bias + weight * average
    return kernel, linear
