"""Order-1/n statistics: exact values, sampled networks, coincident inputs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gpntk
from gpntk.finite_width import cumulants, sample_cumulants

TENSORS = ("V", "D", "F", "A", "B")
X = np.random.default_rng(0).normal(size=(3, 4))
GENERIC = {"weight_variance": 1.7, "bias_variance": 0.2}
ACTIVATIONS = {"relu": gpntk.ReLU(), "erf": gpntk.Erf(), "gelu": gpntk.GELU(), "tanh": gpntk.Tanh()}


def test_relu_at_criticality_grows_by_five_squares_a_layer():
    x = np.array([[1.0, 2.0, 0.5]])
    c = cumulants(gpntk.MLP(6, gpntk.ReLU()), x)
    for index, layer in enumerate(c.layers):
        np.testing.assert_allclose(layer.V / layer.K**2, 5.0 * index, rtol=1e-10, atol=1e-12)
        # A scale-invariant activation has no mean correction on the diagonal.
        np.testing.assert_allclose([layer.K1, layer.theta1], 0.0, atol=1e-10 * np.max(layer.theta))


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_deep_linear_networks_in_closed_form(depth):
    c = cumulants(gpntk.MLP(depth, gpntk.Identity(), weight_variance=1.0), X)
    K = X @ X.T / X.shape[1]
    outer = np.einsum("ab,cd->abcd", K, K)
    wick = np.einsum("ac,bd->abcd", K, K) + np.einsum("ad,bc->abcd", K, K)
    sum_l, sum_squares = depth * (depth + 1) / 2, depth * (depth + 1) * (2 * depth + 1) / 6
    expected = {
        "V": depth * wick,
        "D": sum_l * wick,
        "F": sum_l * outer,
        "A": sum_squares * wick,
        "B": sum_squares * outer,
    }
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(c, name), value, rtol=1e-10, atol=1e-12 * np.max(value))
    np.testing.assert_allclose(c.theta, (depth + 1) * K, rtol=1e-12)
    np.testing.assert_allclose([c.K1, c.theta1], 0.0, atol=1e-12)


def deviation(theory, sampled, error):
    """Largest deviation in standard errors, and the relative standard error in the Frobenius norm."""
    return np.max(np.abs(theory - sampled) / error), np.linalg.norm(error) / np.linalg.norm(theory)


@pytest.mark.parametrize("activation", ["relu", "erf"])
def test_one_hidden_layer_is_exact_at_every_width(x64, activation):
    net = gpntk.MLP(1, ACTIVATIONS[activation], **GENERIC)
    c, sampled = cumulants(net, X), sample_cumulants(net, X, 6, 20_000, jax.random.key(0))
    for name in TENSORS:
        z, relative_error = deviation(getattr(c, name), getattr(sampled, name), getattr(sampled, f"{name}_se"))
        # 81 correlated entries: 4 standard errors would fail by chance once in a few hundred runs.
        assert z < 4.5, name
        assert relative_error < 0.05, name
    np.testing.assert_array_equal([c.K1, c.theta1], 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("architecture", [{"depth": 2}, {"depth": 3}, {"depth": 2, "width_ratios": (0.5, 1.0)}])
def test_tensors_agree_with_sampled_networks(x64, activation, architecture):
    net = gpntk.MLP(activation=ACTIVATIONS[activation], **architecture, **GENERIC)
    c = cumulants(net, X)
    width = 32
    small = sample_cumulants(net, X, width, 60_000, jax.random.key(1))
    large = sample_cumulants(net, X, 2 * width, 60_000, jax.random.key(2))
    for name in TENSORS:
        errors = [getattr(s, f"{name}_se") for s in (small, large)]
        # The O(1/n) left over in both cancels in this combination.
        estimate = 2 * getattr(large, name) - getattr(small, name)
        z, relative_error = deviation(getattr(c, name), estimate, np.hypot(errors[0], 2 * errors[1]))
        assert z < 4.5, name
        assert relative_error < 0.04, name


def test_mean_corrections_of_two_layers_against_the_exact_mean(x64):
    """At depth 2 the mean kernel of width-n networks is E[T(G)] over the random kernel G of the first layer."""
    net = gpntk.MLP(2, gpntk.Erf(), **GENERIC)
    c = cumulants(net, X)
    K1, width, networks = c.layers[0].K, 256, 4000
    rng = np.random.default_rng(3)
    factor = np.linalg.cholesky(K1)
    z = np.einsum("ab,snb->sna", factor, rng.normal(size=(networks, width, len(X))))
    value = np.asarray(jax.lax.erf(z))
    G = GENERIC["bias_variance"] + GENERIC["weight_variance"] * np.einsum("sna,snb->sab", value, value) / width
    K2 = c.layers[1].K

    def dual(G):
        variance = jnp.einsum("...aa->...a", G)
        return gpntk.Erf().dual(G, variance[..., :, None], variance[..., None, :])

    # The part linear in G - K averages to zero exactly: without it the rest is a small number with a small error.
    base, linear = jax.linearize(dual, np.asarray(K2))
    curved = np.asarray(dual(G) - base - jax.vmap(linear)(G - K2))
    estimate = width * GENERIC["weight_variance"] * curved
    error = estimate.std(0, ddof=1) / networks**0.5
    # Width 256 leaves a relative O(1/256) of the coefficient.
    allowed = 4 * error + 0.01 * np.abs(c.K1)
    assert np.linalg.norm(error) < 0.05 * np.linalg.norm(c.K1)
    assert np.all(np.abs(estimate.mean(0) - c.K1) < allowed)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_duplicates_repeat_rows_of_the_tensors(activation):
    net = gpntk.MLP(2, ACTIVATIONS[activation], **GENERIC)
    once, twice = (cumulants(net, X[rows]) for rows in ([0, 1], [0, 1, 0]))
    index = np.array([0, 1, 0])
    for name in ("K", "theta", "K1", "theta1", *TENSORS):
        expected = getattr(once, name)
        expected = expected[np.ix_(*[index] * expected.ndim)]
        scale = np.linalg.norm(expected)
        assert np.linalg.norm(getattr(twice, name) - expected) < 2e-3 * scale, name


def test_symmetries_and_positive_semidefiniteness():
    c = cumulants(gpntk.MLP(2, gpntk.GELU(), **GENERIC), X)
    for name in ("V", "A"):
        tensor = getattr(c, name)
        for order in ((1, 0, 2, 3), (0, 1, 3, 2), (2, 3, 0, 1)):
            np.testing.assert_allclose(tensor, tensor.transpose(order), rtol=1e-9, atol=1e-12)
        eigenvalues = np.linalg.eigvalsh(tensor.reshape(9, 9))
        assert eigenvalues.min() > -1e-10 * eigenvalues.max()
    np.testing.assert_allclose(c.F, c.F.transpose(1, 0, 3, 2), rtol=1e-9)
    np.testing.assert_allclose(c.B, c.B.transpose(2, 3, 0, 1), rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["relu", "gelu", "tanh"])
def test_error_estimate_holds_against_a_finer_run(activation):
    net = gpntk.MLP(3, ACTIVATIONS[activation], **GENERIC)
    coarse, fine = cumulants(net, X, tolerance=3e-3), cumulants(net, X, tolerance=2e-4, seed=99)
    for name in ("K1", "theta1", *TENSORS):
        error = np.linalg.norm(getattr(coarse, name) - getattr(fine, name))
        # Eight replicates estimate their spread to a quarter of itself.
        assert error < 4 * coarse.error_estimate[name], name
        assert fine.error_estimate[name] < 1e-3 * np.linalg.norm(getattr(fine, name)), name


def test_more_inputs_than_dimensions():
    x = np.random.default_rng(1).normal(size=(4, 2))
    c = cumulants(gpntk.MLP(2, gpntk.ReLU(), **GENERIC), x, tolerance=1e-3)
    for field in dataclasses.fields(c)[:9]:
        assert np.isfinite(getattr(c, field.name)).all()


def test_correction_at_a_width():
    c = cumulants(gpntk.MLP(2, gpntk.Erf(), **GENERIC), X)
    at = c.at(100)
    np.testing.assert_allclose(at.nngp, c.K + c.K1 / 100)
    np.testing.assert_allclose(at.ntk, c.theta + c.theta1 / 100)
    np.testing.assert_allclose(at.V, c.V / 100)
    np.testing.assert_array_equal(c.at(np.inf).nngp, c.K)


def test_sampling_in_single_precision_leaves_double_precision_alone():
    net = gpntk.MLP(2, gpntk.Erf(), weight_variance=1.7, bias_variance=0.2)
    x = np.ones((1, 3))
    assert gpntk.sample_cumulants(net, x, 4, 256, jax.random.key(0)).K.dtype == np.float32
    assert gpntk.cumulants(net, x).K.dtype == np.float64


def test_bad_input():
    net = gpntk.MLP(2)
    with pytest.raises(ValueError, match=r"1000 inputs need 1,024,000,000,000,000 bytes"):
        cumulants(net, np.ones((1000, 3)))
    with pytest.raises(ValueError, match=r"Gaussian moments of Gaussian\(a=1.0, b=1.0\)"):
        cumulants(gpntk.MLP(2, gpntk.Gaussian(b=1.0)), X)
    with pytest.raises(TypeError, match=r"`net` must be a gpntk\.MLP"):
        cumulants(gpntk.NTK(net), X)
    with pytest.raises(ValueError, match=r"`width` must be .* >= 1, got 0"):
        cumulants(net, X[:1]).at(0)
    with pytest.raises(ValueError, match="`n_samples` must be an integer >= 256, got 10"):
        sample_cumulants(net, X, 8, 10, jax.random.key(0))
