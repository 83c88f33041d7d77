"""Mean kernels of finite width as GPJax kernels."""

import gpjax as gpx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gpntk

GENERIC = {"weight_variance": 1.7, "bias_variance": 0.2}
X = np.random.default_rng(0).normal(size=(5, 3))
X = np.vstack([X, X[:1], -X[1:2]])
WIDTH = 200


@pytest.mark.parametrize(
    "activation", [gpntk.ReLU(), pytest.param(gpntk.Tanh(), marks=pytest.mark.slow)], ids=repr
)
def test_kernels_are_the_corrected_means(x64, activation):
    net = gpntk.MLP(3, activation, width_ratios=(2.0, 0.5, 1.0), **GENERIC)
    c = gpntk.cumulants(net, X, rank=1)
    at = c.at(WIDTH)
    for kind, expected, limit in ((gpntk.NNGP, at.nngp, c.K), (gpntk.NTK, at.ntk, c.theta)):
        kernel = kind(net, variance=2.0, width=WIDTH)
        gram = kernel.gram(X).as_matrix()
        np.testing.assert_allclose(gram, 2.0 * expected, rtol=1e-9)
        np.testing.assert_array_equal(gram, gram.T)
        np.testing.assert_array_equal(np.diagonal(gram), np.diagonal(kernel.diagonal(X).as_matrix()))
        np.testing.assert_allclose(kernel.cross_covariance(X[:2], X), gram[:2], rtol=1e-9)
        np.testing.assert_allclose(kernel(X[0], X[1]), gram[0, 1], rtol=1e-9)
        np.testing.assert_allclose(kind(net, width=np.inf).gram(X).as_matrix(), limit, rtol=1e-9)
        assert np.linalg.norm(expected - limit) > 1e-4 * np.linalg.norm(limit)


def test_blocks_change_nothing(x64):
    net = gpntk.MLP(2, gpntk.Erf(), **GENERIC)
    engine = gpntk.BlockedComputation(block_size=2)
    whole, blocked = gpntk.NTK(net, width=WIDTH), gpntk.NTK(net, width=WIDTH, compute_engine=engine)
    np.testing.assert_allclose(blocked.gram(X).as_matrix(), whole.gram(X).as_matrix(), rtol=1e-12)


@pytest.mark.parametrize(
    "activation", [gpntk.ReLU(), pytest.param(gpntk.GELU(), marks=pytest.mark.slow)], ids=repr
)
def test_hyperparameters_have_exact_gradients(x64, activation):
    def total(weight_variance, bias_variance):
        net = gpntk.MLP(2, activation, weight_variance=weight_variance, bias_variance=bias_variance)
        return jnp.sum(gpntk.NNGP(net, width=10.0).gram(X).as_matrix() ** 2)

    step = 1e-5
    with pytest.warns(UserWarning, match="too small"):
        differences = [
            (total(1.7 + step, 0.2) - total(1.7 - step, 0.2)) / (2 * step),
            (total(1.7, 0.2 + step) - total(1.7, 0.2 - step)) / (2 * step),
        ]
    gradient = jax.grad(total, argnums=(0, 1))(1.7, 0.2)
    np.testing.assert_allclose(gradient, differences, rtol=1e-7)


def test_regression_in_gpjax(x64):
    net = gpntk.MLP(2, gpntk.ReLU(), **GENERIC)
    data = gpx.Dataset(X[:5], X[:5, :1])

    def mean(kernel):
        prior = gpx.gps.Prior(mean_function=gpx.mean_functions.Zero(), kernel=kernel)
        posterior = prior * gpx.likelihoods.Gaussian(obs_stddev=0.1)
        return posterior.predict(X[5:] + 0.1, train_data=data).mean

    wide, limit = mean(gpntk.NNGP(net, width=1e9)), mean(gpntk.NNGP(net))
    np.testing.assert_allclose(wide, limit, rtol=1e-6)
    assert np.max(np.abs(mean(gpntk.NNGP(net, width=WIDTH)) - limit)) > 1e-4


def test_single_precision_agrees_with_double():
    net = gpntk.MLP(2, gpntk.ReLU(), **GENERIC)
    single = gpntk.NTK(net, width=50.0).gram(X.astype(np.float32)).as_matrix()
    with jax.enable_x64(True):
        double = gpntk.NTK(net, width=50.0).gram(X).as_matrix()
    np.testing.assert_allclose(single, double, rtol=1e-5)


def test_narrow_networks_warn_with_the_smallest_width(x64):
    # V = 10 K^2 after two layers of ReLU at criticality: half of the kernel at width 40.
    net = gpntk.MLP(2, gpntk.ReLU())
    x = X[:1]
    for make in (lambda n: gpntk.NNGP(net, width=n).gram(x), gpntk.cumulants(net, x).at):
        with pytest.warns(UserWarning, match=r"fluctuates by 0\.57 of its mean\. The smallest usable width is 40"):
            make(31)
        make(41)


def test_bad_width():
    with pytest.raises(ValueError, match=r"`width` must be .* >= 1, got 0"):
        gpntk.NNGP(gpntk.MLP(), width=0)
    with pytest.raises(TypeError, match=r"`net` must be a gpntk\.MLP where `width` is given"):
        gpntk.NTK(gpntk.CNN(input_shape=(4, 4, 1)), width=100)
    kink = gpntk.Elementwise(lambda x: jnp.maximum(x, 0.0))
    with pytest.raises(ValueError, match="Take `ABReLU`"), pytest.warns(UserWarning, match="not accurate"):
        gpntk.NNGP(gpntk.MLP(2, kink), width=100).gram(X)
    with pytest.raises(ValueError, match=r"E\[s\(z\)\^4\] diverges"):
        gpntk.cumulants(gpntk.MLP(1, gpntk.Gaussian(b=1.0), weight_variance=0.2), np.array([[0.8, 1.0]]))
