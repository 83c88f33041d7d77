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


@pytest.mark.parametrize(
    "activation", ["relu", "erf", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gelu", "tanh"))]
)
def test_one_hidden_layer_is_exact_at_every_width(activation):
    net = gpntk.MLP(1, ACTIVATIONS[activation], **GENERIC)
    c, sampled = cumulants(net, X), sample_cumulants(net, X.astype(np.float32), 6, 20_000, jax.random.key(0))
    for name in TENSORS:
        z, relative_error = deviation(getattr(c, name), getattr(sampled, name), getattr(sampled, f"{name}_se"))
        # 81 correlated entries: 4 standard errors would fail by chance once in a few hundred runs.
        assert z < 4.5, name
        assert relative_error < 0.03, name
    np.testing.assert_array_equal([c.K1, c.theta1], 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    ("architecture", "width"),
    [({"depth": 2, "width_ratios": (4.0, 1.0)}, 25), ({"depth": 3}, 32), ({"depth": 4}, 32)],
    ids=["200 x 50", "depth 3", "depth 4"],
)
def test_tensors_agree_with_sampled_networks(activation, architecture, width):
    net = gpntk.MLP(activation=ACTIVATIONS[activation], **architecture, **GENERIC)
    c, x = cumulants(net, X), X.astype(np.float32)
    # Kernels of deep GELU networks fluctuate with the heaviest tails.
    networks = 80_000 if (activation, net.depth) == ("gelu", 4) else 48_000
    small = sample_cumulants(net, x, width, networks, jax.random.key(1))
    large = sample_cumulants(net, x, 2 * width, networks, jax.random.key(2))
    for name in TENSORS:
        errors = [getattr(s, f"{name}_se") for s in (small, large)]
        # The O(1/n) left over in both cancels in this combination.
        estimate = 2 * getattr(large, name) - getattr(small, name)
        error = np.hypot(errors[0], 2 * errors[1])
        z, relative_error = deviation(getattr(c, name), estimate, error)
        print(f"{name}: {z:.2f} standard errors of {relative_error:.2%}")
        assert z < 4.5, name
        assert relative_error < 0.03, name
        # What an error of 15% in the theory would look like.
        assert deviation(1.15 * getattr(c, name), estimate, error)[0] > 4.5, name


def mean_shifts_given_the_first_layer(activation, first, width, networks, seed):
    r"""Width times the shifts of mean kernels of two hidden layers, with errors, from sampled first layers.

    Given the first layer, with activations s_i and slopes d_i, the neurons of the second are independent Gaussians
    of covariance G. Over them the mean of $\sigma_a'\sigma_b' H_{ab}$ is $U(G)\,\hat\Theta_{ab}$ and, since
    their NTK H contains the squares of their weights W_i, the second derivatives of $\sigma_a'\sigma_b'$ in those.
    """
    weight, bias = GENERIC["weight_variance"], GENERIC["bias_variance"]
    normal = np.random.default_rng(seed).normal(size=(networks, width, len(first)))
    z = jnp.asarray(normal @ np.linalg.cholesky(first).T)
    s, d = jax.jvp(activation, (z,), (jnp.ones_like(z),))
    mean = lambda *factors: sum_over_neurons(*factors) * weight / width  # noqa: E731
    G = bias + mean(s, s)
    theta = G + first * mean(d, d)
    G_mean, U_mean = (
        np.asarray(f(first, np.diag(first)[:, None], np.diag(first)))
        for f in (activation.dual, activation.dual_derivative)
    )
    G_mean, U_mean = bias + weight * G_mean, weight * U_mean

    def outputs(G, theta):
        variances = jnp.einsum("...aa->...a", G)
        arguments = G, variances[..., :, None], variances[..., None, :]
        dual = activation.dual(*arguments)
        return weight * dual, weight * (dual + activation.dual_derivative(*arguments) * theta)

    # What is linear in both moves averages to zero exactly: without it a small number has a small error.
    at = G_mean, G_mean + U_mean * first
    base, linear = jax.linearize(outputs, *at)
    moves = jax.vmap(linear)(G - at[0], theta - at[1])
    K_move, theta_move = (o - b - m for o, b, m in zip(outputs(G, theta), base, moves, strict=True))

    own = jnp.einsum("saa->sa", G)
    arguments = jnp.broadcast_arrays(G, own[:, :, None], own[:, None, :])
    by = [
        jax.jvp(activation.dual_derivative, arguments, [jnp.full(G.shape, float(i == j)) for j in range(3)])[1]
        for i in range(3)
    ]
    squares = mean(s**2 * d, d), mean(s * d, s * d), mean(d, s**2 * d)
    theta_move += 2 * weight**2 / width * first * (by[0] * squares[1] + by[1] * squares[0] + by[2] * squares[2])
    estimates = np.asarray(K_move) * width, np.asarray(theta_move) * width
    return [(e.mean(0), e.std(0, ddof=1) / networks**0.5) for e in estimates]


def sum_over_neurons(left, right):
    return jnp.einsum("sna,snb->sab", left, right)


@pytest.mark.parametrize("activation", ["erf", pytest.param("gelu", marks=pytest.mark.slow)])
def test_mean_corrections_of_two_layers_against_exact_means(x64, activation):
    activation = ACTIVATIONS[activation]
    c = cumulants(gpntk.MLP(2, activation, **GENERIC), X, rank=1)
    first = GENERIC["bias_variance"] + GENERIC["weight_variance"] * X @ X.T / X.shape[1]
    small, large = (
        mean_shifts_given_the_first_layer(activation, first, width, 50_000, seed)
        for width, seed in ((32, 3), (64, 4))
    )
    for name, (mean, error), (mean2, error2) in zip(("K1", "theta1"), small, large, strict=True):
        z, relative_error = deviation(getattr(c, name), 2 * mean2 - mean, np.hypot(error, 2 * error2))
        assert z < 4, name
        assert relative_error < 0.03, name
        assert deviation(1.15 * getattr(c, name), 2 * mean2 - mean, np.hypot(error, 2 * error2))[0] > 4, name


@pytest.mark.parametrize(("activation", "allowed"), [("relu", 2e-3), ("erf", 1e-11)])
def test_duplicates_repeat_rows_of_the_tensors(activation, allowed):
    net = gpntk.MLP(2, ACTIVATIONS[activation], **GENERIC)
    once, twice = (cumulants(net, X[rows]) for rows in ([0, 1], [0, 1, 0]))
    index = np.array([0, 1, 0])
    for name in ("K", "theta", "K1", "theta1", *TENSORS):
        expected = getattr(once, name)
        expected = expected[np.ix_(*[index] * expected.ndim)]
        scale = np.linalg.norm(expected)
        assert np.linalg.norm(getattr(twice, name) - expected) < allowed * scale, name


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
    for name in TENSORS:
        error = np.linalg.norm(getattr(coarse, name) - getattr(fine, name))
        # Eight replicates estimate their spread to a quarter of itself.
        assert error < 4 * coarse.error_estimate[name], name
        assert fine.error_estimate[name] < 1e-3 * np.linalg.norm(getattr(fine, name)), name


@pytest.mark.parametrize("scale", [0.3, 1.5])
def test_exponential_against_its_closed_form(scale):
    """Means of exp(b(z_a + z_b + ...)) are known; those of the larger scale lie far out, where a lattice ends."""
    b, weight, x = 0.8, 0.5, scale * X
    c = cumulants(gpntk.MLP(1, gpntk.Exp(b=b), weight, 0.2), x, tolerance=1e-3)
    K = 0.2 + weight * x @ x.T / X.shape[1]
    variance = np.diagonal(K)
    two = np.exp(0.5 * b**2 * (variance[:, None] + variance + 2 * K))
    crossed = K[:, None, :, None] + K[:, None, None, :] + K[None, :, :, None] + K[None, :, None, :]
    expected = weight**2 * two[:, :, None, None] * two * np.expm1(b**2 * crossed)
    assert np.linalg.norm(c.V - expected) < 4 * c.error_estimate["V"] + 1e-12 * np.linalg.norm(expected)


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
    with pytest.raises(ValueError, match="not finite in double precision: their squares overflow or underflow"):
        gpntk.cumulants(gpntk.MLP(depth=1, activation=gpntk.Erf()), [[1e-80, 2e-80], [2e-80, -1e-80]])
    with pytest.raises(ValueError, match=r"`width` must be .* >= 1, got 0"):
        cumulants(net, X[:1]).at(0)
    with pytest.raises(ValueError, match="`n_samples` must be an integer >= 256, got 10"):
        sample_cumulants(net, X, 8, 10, jax.random.key(0))
