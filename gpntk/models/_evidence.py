"""Hyperparameters of networks by their evidence."""

import numpyro
from jaxtyping import Array, Float
from numpyro.distributions import Distribution

from gpntk import _checks
from gpntk.finite_width._posterior import finite_width_posterior
from gpntk.networks import MLP


def evidence_regression(
    X: Float[Array, "N D"],
    y: Float[Array, " N"] | Float[Array, "N q"],
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
    of what is computed; `width=np.inf` is the evidence of the Gaussian process. Values of the hyperparameters at
    which the expansion has no meaning, 1 + c/n <= 0, have no probability.

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
    if isinstance(noise_variance, Distribution):
        noise_variance = numpyro.sample("noise_variance", noise_variance)
    posterior = finite_width_posterior(
        net.replace(**changes), X, y, width=width, noise_variance=noise_variance, n_points=n_points, seed=seed
    )
    numpyro.factor("evidence", posterior.log_marginal_likelihood)
