"""The NumPyro models: their limits, agreement with the closed form, independence of test inputs, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from integrated import integrated_posterior
from numpyro.diagnostics import split_gelman_rubin
from numpyro.handlers import seed, substitute, trace
from numpyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal
from numpyro.infer.util import log_density

import gpntk
from gpntk import QuarticAction, models
from gpntk.finite_width._whitened import exponential

RNG = np.random.default_rng(0)
X, X_TEST = RNG.normal(size=(4, 2)), RNG.normal(size=(3, 2))
Y = 1.5 * np.sin(X[:, 0])
OUTPUTS = 1.5 * np.stack([Y, np.cos(X[:, 1])], axis=1)
NET = gpntk.MLP(2, gpntk.Erf(), weight_variance=1.7, bias_variance=0.2)
NOISE = 0.05
REGRESSION = {"net": NET, "noise_variance": NOISE, "n_points": 1024}


def run(model, *arguments, warmup=200, samples=400, **options):
    mcmc = MCMC(NUTS(model), num_warmup=warmup, num_samples=samples, progress_bar=False)
    mcmc.run(jax.random.key(0), *arguments, **options)
    assert not mcmc.get_extra_fields()["diverging"].any()
    return mcmc.get_samples()


def test_exponential(x64):
    matrix = RNG.normal(size=(5, 5))
    matrix = 3.0 * (matrix + matrix.T) / np.linalg.norm(matrix + matrix.T, 2)
    columns = RNG.normal(size=(5, 2))
    np.testing.assert_allclose(
        exponential(jnp.asarray(matrix), jnp.asarray(columns)), jax.scipy.linalg.expm(matrix) @ columns, rtol=1e-12
    )


@pytest.mark.parametrize(
    ("y", "retained"),
    [
        pytest.param(Y, 0.9, id="one output, a tenth not sampled"),
        pytest.param(Y, 0.9999, id="one output", marks=pytest.mark.slow),
        pytest.param(OUTPUTS, 0.9, id="two outputs, a tenth not sampled", marks=pytest.mark.slow),
        pytest.param(OUTPUTS, 0.9999, id="two outputs", marks=pytest.mark.slow),
    ],
)
def test_agrees_with_the_closed_form_to_order_one_over_n(x64, y, retained):
    """Their difference falls as n^-2; modes that are not sampled enter to first order."""
    differences, errors, corrections = [], [], []
    limit = gpntk.finite_width_posterior(NET, X, y, X_TEST, width=np.inf, noise_variance=NOISE, return_cov=False)
    for width in (64, 128, 256):
        closed = gpntk.finite_width_posterior(
            NET, X, y, X_TEST, width=width, noise_variance=NOISE, n_points=1024, return_cov=False
        )
        model = integrated_posterior(
            X, y, X_TEST, **REGRESSION, width=width, retained=retained, draws=4096 * y.ndim, replicates=4
        )
        moves = [model[0][0] - closed.mean, model[1][0] - closed.variance]
        differences.append([np.linalg.norm(move) for move in moves])
        # Of the norms: errors of the components along the difference.
        errors.append([np.linalg.norm(m * e) / np.linalg.norm(m) for m, (_, e) in zip(moves, model, strict=False)])
        corrections.append(width * np.linalg.norm(closed.mean - limit.mean))
    differences, errors = np.array(differences), np.array(errors)
    # The exponent from width to width is 2 + O(1/n), and extrapolated from two steps 2 + O(1/n^2), by about the
    # square of what the steps differ by. Standard errors of logarithms are relative ones.
    steps, relative = np.log2(differences[:-1] / differences[1:]), errors / differences / np.log(2.0)
    exponent = 2.0 * steps[1] - steps[0]
    error = np.sqrt(4.0 * relative[2] ** 2 + 9.0 * relative[1] ** 2 + relative[0] ** 2)
    tolerance = 4.0 * error + (steps[1] - steps[0]) ** 2
    print(f"exponents of mean and variance: {exponent}, standard errors {error}")
    assert np.all(np.abs(exponent - 2.0) < tolerance), (exponent, tolerance)
    assert np.all(tolerance < 1.0)  # orders 1/n and 1/n^3 would be seen
    assert min(corrections) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("width", [8, 32])
def test_chains_agree(x64, width):
    """In the data of the example, two chains as NumPyro has them by default."""
    x = np.array([-1.8, -1.1, -0.2, 0.7, 1.9])[:, None]
    y = np.array([-0.6, -1.0, 0.1, 1.1, 0.3])
    net = gpntk.MLP(2, gpntk.Erf(), weight_variance=2.0, bias_variance=0.3)
    mcmc = MCMC(
        NUTS(models.finite_width_regression),
        num_warmup=500,
        num_samples=2000,
        num_chains=2,
        chain_method="sequential",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(0), x, y, net=net, width=width, noise_variance=0.02)
    assert not mcmc.get_extra_fields()["diverging"].any()
    assert np.max(split_gelman_rubin(mcmc.get_samples(group_by_chain=True)["kernel_modes"])) < 1.01


@pytest.mark.slow
def test_draws_are_those_of_the_integrated_model(x64):
    options = {**REGRESSION, "width": 64}
    samples = run(models.finite_width_regression, X, Y, samples=2000, **options)
    draws = Predictive(models.finite_width_regression, samples)(jax.random.key(1), X, Y, X_TEST, **options)
    mean, variance, _ = integrated_posterior(X, Y, X_TEST, **options, draws=1024, replicates=4)
    f_mean, f_variance = np.asarray(draws["f_mean"]), np.asarray(draws["f_variance"])
    # NUTS draws of nearly Gaussian coordinates are at least as good as half as many independent ones.
    assert np.all(np.abs(f_mean.mean(0) - mean[0]) < 4 * f_mean.std(0) / 1000**0.5)
    second = f_variance + f_mean**2
    assert np.all(np.abs(second.mean(0) - variance[0] - mean[0] ** 2) < 4 * second.std(0) / 1000**0.5)
    f = np.asarray(draws["f"])
    assert np.all(np.abs(f.mean(0) - mean[0]) < 4 * (variance[0] / 2000) ** 0.5)
    np.testing.assert_allclose(f.var(0), variance[0], rtol=4 * (2 / 2000) ** 0.5)


@pytest.mark.parametrize("noise_variance", [NOISE, dist.Uniform(0.02, 0.3)], ids=["fixed", "prior"])
def test_predictions_do_not_depend_on_which_others_are_asked_for(x64, noise_variance):
    options = {**REGRESSION, "noise_variance": noise_variance, "width": 64, "n_points": 64}
    others = np.concatenate([X_TEST, RNG.normal(size=(20, 2))])
    model = models.finite_width_regression
    samples = Predictive(model, num_samples=5)(jax.random.key(0), X, Y, **options)
    del samples["y"]
    key = jax.random.key(1)
    alone, together = (Predictive(model, samples)(key, X, Y, test, **options) for test in (X_TEST[:1], others))
    for name in ("f_mean", "f_variance", "f"):
        np.testing.assert_allclose(alone[name], together[name][:, :1], rtol=0, atol=1e-10)
    reordered = Predictive(model, samples)(key, X, Y, others[::-1], **options)
    for name in ("f_mean", "f_variance"):
        np.testing.assert_allclose(reordered[name][:, ::-1], together[name], rtol=0, atol=1e-10)


def test_chains_side_by_side_and_traced_targets():
    """Several chains at once, in single precision; densities for targets that are traced."""
    options = {**REGRESSION, "width": 64, "n_points": 64}
    model = models.finite_width_regression
    mcmc = MCMC(
        NUTS(model), num_warmup=100, num_samples=100, num_chains=2, chain_method="vectorized", progress_bar=False
    )
    mcmc.run(jax.random.key(0), X, Y, **options)
    samples = mcmc.get_samples(group_by_chain=True)
    assert samples["kernel_modes"].shape == (2, 100, 10)
    # A zero input is an output of zero, also where the noise leaves no room for it in single precision.
    draws = Predictive(model, samples, batch_ndims=2)(jax.random.key(1), X, Y, X_TEST, **options)
    assert draws["f"].shape == (2, 100, 3)
    coordinates = samples["kernel_modes"][0, 0]
    density = lambda y: log_density(model, (X, y), options, {"kernel_modes": coordinates})[0]  # noqa: E731
    assert float(jax.jit(density)(Y)) == pytest.approx(float(density(Y)), rel=1e-5)


def test_zero_inputs_and_duplicates_in_single_precision():
    options = {"net": gpntk.MLP(2), "width": 64, "noise_variance": NOISE, "n_points": 64}
    test = np.concatenate([0 * X[:1], X[:1], X[:1]])
    draws = Predictive(models.finite_width_regression, num_samples=3)(
        jax.random.key(0), np.concatenate([0 * X[:1], X]), np.append(0.0, Y), test, **options
    )
    assert np.all(draws["f"][:, 0] == 0.0)
    np.testing.assert_allclose(draws["f"][:, 1], draws["f"][:, 2], atol=1e-3)


def test_infinite_width_is_the_gaussian_process(x64):
    options = {**REGRESSION, "width": np.inf}
    limit = gpntk.finite_width_posterior(NET, X, OUTPUTS, X_TEST, width=np.inf, noise_variance=NOISE)
    draws = Predictive(models.finite_width_regression, num_samples=2)(
        jax.random.key(0), X, OUTPUTS, X_TEST, **options
    )
    for draw in range(2):
        np.testing.assert_allclose(draws["f_mean"][draw], limit.mean, rtol=0, atol=1e-10)
        np.testing.assert_allclose(draws["f_variance"][draw], limit.variance, rtol=0, atol=1e-10)
    sites = trace(seed(models.finite_width_regression, 0)).get_trace(X, OUTPUTS, **options)
    evidence = sites["y"]["fn"].log_prob(sites["y"]["value"])
    assert float(evidence) == pytest.approx(limit.log_marginal_likelihood, abs=1e-10)


@pytest.mark.slow
def test_excess_noise_against_the_explicit_kernel(x64):
    """With noise above the floor: the same kernel, conditioned as a Gaussian process."""
    options = {**REGRESSION, "noise_variance": dist.Uniform(0.02, 0.3), "width": 32, "retained": 0.99999}
    values = {"kernel_modes": None, "noise_variance": jnp.asarray(0.17)}
    model = models.finite_width_regression
    start = trace(seed(model, 3)).get_trace(X, Y, **options)
    values["kernel_modes"] = start["kernel_modes"]["value"]
    sites = trace(seed(substitute(model, values), 0)).get_trace(X, Y, X, **options)
    likelihood = sites["y"]["fn"]
    draws = np.asarray(likelihood.sample(jax.random.key(0), (200_000,)))
    covariance = draws.T @ draws / len(draws)
    gaussian = dist.MultivariateNormal(covariance_matrix=covariance)
    assert float(likelihood.log_prob(Y)) == pytest.approx(float(gaussian.log_prob(Y)), abs=0.05)
    # At the training inputs, up to what the extra row does not share with the training row at this order.
    kernel = covariance - 0.17 * np.eye(4)
    expected = kernel @ np.linalg.solve(covariance, Y)
    np.testing.assert_allclose(sites["f_mean"]["value"], expected, atol=0.05 * np.abs(Y).max())


@pytest.mark.slow
def test_the_action_gives_the_same_model(x64):
    """To order 1/n: in units of the correction, what it differs by from the closed form falls as 1/n.

    It raises and lowers the indices of V at all inputs, training and test, whose kernel is closer to singular than
    with noise: widths must be larger.
    """
    c = gpntk.cumulants(NET, np.concatenate([X, X_TEST]))
    options = {"noise_variance": NOISE, "draws": 4096, "replicates": 2}
    limit = gpntk.finite_width_posterior(NET, X, Y, X_TEST, width=np.inf, noise_variance=NOISE)
    shares = []
    for width in (2000, 8000):
        closed = gpntk.finite_width_posterior(
            NET, X, Y, X_TEST, width=width, noise_variance=NOISE, n_points=2**14, return_cov=False
        )
        model = integrated_posterior(X, Y, X_TEST, action=QuarticAction.from_cumulants(c, width), **options)
        shares.append(
            [
                np.linalg.norm(value - getattr(closed, field))
                / np.linalg.norm(limit_value - getattr(closed, field))
                for field, (value, _), limit_value in zip(
                    ("mean", "variance"), model, (limit.mean, limit.variance), strict=False
                )
            ]
        )
    np.testing.assert_allclose(np.divide(*shares), 4.0, rtol=0.15)
    assert np.max(shares[1]) < 0.1


@pytest.mark.slow
def test_quartic_action_regression(x64):
    """Within its support the action has the same posterior to order 1/n."""
    c = gpntk.cumulants(NET, np.concatenate([X[:2], X_TEST[:1]]))
    action = QuarticAction.from_cumulants(c, 100)
    samples = run(
        models.quartic_action_regression,
        X[:2],
        Y[:2],
        X_TEST[:1],
        action=action,
        noise_variance=NOISE,
        samples=4000,
    )
    closed = gpntk.finite_width_posterior(NET, X[:2], Y[:2], X_TEST[:1], width=100, noise_variance=NOISE)
    f = np.asarray(samples["f"][:, 0])
    assert abs(f.mean() - closed.mean[0]) < 4 * f.std() / 1000**0.5
    assert f.var() == pytest.approx(closed.variance[0], rel=4 * (2 / 1000) ** 0.5)


def test_supports_of_priors_of_the_noise():
    """Their lower bound is the metric, also where it is computed while NumPyro traces the model."""
    shift = dist.transforms.AffineTransform(0.02, 1.0, domain=dist.constraints.positive)
    prior = dist.TransformedDistribution(dist.LogNormal(-3.0, 1.0), shift)
    options = {**REGRESSION, "width": 64, "n_points": 64}
    density = lambda c, s, p: log_density(  # noqa: E731
        models.finite_width_regression,
        (X, Y),
        {**options, "noise_variance": p},
        {"kernel_modes": c, "noise_variance": s},
    )[0]
    coordinates = 0.1 * jnp.arange(10.0)
    shifted = jax.jit(lambda c, s: density(c, s, prior))(coordinates, 0.1) - prior.log_prob(0.1)
    uniform = dist.Uniform(0.02, 0.3)
    expected = density(coordinates, 0.1, uniform) - uniform.log_prob(0.1)
    assert float(shifted) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.slow
def test_variational_inference_and_priors_of_the_noise(x64):
    options = {**REGRESSION, "noise_variance": dist.Uniform(0.02, 0.3), "width": 64, "n_points": 64}
    guide = AutoNormal(models.finite_width_regression)
    svi = SVI(models.finite_width_regression, guide, optim=optax.adam(0.01), loss=Trace_ELBO())
    result = svi.run(jax.random.key(0), 200, X, OUTPUTS, progress_bar=False, **options)
    assert result.losses[-50:].mean() < result.losses[:50].mean()
    predictive = Predictive(models.finite_width_regression, guide=guide, params=result.params, num_samples=10)
    draws = predictive(jax.random.key(1), X, OUTPUTS, X_TEST, **options)
    assert draws["f"].shape == (10, 3, 2)
    prior = Predictive(models.finite_width_regression, num_samples=10)(
        jax.random.key(1), X, n_outputs=2, **options
    )
    assert prior["y"].shape == (10, 4, 2)
    assert np.all((prior["noise_variance"] > 0.02) & (prior["noise_variance"] < 0.3))


@pytest.mark.slow
def test_classification_at_infinite_width(x64):
    """Against importance sampling of the logits of the Gaussian process."""
    x, classes, test = X[:3], np.array([0, 1, 1]), X_TEST[:1]
    options = {"net": NET.replace(weight_variance=4.0), "n_classes": 2, "n_points": 64, "nugget": 0.05}
    samples = run(models.finite_width_classification, x, classes, width=np.inf, samples=2000, **options)
    draws = Predictive(models.finite_width_classification, samples)(
        jax.random.key(1), x, classes, test, width=np.inf, **options
    )
    probabilities = np.asarray(draws["probabilities"])[:, 0]
    np.testing.assert_allclose(probabilities.sum(1), 1.0)
    kernel = gpntk.nngp_and_ntk(options["net"], np.concatenate([x, test]))[0] + 0.05 * np.eye(4)
    logits = np.linalg.cholesky(kernel) @ np.random.default_rng(0).normal(size=(200_000, 4, 2))
    softmax = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    weights = softmax[:, 0, 0] * softmax[:, 1, 1] * softmax[:, 2, 1]
    expected = weights @ softmax[:, 3] / weights.sum()
    error = probabilities.std(0) / 1000**0.5 + 1e-3
    assert np.all(np.abs(probabilities.mean(0) - expected) < 4 * error)


@pytest.mark.slow
def test_classification_at_finite_width(x64):
    """Outputs at a training input are those of the training row, but for the noise of the logits."""
    options = {
        "net": NET.replace(weight_variance=4.0),
        "width": 64,
        "n_classes": 3,
        "n_points": 64,
        "nugget": 1e-3,
    }
    classes = np.array([0, 1, 2, 1])
    samples = run(models.finite_width_classification, X, classes, **options)
    draws = Predictive(models.finite_width_classification, samples)(jax.random.key(1), X, classes, X, **options)
    probabilities = np.asarray(draws["probabilities"]).mean(0)
    assert probabilities.argmax(1).tolist() == classes.tolist()


def test_hyperparameters_by_their_evidence(x64):
    """Two draws of the density against the closed form, and a short run."""
    options = {
        "net": NET, "width": 64, "noise_variance": dist.LogNormal(-3.0, 0.5), "n_points": 64,
        "weight_variance": dist.LogNormal(0.5, 0.5), "bias_variance": dist.LogNormal(-1.0, 0.5),
    }  # fmt: skip
    values = {"weight_variance": 1.3, "bias_variance": 0.3, "noise_variance": 0.1}
    sites = trace(substitute(seed(models.evidence_regression, 0), values)).get_trace(X, Y, **options)
    net = NET.replace(weight_variance=1.3, bias_variance=0.3)
    closed = gpntk.finite_width_posterior(net, X, Y, width=64, noise_variance=0.1, n_points=64)
    factor = sites["evidence"]["fn"].log_prob(sites["evidence"]["value"])
    assert float(factor) == pytest.approx(closed.log_marginal_likelihood, abs=1e-9)
    sites = trace(substitute(seed(models.evidence_regression, 0), values)).get_trace(
        X, Y, **{**options, "width": np.inf}
    )
    limit = gpntk.finite_width_posterior(net, X, Y, width=np.inf, noise_variance=0.1, n_points=16)
    factor = sites["evidence"]["fn"].log_prob(sites["evidence"]["value"])
    assert float(factor) == pytest.approx(limit.log_marginal_likelihood, abs=1e-10)


def test_refuses_and_warns():
    model = models.finite_width_regression
    with pytest.raises(ValueError, match=r"`noise_variance` must be a scalar distribution with a positive lower"):
        seed(model, 0)(X, Y, net=NET, width=64, noise_variance=dist.LogNormal(0.0, 1.0))
    action = QuarticAction(np.eye(4), np.zeros((4, 4, 4, 4)))
    with pytest.raises(ValueError, match="Pass either `action`, or `net` and `width`"):
        seed(model, 0)(X, Y, net=NET, width=64, action=action, noise_variance=0.1)
    with pytest.raises(ValueError, match="`action` describes 4 inputs, but X and X_test have 7 rows"):
        seed(model, 0)(X, Y, X_TEST, action=action, noise_variance=0.1)
    with pytest.raises(ValueError, match="`retained` must be below 1, got 1"):
        seed(model, 0)(X, Y, **REGRESSION, width=64, retained=1.0)
    with pytest.raises(ValueError, match=r"`y` must have shape \(4,\)"):
        seed(model, 0)(X, Y[:3], **REGRESSION, width=64)
    with pytest.raises(TypeError, match=r"`net` must be a gpntk\.MLP"):
        seed(model, 0)(X, Y, width=64, noise_variance=0.1)
    with pytest.raises(TypeError, match=r"`net` must be a gpntk\.MLP"):
        seed(model, 0)(X, Y, net=gpntk.NNGP(NET), width=64, noise_variance=0.1)
    with pytest.raises(TypeError, match=r"variances of `net` must have values"):
        jax.jit(lambda v: seed(model, 0)(X, Y, net=NET.replace(weight_variance=v), width=64, noise_variance=0.1))(
            1.0
        )
    with pytest.raises(TypeError, match=r"pass its prior as a NumPyro distribution"):
        jax.jit(lambda s: seed(model, 0)(X, Y, net=NET, width=64, noise_variance=s))(0.1)
    with pytest.raises(ValueError, match="noise variance 1e-14 is too small"):
        seed(model, 0)(X[[0, 0]], Y[:2], net=NET, width=64, noise_variance=1e-14, n_points=64)
    with pytest.raises(ValueError, match="`n_points` must be a power of two, got 100"):
        seed(model, 0)(X, Y, net=NET, width=64, noise_variance=0.1, n_points=100)
    with pytest.raises(ValueError, match=r"`n_outputs`=3 does not agree with `y`, which has 1 output\(s\)"):
        seed(model, 0)(X, Y, net=NET, width=64, noise_variance=0.1, n_outputs=3)
    with pytest.raises(TypeError, match="`weight_variance` must be a NumPyro distribution or None, got 2"):
        seed(models.evidence_regression, 0)(X, Y, net=NET, width=64, noise_variance=0.1, weight_variance=2.0)
    with pytest.raises(ValueError, match="Pass either `action`, or `net` and `width`"):
        seed(models.quartic_action_regression, 0)(X, Y, net=NET, action=action, noise_variance=0.1)
    with pytest.warns(UserWarning, match="too small for an expansion in 1/width"):
        seed(model, 0)(X[:1], Y[:1], net=gpntk.MLP(4), width=20, noise_variance=0.1, n_points=64)
    with pytest.raises(ValueError, match=r"`y` must hold 4 classes from 0 to 1"):
        seed(models.finite_width_classification, 0)(X, [0, 1, 2, 0], net=NET, width=64, n_classes=2)
    with pytest.raises(ValueError, match="`noise_variance` must not be zero in the precision that is on, got 9"):
        seed(models.quartic_action_regression, 0)(X, Y, action=action, noise_variance=1e-320)
    with pytest.raises(ValueError, match="`action` must describe the 7 rows"):
        seed(models.quartic_action_regression, 0)(X, Y, X_TEST, action=action, noise_variance=0.1)
