"""Gradient flow and descent against differential equations, recursions, Gaussian processes and identities."""

import functools
import pickle

import gpjax as gpx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF
from table_kernel import Table, close, rows

import gpntk
from gpntk import MLP, NNGP, NTK, Erf, GradientDescent, GradientFlow

NET = MLP(depth=2, activation=Erf(), weight_variance=1.5, bias_variance=0.2)
RNG = np.random.default_rng(0)
X, X_TEST = RNG.normal(size=(9, 3)), RNG.normal(size=(4, 3))
Y = RNG.normal(size=(9, 2))
WEIGHTS = RNG.uniform(0.5, 2.0, size=9)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def flow(**options):
    return GradientFlow(NTK(NET), NNGP(NET), X, Y, **options)


def sensitivity_by_ode(ntk, time, rate, alpha, weights):
    """The matrix C with f_t(X) = f_0(X) + Theta C (y - f_0(X)), from its equation of motion."""
    n = len(ntk)

    def velocity(_, c):
        c = c.reshape(n, n)
        return (rate * (weights[:, None] * (np.eye(n) - ntk @ c) - alpha * c)).ravel()

    solution = scipy.integrate.solve_ivp(
        velocity, (0, time), np.zeros(n * n), method="DOP853", rtol=1e-12, atol=1e-14
    )
    return solution.y[:, -1].reshape(n, n)


@pytest.mark.parametrize("time", [0.1, 1.0, 10.0, 60.0])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"alpha": 0.3, "learning_rate": 0.7},
        {"alpha": 0.3, "sample_weight": WEIGHTS},
        {"alpha": 0.3, "learning_rate": 2.0, "sample_weight": WEIGHTS, "reduction": "mean"},
    ],
    ids=["plain", "decay", "weights", "mean"],
)
def test_mean_and_covariance_solve_the_equation_of_motion(options, time):
    weights = np.asarray(options.get("sample_weight", np.ones(9)))
    rate = options.get("learning_rate", 1.0) / (weights.sum() if options.get("reduction") == "mean" else 1)
    nngp, ntk = map(np.asarray, gpntk.nngp_and_ntk(NET, np.concatenate([X, X_TEST])))
    sensitivity = ntk[9:, :9] @ sensitivity_by_ode(ntk[:9, :9], time, rate, options.get("alpha", 0.0), weights)
    residual = np.concatenate([-sensitivity, np.eye(4)], axis=1)  # of (f_0(X), f_0(X_TEST))
    trained = flow(**options)
    close(trained.mean(X_TEST, time), sensitivity @ Y, 1e-8)
    close(trained.covariance(X_TEST, time), residual @ nngp @ residual.T, 1e-8)
    close(trained.variance(X_TEST, time), np.diag(residual @ nngp @ residual.T), 1e-8)


@pytest.mark.parametrize("solver", ["cholesky", "eigh"])
def test_infinite_time_is_the_limit(solver):
    late, limit = flow(alpha=0.05), flow(alpha=0.05, solver=solver)
    close(late.mean(X_TEST, 1e6), limit.mean(X_TEST, np.inf), 1e-11)
    close(late.covariance(X_TEST, 1e6), limit.covariance(X_TEST, np.inf), 1e-11)


def test_time_zero_is_the_prior():
    assert not np.any(flow().mean(X_TEST, 0.0))
    close(flow().covariance(X_TEST, 0), NNGP(NET).gram(X_TEST).as_matrix(), 1e-15)


def test_vector_of_times_adds_a_leading_axis():
    times = np.array([3.0, 0.0, np.inf, 0.5])
    trained = flow(alpha=0.1)
    mean, covariance, variance = (f(X_TEST, times) for f in (trained.mean, trained.covariance, trained.variance))
    assert mean.shape == (4, 4, 2)
    assert covariance.shape == (4, 4, 4)
    for i, time in enumerate(times):
        close(mean[i], trained.mean(X_TEST, time), 1e-12)
        close(covariance[i], trained.covariance(X_TEST, time), 1e-12)
        close(variance[i], np.diag(covariance[i]), 1e-12)
    one_output = GradientFlow(NTK(NET), None, X, Y[:, 1], alpha=0.1)
    close(one_output.mean(X_TEST, times), mean[..., 1], 1e-12)


def test_training_error_and_spread_fall_monotonically():
    times = np.concatenate([[0.0], np.geomspace(1e-3, 1e4, 30), [np.inf]])
    trained = flow()
    error = np.square(trained.mean(X, times) - Y).sum((1, 2))
    assert (np.diff(error) < 1e-20).all()
    assert error[-1] < 1e-20
    assert (np.diff(trained.variance(X, times).sum(1)) < 1e-14).all()


def test_a_diagonal_kernel_over_fifteen_decades():
    eigenvalues = np.geomspace(1e-12, 1e3, 16)
    y = np.linspace(1, 2, 16)
    trained = GradientFlow(Table(np.diag(eigenvalues)), None, rows(16), y)
    for time in [1e-3, 1.0, 1e3, 1e6, 1e12]:
        expected = -np.expm1(-eigenvalues * time) * y
        np.testing.assert_allclose(trained.mean(rows(16), time), expected, rtol=1e-13)
    np.testing.assert_allclose(trained.mean(rows(16), np.inf), y, rtol=1e-13)


def test_singular_gram_matrix_at_finite_time():
    # One direction cannot be learned; the other follows exp(-2 t).
    trained = GradientFlow(Table([[1.0, 1.0], [1.0, 1.0]]), None, rows(2), np.array([1.0, 0.0]))
    np.testing.assert_allclose(trained.mean(rows(2), 0.7), np.full(2, 0.5 * -np.expm1(-1.4)), rtol=1e-14)


# Bayesian identities: training only the readout is the Gaussian process


def test_readout_training_with_noise_is_the_gaussian_process_of_scikit_learn():
    kernel = gpx.kernels.RBF(lengthscale=1.3)
    trained = GradientFlow(kernel, kernel, X, Y[:, 0], alpha=0.2)
    expected = GaussianProcessRegressor(RBF(1.3), alpha=0.2, optimizer=None).fit(X, Y[:, 0])
    close(trained.mean(X_TEST, np.inf), expected.predict(X_TEST), 1e-12)
    # Its ensemble has the posterior covariance less that of the noise in the data.
    matrix = np.asarray(kernel.gram(X).as_matrix())
    gain = np.linalg.solve(matrix + 0.2 * np.eye(9), np.asarray(kernel.cross_covariance(X, X_TEST)))
    posterior = expected.predict(X_TEST, return_cov=True)[1]
    close(trained.covariance(X_TEST, np.inf), posterior - 0.2 * gain.T @ gain, 1e-12)


def test_noiseless_readout_training_is_the_posterior_of_gpjax():
    kernel = NNGP(NET)
    posterior = gpx.gps.Prior(mean_function=gpx.mean_functions.Zero(), kernel=kernel) * gpx.likelihoods.Gaussian(
        obs_stddev=1e-5
    )
    latent = posterior.condition(gpx.Dataset(X=jnp.asarray(X), y=jnp.asarray(Y[:, :1])))(
        jnp.asarray(X_TEST), covariance="dense"
    )
    trained = GradientFlow(kernel, kernel, X, Y[:, 0])
    # The noise of 1e-10 matters relatively to the smallest eigenvalue of K(X, X), 5e-4, and GPJax adds jitter.
    close(trained.mean(X_TEST, np.inf), latent.mean, 1e-4)
    close(trained.covariance(X_TEST, np.inf), latent.covariance(), 1e-4)


def test_equal_kernels_given_as_two_objects():
    kernel, same = NNGP(NET), NNGP(NET)
    for time in [2.0, np.inf]:
        a, b = (GradientFlow(kernel, k, X, Y, alpha=0.1).covariance(X_TEST, time) for k in (kernel, same))
        close(a, b, 1e-13)


@pytest.mark.parametrize(
    ("of_ntk", "of_nngp"),
    [
        pytest.param({"width": 50}, {}, marks=pytest.mark.slow),
        pytest.param({}, {"width": 50}, marks=pytest.mark.slow),
        pytest.param({"width": 50}, {"width": 50}, marks=pytest.mark.slow),
        ({"variance": 2.0}, {}),
        ({}, {"active_dims": [0, 2]}),
    ],
)
def test_kernels_of_one_network_that_nngp_and_ntk_does_not_give(of_ntk, of_nngp):
    ntk, nngp = NTK(NET, **of_ntk), NNGP(NET, **of_nngp)
    # Products with 1 are evaluated one by one, from what each kernel says of itself.
    close(
        GradientFlow(ntk, nngp, X, Y, alpha=0.1).covariance(X_TEST, np.inf),
        GradientFlow(1.0 * ntk, 1.0 * nngp, X, Y, alpha=0.1).covariance(X_TEST, np.inf),
        1e-12,
    )


# Weights


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("time", [0.5, 20.0, np.inf])
def test_weights_count_rows(time, reduction):
    counts = np.array([2, 1, 0, 1, 3, 1, 0, 1, 1])
    repeated = np.repeat(np.arange(9), counts)
    options = {"alpha": 0.1, "reduction": reduction}
    weighted = flow(sample_weight=counts, **options)
    literal = GradientFlow(NTK(NET), NNGP(NET), X[repeated], Y[repeated], **options)
    close(weighted.mean(X_TEST, time), literal.mean(X_TEST, time), 1e-12)
    close(weighted.covariance(X_TEST, time), literal.covariance(X_TEST, time), 1e-12)


def test_mean_reduction_slows_the_clock():
    close(flow(reduction="mean").mean(X_TEST, 9 * 1.3), flow().mean(X_TEST, 1.3), 1e-14)


# Gradient descent


@pytest.mark.parametrize("steps", [0, 1, 2, 7, 40])
def test_descent_is_the_recursion(steps):
    descent = GradientDescent(NTK(NET), NNGP(NET), X, Y, 0.05, alpha=0.3, sample_weight=WEIGHTS)
    _, ntk = map(np.asarray, gpntk.nngp_and_ntk(NET, np.concatenate([X, X_TEST])))
    c = np.zeros((9, 9))
    for _ in range(steps):
        c += 0.05 * (WEIGHTS[:, None] * (np.eye(9) - ntk[:9, :9] @ c) - 0.3 * c)
    np.testing.assert_allclose(descent.mean(X_TEST, steps), ntk[9:, :9] @ c @ Y, atol=1e-13)


def test_descent_with_small_steps_is_the_flow_and_ends_where_it_ends():
    small = GradientDescent(NTK(NET), NNGP(NET), X, Y, 1e-6, alpha=0.3)
    # The error of one step relative to its size is half of step times largest eigenvalue, 2e-5.
    close(small.mean(X_TEST, 10**6), flow(alpha=0.3).mean(X_TEST, 1.0), 3e-5)
    close(small.covariance(X_TEST, np.inf), flow(alpha=0.3).covariance(X_TEST, np.inf), 1e-10)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_largest_learning_rate_is_sharp(reduction):
    limit = float(flow(alpha=0.3, reduction=reduction).max_learning_rate())
    options = {"alpha": 0.3, "reduction": reduction}
    inside = GradientDescent(NTK(NET), None, X, Y, 0.99 * limit, **options)
    close(inside.mean(X_TEST, 10**5), flow(**options).mean(X_TEST, np.inf), 1e-9)
    with pytest.raises(ValueError, match="max_learning_rate"):
        GradientDescent(NTK(NET), None, X, Y, 1.001 * limit, **options).mean(X_TEST, 3)


# Derivatives

ANGLES = np.arange(8) * np.pi / 4
# A regular octagon: rotations leave the kernel unchanged, so eigenvalues come in equal pairs.
OCTAGON = 2 - 2 * np.cos(ANGLES[:, None] - ANGLES)
GENERIC = np.square(X[:8, None] - X[None, :8]).sum(-1)


@functools.partial(jax.jit, static_argnums=2)
def outcome(inverse_width, alpha, time, distances):
    kernel = Table(jnp.exp(-inverse_width * jnp.asarray(distances)))
    trained = GradientFlow(kernel, Table(kernel.matrix**2), rows(6), Y[:6], alpha=alpha)
    return trained.mean(rows(8), time)[6:].sum() + trained.covariance(rows(8), time)[6, 7]


def central_difference(function, x, step=1e-5):
    return (function(x + step) - function(x - step)) / (2 * step)


@pytest.mark.parametrize("distances", [OCTAGON, GENERIC], ids=["octagon", "generic"])
@pytest.mark.parametrize("time", [0.7, 30.0, np.inf])
def test_gradients_in_hyperparameters_and_alpha(time, distances):
    gradient = jax.grad(outcome, (0, 1))(0.8, 0.1, time, distances)
    # Truncation of the central difference is about 1e-10, its rounding 1e-11.
    expected = [
        central_difference(lambda w: outcome(w, 0.1, time, distances), 0.8),
        central_difference(lambda a: outcome(0.8, a, time, distances), 0.1),
    ]
    np.testing.assert_allclose(gradient, expected, rtol=1e-7)


def test_gradient_in_a_variance_of_the_network():
    @jax.jit
    def loss(weight_variance):
        net = MLP(depth=2, activation=Erf(), weight_variance=weight_variance, bias_variance=0.2)
        return GradientFlow(NTK(net), None, X, Y).mean(X_TEST, 2.0)[0, 0]

    np.testing.assert_allclose(jax.grad(loss)(1.5), central_difference(loss, 1.5), rtol=1e-6)


def test_gradient_of_descent():
    @jax.jit
    def loss(inverse_width):
        kernel = Table(jnp.exp(-inverse_width * jnp.asarray(OCTAGON)))
        return GradientDescent(kernel, None, rows(8), Y[:8], 0.4).mean(rows(8), 5).sum()

    np.testing.assert_allclose(jax.grad(loss)(0.8), central_difference(loss, 0.8), rtol=1e-7)


def test_gradient_in_time():
    traced_time = jax.jit(lambda t: outcome.__wrapped__(0.8, 0.1, t, OCTAGON))
    gradient, expected = jax.grad(traced_time)(0.7), central_difference(traced_time, 0.7)
    np.testing.assert_allclose(gradient, expected, rtol=1e-7)


def test_second_derivatives_are_exact_at_infinite_time_and_refused_at_finite():
    gradient = jax.jit(jax.grad(lambda w: outcome(w, 0.1, np.inf, OCTAGON)))
    np.testing.assert_allclose(jax.grad(gradient)(0.8), central_difference(gradient, 0.8), rtol=1e-7)
    for outer in (jax.grad, jax.jacfwd):
        with pytest.raises(NotImplementedError, match="time = inf"):
            outer(jax.grad(lambda w: outcome(w, 0.1, 0.7, OCTAGON)))(0.8)


def test_one_object_serves_jit_and_vmap():
    trained = flow(alpha=0.1)
    times = jnp.array([0.5, 2.0])
    expected = trained.mean(X_TEST, times)
    fresh = flow(alpha=0.1)
    close(jax.jit(lambda t: fresh.mean(X_TEST, t))(times), expected, 1e-13)
    close(fresh.mean(X_TEST, times), expected, 1e-13)  # nothing of the trace was left in its caches
    close(jax.vmap(lambda t: trained.mean(X_TEST, t))(times), expected, 1e-13)


# Precision and bad input


def test_float32_stays_float32_and_agrees():
    single = GradientFlow(NTK(NET), NNGP(NET), X.astype(np.float32), Y, alpha=0.1)
    for time in [1.0, 100.0, np.inf]:
        mean, covariance = single.mean(X_TEST, time), single.covariance(X_TEST, time)
        assert mean.dtype == covariance.dtype == jnp.float32
        # eps times the condition number of B, 500.
        close(mean, flow(alpha=0.1).mean(X_TEST, time), 1e-4)
        close(covariance, flow(alpha=0.1).covariance(X_TEST, time), 1e-4)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("solver", ["auto", "matrix_free"])
def test_half_precision_is_computed_in_float32(dtype, solver):
    half = jnp.asarray(X, dtype)
    trained = GradientFlow(NTK(NET), NNGP(NET), half, Y, alpha=0.1, solver=solver)
    single = GradientFlow(NTK(NET), NNGP(NET), half.astype(jnp.float32), Y, alpha=0.1, solver=solver)
    for time in (1.0, np.inf):
        np.testing.assert_array_equal(trained.mean(half, time), single.mean(half.astype(jnp.float32), time))
        assert trained.variance(half, time).dtype == jnp.float32


def test_pickled_object_gives_the_same_numbers_without_the_float64_flag_when_loading():
    trained = flow(alpha=0.1)
    trained.mean(X_TEST, 1.0)
    stored = pickle.dumps(trained)
    with jax.enable_x64(False):
        loaded = pickle.loads(stored)
    assert np.array_equal(loaded.mean(X_TEST, 1.0), trained.mean(X_TEST, 1.0))
    assert np.array_equal(loaded.covariance(X_TEST, np.inf), trained.covariance(X_TEST, np.inf))


DUPLICATES = np.concatenate([X, X[:1]])


@pytest.mark.parametrize("time", [1e17, np.inf])
@pytest.mark.parametrize("solver", ["auto", "eigh"])
def test_singular_gram_matrix_is_refused_with_a_remedy(solver, time):
    trained = GradientFlow(NTK(NET), None, DUPLICATES, np.arange(10.0), solver=solver)
    with pytest.raises(ValueError, match=r"Gram matrix.*float64.*Raise `alpha`"):
        trained.mean(X_TEST, time)


def test_float32_is_told_to_use_float64():
    x = np.linspace(0, 1, 40, dtype=np.float32)[:, None]
    with pytest.raises(ValueError, match=r"compute in float64"):
        GradientFlow(NTK(NET), None, x, x[:, 0]).mean(x, np.inf)


def test_singular_gram_matrix_is_an_error_inside_jit():
    @jax.jit
    def mean(inputs):
        return GradientFlow(NTK(NET), None, inputs, jnp.arange(10.0)).mean(X_TEST, np.inf)

    with pytest.raises(jax.errors.JaxRuntimeError, match="not positive definite"):
        jax.block_until_ready(mean(DUPLICATES))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 0.0}, "`learning_rate` must be"),
        ({"alpha": -1.0}, "`alpha` must be"),
        ({"reduction": "max"}, "`reduction` must be one of"),
        ({"loss": "hinge"}, "`loss` must be one of"),
        ({"solver": "lu"}, "`solver` must be one of"),
        ({"sample_weight": np.ones(3)}, "`sample_weight` must have shape"),
        ({"sample_weight": -np.ones(9)}, "`sample_weight` must be finite, >= 0"),
        ({"sample_weight": np.zeros(9)}, "somewhere positive"),
        ({"loss": "cross_entropy"}, "class probabilities"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        flow(**options)


@pytest.mark.parametrize("y", [np.ones(8), np.ones((9, 2, 1)), np.full(9, np.nan), np.array(["a"] * 9)])
def test_bad_targets_are_refused(y):
    with pytest.raises(ValueError, match="`y` must"):
        GradientFlow(NTK(NET), None, X, y)


@pytest.mark.parametrize("time", [-1.0, np.nan, np.array([1.0, -2.0]), np.ones((2, 2))])
def test_bad_times_are_refused(time):
    with pytest.raises(ValueError, match="`time` must be"):
        flow().mean(X_TEST, time)


def test_other_misuse_is_explained():
    with pytest.raises(ValueError, match="`steps` must be whole"):
        GradientDescent(NTK(NET), None, X, Y, 1e-3).mean(X_TEST, 1.5)
    with pytest.raises(ValueError, match="needs the prior"):
        GradientFlow(NTK(NET), None, X, Y).covariance(X_TEST, 1.0)
    with pytest.raises(ValueError, match="infinite time only"):
        flow(solver="cholesky").mean(X_TEST, 1.0)
    with pytest.raises(ValueError, match="2 features"):
        flow().mean(X_TEST[:, :2], 1.0)
    with pytest.raises(TypeError, match="`ntk` must be"):
        GradientFlow(NET, None, X, Y)
