"""Regression with the quartic action itself."""

from typing import Any, cast

import jax.numpy as jnp
import numpy as np
import numpyro
from jax.typing import ArrayLike
from jaxtyping import Float
from numpyro.distributions import Distribution, Normal

from gpntk import _checks
from gpntk.finite_width._action import QuarticAction
from gpntk.finite_width._cumulants import cumulants
from gpntk.finite_width._posterior import checked_targets
from gpntk.models._setup import check_source, preparation, sample_noise
from gpntk.networks import MLP


def quartic_action_regression(
    X: Float[ArrayLike, "N D"],
    y: Float[ArrayLike, " N"] | Float[ArrayLike, "N q"] | None = None,
    X_test: Float[ArrayLike, "M D"] | None = None,
    *,
    net: MLP | None = None,
    width: float | None = None,
    action: QuarticAction | None = None,
    noise_variance: float | Distribution,
) -> None:
    """NumPyro model of regression by the quartic action inside its support, for few points, as a check.

    Outputs at training and test inputs are latent together, site `z`, (N + M, n_outputs), and predictions change
    with the test inputs at order 1/n^2. `finite_width_regression` samples the same (g, v) without these limits.

    Sites: `z`; `noise_variance` where it has a prior; `y` observed; `f`, the rows of `z` at test inputs.

    Args:
        X: training inputs.
        y: targets; `None` samples them from the prior.
        X_test: inputs of predictions.
        net: the architecture, with `width`. Its cumulants are computed at every trace: prefer `action`.
        width: width of the last hidden layer.
        action: the action of the rows of X followed by those of `X_test`.
        noise_variance: a positive number, or a NumPyro distribution of positive numbers.

    Raises:
        TypeError: for arguments of the wrong kind.
        ValueError: for bad inputs, and where the action refuses the width.
    """
    with preparation():
        x = np.asarray(_checks.inputs("X", X))
        x_test = x[:0] if X_test is None else np.asarray(_checks.inputs("X_test", X_test))
    columns = y is not None and np.ndim(_checks.as_array("y", y)) == 2
    if y is not None:
        with preparation():
            y = np.asarray(checked_targets(y, len(x)))
    outputs = 1 if y is None else y.shape[1]
    check_source(action, net, width)
    if action is None:
        with preparation():
            statistics: Any = cumulants(cast(MLP, net), np.concatenate([x, x_test]))
        action = QuarticAction.from_cumulants(statistics, cast(float, width), outputs)
    _checks.instance("action", action, QuarticAction, "a gpntk.QuarticAction")
    if action.event_shape[0] != len(x) + len(x_test):
        raise ValueError(
            f"`action` must describe the {len(x) + len(x_test)} rows of X and X_test, got one of "
            f"{action.event_shape[0]} inputs."
        )
    if y is not None and outputs != action.n_outputs:
        raise ValueError(f"`y` has {outputs} output(s), but `action` has {action.n_outputs}.")
    z = jnp.asarray(numpyro.sample("z", action))
    noise = sample_noise(noise_variance)
    numpyro.sample("y", Normal(z[: len(x)], jnp.sqrt(noise)).to_event(2), obs=y)
    if len(x_test):
        numpyro.deterministic("f", z[len(x) :] if columns else z[len(x) :, 0])
