"""Kernels averaged over the readout weights, and the infinite-width kernels of every activation against them."""

import functools

import gpjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gpntk
from gpntk.activations import AbstractActivation

X = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)

# Activation and weight variance; powers and exponentials have heavy tails, which small weights tame.
ACTIVATIONS = {
    "ABReLU": (gpntk.ABReLU(-0.5, 1.0), 1.5),
    "Abs": (gpntk.Abs(), 1.0),
    "Cos": (gpntk.Cos(1.2, 0.8, 0.3), 1.5),
    "Elementwise": (gpntk.Elementwise(jnp.arctan), 1.5),
    "Erf": (gpntk.Erf(1.2, 0.8, 0.1), 1.5),
    "Exp": (gpntk.Exp(1.0, 0.7), 0.3),
    "GELU": (gpntk.GELU(), 2.0),
    "Gaussian": (gpntk.Gaussian(1.5, -0.5), 1.5),
    "Hermite": (gpntk.Hermite(3), 0.3),
    "Identity": (gpntk.Identity(), 1.0),
    "LeakyReLU": (gpntk.LeakyReLU(0.2), 1.5),
    "Monomial": (gpntk.Monomial(2), 0.3),
    "Polynomial": (gpntk.Polynomial((0.2, 1.0, 0.3)), 0.3),
    "Rbf": (gpntk.Rbf(0.6), 1.0),
    "ReLU": (gpntk.ReLU(), 2.0),
    "SiLU": (gpntk.SiLU(), 2.0),
    "Sigmoid": (gpntk.Sigmoid(), 2.0),
    "Sign": (gpntk.Sign(), 1.5),
    "Sin": (gpntk.Sin(1.2, 0.8, 0.3), 1.5),
    "Softplus": (gpntk.Softplus(), 1.5),
    "Tanh": (gpntk.Tanh(), 1.5),
}
# In the quick tier the variants stand in for the plain networks.
NETWORKS = {
    name: gpntk.MLP(2, activation, weight_variance, 0.2)
    for name, (activation, weight_variance) in ACTIVATIONS.items()
} | {
    "unequal widths": gpntk.MLP(2, gpntk.ReLU(), 2.0, 0.2, width_ratios=(1.5, 1.0)),
    "no readout bias": gpntk.MLP(2, gpntk.GELU(), 2.0, 0.2, readout_bias=False),
}
QUICK = ("unequal widths", "no readout bias", "Tanh")
WIDTH, N_SAMPLES = 32, 16384


def test_every_activation_is_here():
    public = [getattr(gpntk, name) for name in gpntk.__all__]
    names = {p.__name__ for p in public if isinstance(p, type) and issubclass(p, AbstractActivation)}
    assert set(ACTIVATIONS) == names


@functools.cache
def extrapolated(name: str):
    """Sampled estimates 2 E(2n) - E(n), free of the 1/n correction, their standard errors, and theory."""
    net, key = NETWORKS[name], jax.random.key(len(name))
    narrow = gpntk.sample_kernels(net, X, WIDTH, N_SAMPLES, jax.random.fold_in(key, 1))
    wide = gpntk.sample_kernels(net, X, 2 * WIDTH, N_SAMPLES, jax.random.fold_in(key, 2))
    estimate = {"nngp": 2 * wide.nngp - narrow.nngp, "ntk": 2 * wide.ntk - narrow.ntk}
    error = {
        "nngp": np.hypot(2 * wide.nngp_se, narrow.nngp_se),
        "ntk": np.hypot(2 * wide.ntk_se, narrow.ntk_se),
    }
    theory = dict(zip(("nngp", "ntk"), map(np.asarray, gpntk.nngp_and_ntk(net, X)), strict=True))
    return estimate, error, theory


def deviation(estimate, error, theory) -> float:
    """Distance in standard errors, which must be within 1% of the value (Frobenius norms)."""
    norm = np.linalg.norm
    assert norm(error) <= 0.01 * norm(theory)
    return norm(estimate - theory) / norm(error)


@pytest.mark.parametrize("kernel", ["nngp", "ntk"])
@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in NETWORKS])
def test_infinite_width_is_the_limit_of_sampled_networks(name, kernel):
    assert deviation(*(part[kernel] for part in extrapolated(name))) < 4


@pytest.mark.parametrize("kernel", ["nngp", "ntk"])
def test_the_comparison_notices_five_percent(kernel):
    estimate, error, theory = (part[kernel] for part in extrapolated("Tanh"))
    assert deviation(estimate, error, 1.05 * theory) > 4
    assert deviation(estimate, error, 0.95 * theory) > 4


@pytest.mark.parametrize("readout_bias", [True, False])
def test_at_depth_one_kernels_have_no_bias_at_any_width(readout_bias):
    net = gpntk.MLP(1, gpntk.Tanh(), 1.5, 0.3, readout_bias=readout_bias)
    theory = gpntk.nngp_and_ntk(net, X)
    sampled = gpntk.sample_kernels(net, X, 2, 40_000, jax.random.key(0))
    assert deviation(sampled.nngp, sampled.nngp_se, theory[0]) < 4
    assert deviation(sampled.ntk, sampled.ntk_se, theory[1]) < 4


def test_exact_readout_kernels_have_the_same_mean_at_depth_one():
    net = gpntk.MLP(1, gpntk.Tanh(), 1.5, 0.3)
    theory = gpntk.nngp_and_ntk(net, X)
    keys = jax.random.split(jax.random.key(1), 8000)

    @jax.jit
    @jax.vmap
    def draw(key):
        return gpntk.readout_kernels(net, net.init(key, 4, width=4), X)

    for values, exact in zip(draw(keys), theory, strict=True):
        values = np.asarray(values, np.float64)
        assert deviation(values.mean(0), values.std(0, ddof=1) / len(keys) ** 0.5, np.asarray(exact)) < 4


@pytest.mark.parametrize("readout_bias", [True, False])
def test_readout_kernels_are_the_mean_over_readout_weights(readout_bias, x64):
    """Both are quadratic in the weights, so unit vectors give the mean over them exactly."""
    net = gpntk.MLP(2, gpntk.GELU(), 1.7, 0.3, readout_bias=readout_bias, width_ratios=(2, 1))
    x, n = X.astype(np.float64), 5
    params = net.init(jax.random.key(0), 4, width=n)
    x2 = x[:2] + 0.5
    hidden_ntk = 0.0
    for i in range(n):
        readout = jax.tree.map(jnp.zeros_like, params[-1]) | {"weight": jnp.eye(n)[:, i : i + 1]}
        with_readout = gpntk.empirical_ntk(net, [*params[:-1], readout], x, x2)
        hidden_ntk = hidden_ntk + with_readout
    c_w, c_b = (gpjax.parameters.val(v) for v in (net.weight_variance, net.bias_variance))
    h1, h2 = net.hidden(params, x), net.hidden(params, x2)
    nngp = c_w / n * h1 @ h2.T + (c_b if readout_bias else 0.0)
    # Each term of the sum holds the readout's own contribution, the NNGP: n of them where one is right.
    ntk = hidden_ntk - (n - 1) * nngp
    for got, expected in zip(gpntk.readout_kernels(net, params, x, x2), (nngp, ntk), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_readout_kernels_are_symmetric_and_do_not_read_the_readout():
    net = gpntk.MLP(2, bias_variance=0.1)
    params = net.init(jax.random.key(0), 4, width=16)
    kernels = gpntk.readout_kernels(net, params, X)
    other = [*params[:-1], jax.tree.map(lambda leaf: leaf + 1.0, params[-1])]
    for kernel, same, cross in zip(
        kernels, gpntk.readout_kernels(net, other, X), gpntk.readout_kernels(net, params, X, X), strict=True
    ):
        np.testing.assert_array_equal(kernel, kernel.T)
        np.testing.assert_array_equal(kernel, same)
        np.testing.assert_allclose(kernel, cross, rtol=1e-6)


def test_samples_do_not_depend_on_their_batches(monkeypatch):
    net, key = gpntk.MLP(1), jax.random.key(3)
    whole = gpntk.sample_kernels(net, X, 8, 50, key)
    monkeypatch.setattr("gpntk.sampling._readout.affordable", lambda numbers, items: 17)
    for together, apart in zip(whole, gpntk.sample_kernels(net, X, 8, 50, key, progress=True), strict=True):
        np.testing.assert_allclose(together, apart, rtol=1e-5)


def test_bad_input():
    net, key = gpntk.MLP(1), jax.random.key(0)
    with pytest.raises(ValueError, match=r"`n_samples` must be an integer >= 2, got 1"):
        gpntk.sample_kernels(net, X, 8, 1, key)
    with pytest.raises(ValueError, match=r"`width` must be an integer >= 1, got 0"):
        gpntk.sample_kernels(net, X, 0, 10, key)
    with pytest.raises(ValueError, match="Input X contains NaN"):
        gpntk.sample_kernels(net, X * np.nan, 8, 10, key)
    with pytest.raises(ValueError, match="x2 has 3 features, but x1 has 4"):
        gpntk.readout_kernels(net, net.init(key, 4), X, X[:, :3])
    with pytest.raises(ValueError, match=r"`params` .* a list of 2, got 1 entries"):
        gpntk.readout_kernels(net, net.init(key, 4)[:1], X)
