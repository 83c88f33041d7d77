"""The closed form of the posterior at order 1/n: the delta method by other means, GPJax, derivatives, refusals."""

import gpjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gpntk
from gpntk.finite_width._fluctuations import REPLICATES, fluctuation_sums, random_kernel
from gpntk.finite_width._posterior import checked_points

RNG = np.random.default_rng(0)
X, X_TEST = RNG.normal(size=(4, 2)), RNG.normal(size=(3, 2))
Y = 1.5 * np.sin(X[:, 0])
OUTPUTS = np.stack([Y, np.cos(X[:, 1])], axis=1)
NOISE, WIDTH = 0.05, 64
NETS = {
    "erf": gpntk.MLP(2, gpntk.Erf(), weight_variance=1.7, bias_variance=0.2),
    "relu": gpntk.MLP(3, weight_variance=1.7, bias_variance=0.2, width_ratios=(0.5, 2.0, 1.0)),
}
SLOW_RELU = pytest.mark.parametrize("name", ["erf", pytest.param("relu", marks=pytest.mark.slow)])


def products(factors):
    return jnp.einsum("rab,rcd->abcd", factors.block, factors.block), jnp.einsum(
        "ra,rbc->abc", factors.diagonal, factors.block
    )


@SLOW_RELU
@pytest.mark.parametrize("n_joint", [4, 2])
def test_factors_rebuild_the_cumulants(x64, name, n_joint):
    """The recursion in factors against the recursion in tensors, whose sources come from other points."""
    c = gpntk.cumulants(NETS[name], X)
    random = random_kernel(NETS[name], jnp.asarray(X))
    sums, shift = fluctuation_sums(random, n_joint, products, (), 4096, 0)
    np.testing.assert_allclose(random.kernel, c.K, rtol=1e-13)
    joint = np.ones((4, 4), bool)
    joint[n_joint:, n_joint:] = np.eye(4 - n_joint, dtype=bool)
    cases = {
        "V": (sums[0], c.V[:, :n_joint, :, :n_joint], joint[:, None, :, None]),
        "V of variances": (sums[1], np.einsum("aabc->abc", c.V)[:, :, :n_joint], joint[:, :, None]),
        "K1": (shift.block, c.K1[:, :n_joint], True),
    }
    for label, (estimates, expected, meaningful) in cases.items():
        estimates = np.asarray(estimates)
        error = np.linalg.norm(estimates.std(0, ddof=1) * meaningful) / REPLICATES**0.5
        # Four replicates estimate their spread to 40%; the cumulants have a tenth of the error.
        assert np.linalg.norm((estimates.mean(0) - expected) * meaningful) < 3 * error, label
        assert error < 0.01 * np.linalg.norm(expected), label


def by_differentiation(net, y, width):
    """Posterior moments, log evidence and c by nested forward differentiation along eigenvectors of a dense V."""
    n, q = y.shape
    c = gpntk.cumulants(net, np.concatenate([X, X_TEST]))
    size = len(c.K)
    eigenvalues, vectors = np.linalg.eigh(c.V.reshape(size**2, size**2))
    directions = (vectors * np.sqrt(np.maximum(eigenvalues, 0))).T.reshape(-1, size, size)

    def evidence(kernel):
        gram = kernel[:n, :n] + NOISE * jnp.eye(n)
        return -0.5 * jnp.sum(y * jnp.linalg.solve(gram, y)) - 0.5 * q * jnp.linalg.slogdet(2 * jnp.pi * gram)[1]

    def moments(kernel):
        weights = jnp.linalg.solve(kernel[:n, :n] + NOISE * jnp.eye(n), kernel[:n, n:]).T
        mean, covariance = weights @ y, kernel[n:, n:] - weights @ kernel[:n, n:]
        return mean, jnp.einsum("xi,wj->xwij", mean, mean) + covariance[:, :, None, None] * jnp.eye(q)

    def along(function, direction):
        return jax.jvp(function, (c.K,), (direction,))[1]

    def shifted(function):
        first = along(function, c.K1)
        second = jax.vmap(lambda d: along(lambda k: jax.jvp(function, (k,), (d,))[1], d))(directions)
        return jax.tree.map(lambda a, b: a + 0.5 * b.sum(0), first, second)

    slopes = jax.vmap(lambda d: along(evidence, d))(directions)
    slope = shifted(evidence) + 0.5 * jnp.sum(slopes**2)
    correlated = jax.vmap(lambda d: along(moments, d))(directions)
    mean, second = jax.tree.map(
        lambda base, shift, moved: base + (shift + jnp.tensordot(slopes, moved, 1)) / (width + max(slope, 0.0)),
        moments(c.K),
        shifted(moments),
        correlated,
    )
    covariance = second - jnp.einsum("xi,wj->xwij", mean, mean)
    resummed = jnp.log1p(slope / width) if slope > 0 else slope / width
    return mean, covariance, evidence(c.K) + resummed, slope


@pytest.mark.parametrize(
    ("name", "scale", "sign"),
    [
        ("erf", 1.5, -1),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("erf", 0.3, 1), ("relu", 1.0, -1))),
    ],
)
def test_closed_form_is_the_delta_method(x64, name, scale, sign):
    y = scale * OUTPUTS
    posterior = gpntk.finite_width_posterior(
        NETS[name], X, y, X_TEST, width=WIDTH, noise_variance=NOISE, n_points=2**14
    )
    limit = gpntk.finite_width_posterior(NETS[name], X, y, X_TEST, width=np.inf, noise_variance=NOISE)
    mean, covariance, log_evidence, slope = by_differentiation(NETS[name], y, WIDTH)
    assert np.sign(slope) == sign
    assert abs(posterior.evidence_slope - slope) < 4 * posterior.evidence_slope_se < 0.1 * abs(slope)
    assert posterior.log_marginal_likelihood == pytest.approx(
        float(log_evidence), abs=8 * posterior.evidence_slope_se / WIDTH
    )
    for value, expected, at_infinity in (
        (posterior.mean, mean, limit.mean),
        (posterior.cov, covariance, limit.cov),
        (posterior.variance, np.einsum("xxii->xi", covariance), limit.variance),
    ):
        # Integration errors are below 2% of the correction.
        correction = np.linalg.norm(expected - at_infinity)
        assert np.linalg.norm(value - expected) < 0.02 * correction
        assert correction > 0
    np.testing.assert_allclose(np.einsum("xxii->xi", posterior.cov), posterior.variance, rtol=1e-12)


@pytest.mark.parametrize("y", [Y, OUTPUTS], ids=["one output", "two outputs"])
def test_infinite_width_is_the_conjugate_posterior_of_gpjax(x64, y):
    net = NETS["erf"]
    posterior = gpntk.finite_width_posterior(net, X, y, X_TEST, width=np.inf, noise_variance=NOISE)
    likelihood = gpjax.likelihoods.Gaussian(obs_stddev=NOISE**0.5)
    model = gpjax.gps.Prior(gpntk.NNGP(net), gpjax.mean_functions.Zero(), jitter=0.0) * likelihood
    log_evidence = 0.0
    for column, target in enumerate(y.reshape(4, -1).T):
        data = gpjax.Dataset(jnp.asarray(X), jnp.asarray(target[:, None]))
        predictive = model.condition(data).predict(jnp.asarray(X_TEST))
        mean, cov = (a if y.ndim == 1 else a[..., column] for a in (posterior.mean, posterior.cov))
        cov = cov if y.ndim == 1 else cov[:, :, column]
        np.testing.assert_allclose(mean, predictive.mean, rtol=0, atol=1e-10)
        np.testing.assert_allclose(cov, predictive.covariance_matrix, rtol=0, atol=1e-10)
        log_evidence += float(gpjax.objectives.conjugate_mll(model, data))
    assert posterior.log_marginal_likelihood == pytest.approx(log_evidence, abs=1e-10)


def test_points_by_default_are_fewer_for_more_inputs():
    assert [checked_points(None, 0, n) for n in (1, 45, 64, 90, 100, 5000)] == [8192, 8192, 4096, 2048, 1024, 1024]
    assert checked_points(64, 0, 5000) == 64


def test_predictions_do_not_depend_on_which_others_are_asked_for():
    arguments = {"width": WIDTH, "noise_variance": NOISE, "n_points": 256}
    together = gpntk.finite_width_posterior(NETS["erf"], X, Y, X_TEST, **arguments)
    alone = gpntk.finite_width_posterior(NETS["erf"], X, Y, X_TEST[2:], **arguments)
    np.testing.assert_allclose(alone.mean, together.mean[2:], rtol=0, atol=1e-12)
    np.testing.assert_allclose(alone.variance, together.variance[2:], rtol=0, atol=1e-12)


def test_inputs_of_all_scales(x64):
    """A zero input, one of norm 1e-8, and duplicates up to rounding, beside others."""
    net, arguments = gpntk.MLP(2), {"width": WIDTH, "noise_variance": NOISE, "n_points": 256}
    posterior = gpntk.finite_width_posterior(net, X, Y, np.zeros((1, 2)), **arguments)
    assert (posterior.mean.item(), posterior.cov.item()) == (0.0, 0.0)
    for size in (0.0, 1e-8):
        row = size * X[:1]
        # Without a relative floor on the variances, the second kernel would fluctuate by 1e5 of its mean.
        with_row = gpntk.finite_width_posterior(
            net, np.concatenate([row, X]), np.append(0.0, Y), X_TEST, **arguments
        )
        assert np.isfinite(with_row.mean).all()
    exact, near = (
        gpntk.finite_width_posterior(
            NETS["erf"], np.concatenate([X, X[:1] + e]), np.append(Y, Y[0]), X_TEST, **arguments
        )
        for e in (0.0, 1e-9)
    )
    np.testing.assert_allclose(near.mean, exact.mean, rtol=1e-4)
    np.testing.assert_allclose(near.evidence_slope, exact.evidence_slope, rtol=1e-4)


@SLOW_RELU
def test_evidence_is_differentiable_in_all_hyperparameters(x64, name):
    def evidence(hyperparameters):
        weight, bias, noise = hyperparameters
        net = NETS[name].replace(weight_variance=weight, bias_variance=bias)
        return gpntk.finite_width_posterior(
            net, X, Y, width=WIDTH, noise_variance=noise, n_points=256
        ).log_marginal_likelihood

    point = np.array([1.7, 0.2, NOISE])
    gradient = jax.jit(jax.grad(evidence))(point)
    for index, step in enumerate(1e-4 * np.eye(3) * point):
        difference = (evidence((point + step).tolist()) - evidence((point - step).tolist())) / (2 * step[index])
        assert gradient[index] == pytest.approx(difference, rel=1e-5), index


def test_refuses_and_warns():
    net, y = NETS["erf"], 30.0 * Y
    arguments = {"noise_variance": NOISE, "n_points": 256}
    slope = gpntk.finite_width_posterior(net, X, 1.5 * OUTPUTS, width=np.inf, **arguments).evidence_slope
    assert slope < -4
    with pytest.raises(ValueError, match=rf"c = {slope:.4g}.*smallest usable width is {int(-slope) + 1}"):
        gpntk.finite_width_posterior(net, X, 1.5 * OUTPUTS, width=4, **arguments)
    with pytest.warns(UserWarning, match=r"\|c\|/n below 1/2"):
        gpntk.finite_width_posterior(net, X, y, width=WIDTH, **arguments)
    with pytest.warns(UserWarning, match="too small for an expansion in 1/width"):
        gpntk.finite_width_posterior(gpntk.MLP(4), X[:1], Y[:1], width=30, **arguments)
    with pytest.raises(ValueError, match=r"`noise_variance` must be .* > 0, got 0"):
        gpntk.finite_width_posterior(net, X, Y, width=8, noise_variance=0.0)
    with pytest.raises(ValueError, match="`y` must be an array of real numbers, got dtype complex128"):
        gpntk.finite_width_posterior(net, X, Y + 1j, width=8, noise_variance=1.0)
    with pytest.raises(ValueError, match="`seed` must be an integer >= 0, got -1"):
        gpntk.finite_width_posterior(net, X, Y, width=8, noise_variance=1.0, seed=-1)
    with pytest.raises(ValueError, match=r"noise variance 1e-14 is too small.*duplicates"):
        gpntk.finite_width_posterior(net, X[[0, 0]], Y[:2], width=8, noise_variance=1e-14)
    with pytest.raises(ValueError, match="corrections at order 1/width are not finite"):
        gpntk.finite_width_posterior(net, X, 1e200 * Y, width=8, noise_variance=1.0)
    with pytest.raises(TypeError, match=r"within `with jax\.enable_x64\(True\):`"):
        jax.grad(lambda s: gpntk.finite_width_posterior(net, X, Y, width=8, noise_variance=s).evidence_slope)(1.0)
    with pytest.raises(ValueError, match=r"`y` must have shape \(4,\) or \(4, n_outputs\), got \(3,\)"):
        gpntk.finite_width_posterior(net, X, Y[:3], width=8, noise_variance=1.0)
    with pytest.raises(ValueError, match="`n_points` must be a power of two, got 100"):
        gpntk.finite_width_posterior(net, X, Y, width=8, noise_variance=1.0, n_points=100)
    with pytest.raises(ValueError, match=r"`width` must be .* >= 1, got 0\.5"):
        gpntk.finite_width_posterior(net, X, Y, width=0.5, noise_variance=1.0)
    with pytest.raises(ValueError, match="X_test has 3 features, but X has 2"):
        gpntk.finite_width_posterior(net, X, Y, np.ones((1, 3)), width=8, noise_variance=1.0)
    with pytest.raises(TypeError, match=r"`net` must be a gpntk\.MLP"):
        gpntk.finite_width_posterior(gpntk.NNGP(net), X, Y, width=8, noise_variance=1.0)
