"""Ensembles of trained finite networks against the mean and spread of gradient flow at infinite width."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gpntk

NET = gpntk.MLP(depth=2, activation=gpntk.Erf(), weight_variance=1.5, bias_variance=0.2)
RNG = np.random.default_rng(0)
X, X_TEST = RNG.normal(size=(3, 2)), RNG.normal(size=(6, 2))
# Four outputs that learn the same are as good as four networks, up to the order in 1/n that is extrapolated. How
# far the kernel moves in training grows with the sum of squares of the targets: with twice these ones, the order
# 1/n^2 of the mean is seen at the widths below.
Y = np.tile([[0.5], [-0.5], [0.75]], 4)
# Small steps: the largest eigenvalue of the NTK is 3.7, and the modes that are still moving at 100 are slow.
STEPS = {1.0: 100, 10.0: 200, 100.0: 1000}


def outputs(width, members, time):
    """Outputs (members, M, q) at the test inputs, trained for `time`."""
    steps, key = STEPS[time], jax.random.key(width)
    params, _ = gpntk.train_ensemble(NET, X, Y, key, members, optax.sgd(time / steps), steps, width=width)
    return np.asarray(jax.vmap(NET.apply, (0, None))(params, jnp.float32(X_TEST)), np.float64)


def moments(samples):
    """Mean (M,) over networks and outputs, variance averaged over test points; each with its standard error."""
    members = len(samples)
    squares = np.mean((samples - samples.mean(0)) ** 2, axis=(1, 2)) * members / (members - 1)
    return tuple((s.mean(0), s.std(0, ddof=1) / members**0.5) for s in (samples.mean(2), squares))


def extrapolated(narrow, wide):
    """2 E(2n) - E(n), free of the order 1/n, and its standard error."""
    return 2 * wide[0] - narrow[0], np.sqrt(4 * wide[1] ** 2 + narrow[1] ** 2)


def agrees(estimate, error, theory):
    return np.linalg.norm(estimate - theory) < 4 * np.linalg.norm(error)


@pytest.mark.slow
@pytest.mark.parametrize("time", STEPS)
def test_mean_and_variance_of_trained_ensembles(time):
    with jax.enable_x64(True):
        kernels = gpntk.NTK(NET), gpntk.NNGP(NET)
        flow = gpntk.GradientFlow(*kernels, X, Y)
        mean, variance = np.asarray(flow.mean(X_TEST, time))[:, 0], float(flow.variance(X_TEST, time).mean())
        # What finite steps do to the limit is far below the standard errors of 3%.
        descent = gpntk.GradientDescent(*kernels, X, Y, time / STEPS[time])
        np.testing.assert_allclose(descent.variance(X_TEST, STEPS[time]).mean(), variance, rtol=3e-3)
        difference = descent.mean(X_TEST, STEPS[time])[:, 0] - mean
        assert np.linalg.norm(difference) < 4e-3 * np.linalg.norm(mean)

    narrow, wide = moments(outputs(48, 1600, time)), moments(outputs(96, 3200, time))
    (means, mean_errors), (variances, variance_error) = (
        extrapolated(*pair) for pair in zip(narrow, wide, strict=True)
    )
    print(
        f"t = {time:g}, deviations in standard errors: mean "
        f"{np.linalg.norm(means - mean) / np.linalg.norm(mean_errors):.2f}, variance "
        f"{(variances - variance) / variance_error:+.2f} (of {variance_error / variance:.1%})"
    )
    assert variance_error < 0.03 * variance
    assert np.linalg.norm(mean_errors) < 0.03 * np.linalg.norm(mean)
    assert agrees(means, mean_errors, mean)
    assert agrees(variances, variance_error, variance)
    # The check can fail.
    assert not agrees(means, mean_errors, 1.15 * mean)
    assert not agrees(variances, variance_error, 1.15 * variance)
