"""Classification with the random kernel of a network of finite width."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax.typing import ArrayLike
from jaxtyping import Float, Int
from numpyro.distributions import Categorical, Normal

from gpntk import _checks
from gpntk._products import matmul
from gpntk.finite_width._action import QuarticAction
from gpntk.models._setup import (
    RandomKernelSetup,
    half_exponential_times,
    posterior_rows,
    sample_exponent,
    sample_outputs,
)
from gpntk.networks import MLP


def finite_width_classification(
    X: Float[ArrayLike, "N D"],
    y: Int[ArrayLike, " N"] | None = None,
    X_test: Float[ArrayLike, "M D"] | None = None,
    *,
    net: MLP | None = None,
    width: float | None = None,
    action: QuarticAction | None = None,
    n_classes: int,
    nugget: float = 1e-2,
    retained: float = 0.999,
    most_modes: int = 512,
    n_points: int | None = None,
    seed: int = 0,
) -> None:
    r"""NumPyro model of classification with a Bayesian network of finite width, to order 1/n.

    Logits are the outputs of the network, one for each class, plus independent Gaussian noise of variance `nugget`
    (the metric in which the random kernel is kept positive definite); classes have the softmax of them. Latent are
    the modes of the random kernel, as in `finite_width_regression`, and standard normal coordinates of the logits
    given it, site `output_noise`, (N, n_classes).

    Sites at test inputs: `f`, the outputs, with `f_mean` and `f_variance`, and `probabilities`, the softmax of
    draws of the noisy outputs, (M, n_classes): their average over draws is the predictive probability.

    Args:
        X: training inputs.
        y: classes 0 to n_classes - 1; `None` samples them from the prior.
        X_test: inputs of predictions.
        net: the architecture, with `width`.
        width: width of the last hidden layer.
        action: a `QuarticAction` in their place, as in `finite_width_regression`.
        n_classes: number of classes, at least 2.
        nugget: variance of the noise of the logits, positive.
        retained: as in `finite_width_regression`.
        most_modes: as there.
        n_points: as there.
        seed: as there.

    Raises:
        TypeError: for arguments of the wrong kind.
        ValueError: for bad inputs and for classes out of range.
    """
    n_classes = _checks.integer("n_classes", n_classes, minimum=2)
    nugget = _checks.real_number("nugget", nugget, minimum=0.0, strict=True)
    setup = RandomKernelSetup(X, X_test, net, width, action, nugget, retained, most_modes, n_points, seed)
    if y is not None and not _checks.is_traced(y):
        classes = np.asarray(_checks.real_array("y", y))
        if classes.shape != (setup.n_train,) or not np.isin(classes, np.arange(n_classes)).all():
            raise ValueError(
                f"`y` must hold {setup.n_train} classes from 0 to {n_classes - 1}, got shape {classes.shape} with "
                f"values {np.unique(classes)[:10].tolist()}."
            )
        y = jnp.asarray(classes, int)
    whitened = setup.whitened()

    coordinates, exponent = sample_exponent(whitened)
    dtype = exponent.dtype
    shape = (setup.n_train, n_classes)
    latent = numpyro.sample("output_noise", Normal(jnp.zeros(shape, dtype), 1.0).to_event(2))
    moved = half_exponential_times(exponent, latent)
    logits = matmul(jnp.asarray(whitened.basis), jnp.asarray(whitened.roots)[:, None] * moved)
    with numpyro.plate("data", setup.n_train):
        likelihood: Any = Categorical(logits=logits)  # a function that chooses the class
        numpyro.sample("y", likelihood, obs=y)
    if X_test is None:
        return
    rows = setup.appended(None)
    mean, variance = posterior_rows(rows, coordinates, moved, None)
    sample_outputs(rows, mean, variance, True)
    noisy = numpyro.sample("logits", Normal(mean, jnp.sqrt(variance + nugget)).to_event(2))
    numpyro.deterministic("probabilities", jax.nn.softmax(noisy, axis=-1))
