"""Hyperparameters of networks by their evidence."""

import numpy as np
import numpyro
from jax.typing import ArrayLike
from jaxtyping import Float
from numpyro.distributions import Distribution

from gpntk import _checks
from gpntk.finite_width._posterior import checked_targets, condition, finite_width_posterior
from gpntk.kernels import nngp_and_ntk
from gpntk.models._setup import sample_noise
from gpntk.networks import MLP


def evidence_regression(
    X: Float[ArrayLike, "N D"],
    y: Float[ArrayLike, " N"] | Float[ArrayLike, "N q"],
    *,
    net: MLP,
    width: float,
    noise_variance: float | Distribution,
    weight_variance: Distribution | None = None,
    bias_variance: Distribution | None = None,
    n_points: int = 256,
    seed: int = 0,
) -> None:
    """NumPyro model of the hyperparameters of a Bayesian network, its outputs and its kernel integrated out.

    The likelihood is the evidence of `gpntk.finite_width_posterior`, right to order 1/n and with exact gradients
    of what is computed, within `jax.enable_x64(True)`; `width=np.inf` is that of the Gaussian process, in the
    precision that is on. Values of the hyperparameters at which the expansion has no meaning, 1 + c/n <= 0, have
    no probability.

    Sites: `weight_variance`, `bias_variance`, `noise_variance` where they have a prior; the factor `evidence`.

    Args:
        X: training inputs.
        y: targets.
        net: the architecture.
        width: width of the last hidden layer.
        noise_variance: a positive number, or its prior.
        weight_variance: the prior of the weight variance; `None` keeps that of `net`.
        bias_variance: likewise.
        n_points: quasi-Monte Carlo points of the moments. A quarter of the points of `finite_width_posterior` or
            fewer keep a sampler fast; errors of c are divided by the width.
        seed: of those points.

    Raises:
        TypeError: for arguments of the wrong kind.
        ValueError: for bad inputs.
    """
    _checks.instance("net", net, MLP, "a gpntk.MLP")
    priors = {"weight_variance": weight_variance, "bias_variance": bias_variance}
    for name, prior in priors.items():
        if prior is not None:
            _checks.instance(name, prior, Distribution, "a NumPyro distribution or None")
    changes = {name: numpyro.sample(name, prior) for name, prior in priors.items() if prior is not None}
    noise = sample_noise(noise_variance)
    net = net.replace(**changes)
    if _checks.real_number("width", width, minimum=1.0, infinite=True) == np.inf:
        x = _checks.inputs("X", X, net.n_features)
        kernel, _ = nngp_and_ntk(net, x)
        evidence = condition(kernel, checked_targets(y, len(x)), noise).log_evidence
    else:
        evidence = finite_width_posterior(
            net, X, y, width=width, noise_variance=noise, n_points=n_points, seed=seed
        ).log_marginal_likelihood
    numpyro.factor("evidence", evidence)
