"""GPJax models without the Gram matrix, against GPJax with it."""

import equinox as eqx
import gpjax as gpx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gpntk import MLP, NTK, Erf, MatrixFree, MatrixFreePosterior, matrix_free_mll

RNG = np.random.default_rng(0)
X, X_TEST = RNG.normal(size=(150, 3)), RNG.normal(size=(6, 3))
Y = np.sin(X).sum(1, keepdims=True) + 0.1 * RNG.normal(size=(150, 1))
SOLVER = MatrixFree(tolerance=1e-10, rank=60)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def model(kernel=None):
    kernel = NTK(MLP(2, Erf(), bias_variance=0.2), variance=1.3) if kernel is None else kernel
    prior = gpx.gps.Prior(mean_function=gpx.mean_functions.Constant(0.3), kernel=kernel)
    return prior * gpx.likelihoods.Gaussian(obs_stddev=0.2)


def data():
    return gpx.Dataset(jnp.asarray(X), jnp.asarray(Y))


@pytest.mark.parametrize(
    ("kernel", "covariance"),
    [
        (None, "dense"),
        (gpx.kernels.Matern32(), "diagonal"),
        pytest.param(None, "diagonal", marks=pytest.mark.slow),
    ],
    ids=["ntk", "gpjax", "ntk alone"],
)
def test_posteriors_are_those_of_gpjax(kernel, covariance):
    free, exact = MatrixFreePosterior(model(kernel), data(), SOLVER), model(kernel).condition(data())
    np.testing.assert_allclose(free.representer_weights, exact.representer_weights, atol=1e-6)
    ours, theirs = (posterior(jnp.asarray(X_TEST), covariance=covariance) for posterior in (free, exact))
    np.testing.assert_allclose(ours.mean, theirs.mean, atol=1e-8)
    np.testing.assert_allclose(ours.covariance_matrix, theirs.covariance_matrix, atol=1e-8)


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 20])
def test_marginal_likelihood_within_its_error(rank):
    exact = gpx.objectives.conjugate_mll(model(), data())
    settings = {"solver": MatrixFree(tolerance=1e-10, rank=rank), "probes": 64, "return_std": True}
    estimates, errors = np.array(
        [matrix_free_mll(model(), data(), key=jax.random.key(k), **settings) for k in range(3)]
    ).T
    assert (abs(estimates - exact) < 4 * errors).all()
    # Independent keys: their spread is what the errors say, up to that of a chi with two degrees of freedom.
    assert 0.1 < np.std(estimates, ddof=1) / np.mean(errors) < 2.8


def test_preconditioning_lowers_the_error_of_the_determinant():
    errors = [
        matrix_free_mll(model(), data(), solver=MatrixFree(tolerance=1e-8, rank=r), probes=32, return_std=True)[1]
        for r in (0, 60)
    ]
    assert errors[1] < 0.6 * errors[0]


def test_full_rank_leaves_nothing_to_estimate():
    """With as many columns as inputs the preconditioner is the inverse, and its determinant exact."""
    settings = {"solver": MatrixFree(tolerance=1e-10, rank=150), "probes": 2, "return_std": True}
    estimate, error = matrix_free_mll(model(), data(), **settings)
    np.testing.assert_allclose(estimate, gpx.objectives.conjugate_mll(model(), data()), rtol=1e-8)
    assert error < 1e-8


def test_an_exhausted_matrix_leaves_nothing_to_estimate():
    """Three copies of every point: the factor stops at a third of the rank, and is all there is."""
    thrice = gpx.Dataset(jnp.tile(jnp.asarray(X[:40]), (3, 1)), jnp.tile(jnp.asarray(Y[:40]), (3, 1)))
    settings = {"solver": MatrixFree(tolerance=1e-10, rank=120), "probes": 2, "return_std": True}
    estimate, error = matrix_free_mll(model(), thrice, **settings)
    np.testing.assert_allclose(estimate, gpx.objectives.conjugate_mll(model(), thrice), rtol=1e-8)
    assert error < 1e-6


def test_too_few_nodes_show_in_the_error():
    narrow = model(gpx.kernels.RBF(lengthscale=1.0))
    exact = gpx.objectives.conjugate_mll(narrow, data())
    settings = {"solver": MatrixFree(tolerance=1e-8, rank=5), "probes": 16, "return_std": True, "lanczos_steps": 4}
    estimate, error = matrix_free_mll(narrow, data(), **settings)
    assert abs(estimate - exact) < 4 * error


def test_targets_that_are_no_numbers_are_refused():
    broken = gpx.Dataset(jnp.asarray(X), jnp.asarray(Y).at[3].set(jnp.nan))
    with pytest.raises(ValueError, match="`data` must have finite targets"):
        matrix_free_mll(model(), broken)


def test_gradients_are_unbiased():
    exact = eqx.filter_grad(lambda m: gpx.objectives.conjugate_mll(m, data()))(model())

    @eqx.filter_jit
    @eqx.filter_grad
    def gradient(m, key):
        return matrix_free_mll(m, data(), solver=SOLVER, probes=16, key=key)

    samples = [jax.tree.leaves(gradient(model(), jax.random.key(k))) for k in range(12)]
    for name, (*estimates, expected) in enumerate(zip(*samples, jax.tree.leaves(exact), strict=True)):
        error = np.std(estimates, ddof=1) / len(estimates) ** 0.5
        assert abs(np.mean(estimates) - expected) < 4 * error + 1e-6 * abs(expected), name
        assert error < 0.05 * abs(expected) + 1e-8, name


def test_gpjax_fits_with_it():
    objective = lambda m, d: -matrix_free_mll(m, d, solver=SOLVER)  # noqa: E731
    start = model()
    end, history = gpx.fit(
        model=start, objective=objective, train_data=data(), optim=optax.adam(0.1), num_iters=8, verbose=False
    )
    exact = [gpx.objectives.conjugate_mll(m, data()) for m in (start, end)]
    assert exact[1] > exact[0] + 10
    np.testing.assert_allclose(exact[0], -history[0], atol=5)


def test_an_indefinite_matrix_is_refused():
    bad = model(_Negative())
    with pytest.raises(ValueError, match="not positive definite"):
        MatrixFreePosterior(bad, data(), MatrixFree(rank=0))
    with pytest.raises(ValueError, match="not positive definite"):
        matrix_free_mll(bad, data())


class _Negative(gpx.kernels.RBF):
    def __call__(self, x, y):
        return -super().__call__(x, y)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": NTK}, TypeError, "`model` must be a GPJax prior times a Gaussian likelihood"),
        ({"data": X}, TypeError, r"`data` must be a gpjax\.Dataset"),
        ({"probes": 0}, ValueError, "`probes` must be an integer >= 1, got 0"),
        ({"lanczos_steps": 0}, ValueError, "`lanczos_steps` must be an integer >= 1, got 0"),
        ({"solver": "cg"}, TypeError, "`solver` must be settings such as"),
        ({"key": 3}, TypeError, "`key` must be a JAX random key"),
        ({"return_std": np.ones(2)}, TypeError, "`return_std` must be True or False"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    with pytest.raises(error, match=message):
        matrix_free_mll(**({"model": model(), "data": data()} | change))


@pytest.mark.parametrize(("targets", "shape"), [(None, "None"), (np.ones((150, 2)), r"\(150, 2\)")])
def test_several_outputs_are_refused(targets, shape):
    with pytest.raises(ValueError, match=rf"`train_data` must have one output of shape \(150, 1\), got {shape}"):
        MatrixFreePosterior(model(), gpx.Dataset(X, targets))
