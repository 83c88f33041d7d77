"""Our kernels wherever GPJax takes one: exact, latent and sparse models, optimisers, transformations, printing."""

import copy
import io
import pickle

import equinox as eqx
import gpjax as gpx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import paramax
import pytest
from gpjax.parameters import PositiveReal, val
from rich.console import Console

import gpntk
from gpntk import NNGP, NTK

KINDS = [NNGP, NTK]


@pytest.fixture
def data(x64):
    x = np.random.default_rng(0).normal(size=(14, 3))
    return gpx.Dataset(X=jnp.asarray(x), y=jnp.asarray(np.sin(x[:, :1])))


def network(weight_variance=1.2, bias_variance=0.3):
    return gpntk.MLP(1, gpntk.Erf(), weight_variance=weight_variance, bias_variance=bias_variance)


def posterior(kernel, noise=0.1):
    prior = gpx.gps.Prior(mean_function=gpx.mean_functions.Zero(), kernel=kernel)
    return prior * gpx.likelihoods.Gaussian(obs_stddev=noise)


def loss(model, data):
    return -gpx.objectives.conjugate_mll(model, data)


@pytest.mark.parametrize(("kind", "covariance"), [(NNGP, "dense"), (NTK, "diagonal")])
def test_exact_posterior_is_the_textbook_one(kind, covariance, data):
    kernel, new = kind(network()), data.X[:5] + 0.5
    model = posterior(kernel)
    predicted = model.condition(data)(new, covariance=covariance)
    gram = kernel.gram(data.X).as_matrix() + (0.1**2 + model.prior.jitter) * np.eye(data.n)
    cross = kernel.cross_covariance(data.X, new)
    np.testing.assert_allclose(predicted.mean, (cross.T @ np.linalg.solve(gram, data.y)).ravel(), rtol=1e-9)
    expected = kernel.gram(new).as_matrix() - cross.T @ np.linalg.solve(gram, cross)
    # GPJax adds its jitter of 1e-6 to predictive covariances.
    np.testing.assert_allclose(predicted.variance, np.diagonal(expected), rtol=0, atol=2e-6)
    if covariance == "dense":
        np.testing.assert_allclose(predicted.covariance_matrix, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_of_the_evidence_is_its_difference_quotient(kind, data):
    def evidence(parameters):
        weight_variance, bias_variance, scale = parameters
        return loss(posterior(kind(network(weight_variance, bias_variance), variance=scale)), data)

    point, step = jnp.array([1.2, 0.3, 0.8]), 1e-5
    evaluate = jax.jit(evidence)
    differences = [(evaluate(point + step * e) - evaluate(point - step * e)) / (2 * step) for e in jnp.eye(3)]
    # Central differences err by step^2 and eps |evidence| / step, about 1e-9.
    np.testing.assert_allclose(jax.grad(evidence)(point), jnp.array(differences), rtol=1e-6)


FITS = {
    "fit": lambda **kw: gpx.fit(**kw, optim=optax.adam(0.1), num_iters=15, verbose=False),
    "fit_scipy": lambda **kw: gpx.fit_scipy(**kw, max_iters=5, verbose=False),
    "fit_lbfgs": lambda **kw: gpx.fit_lbfgs(**kw, max_iters=5),
}


# GPJax calls a function by the name it had before Optax 0.2.5.
@pytest.mark.filterwarnings("ignore:optax.tree_utils.tree_l2_norm")
@pytest.mark.parametrize(
    ("fit", "bias_variance"),
    [
        pytest.param(fit, bias, marks=[] if fit == "fit" or bias == 0.0 else pytest.mark.slow)
        for fit in FITS
        for bias in (0.0, 1e-12, 0.3)
    ],
)
def test_optimisers_train_the_variances(fit, bias_variance, data):
    kernel = NTK(network(bias_variance=bias_variance), variance=1.0)
    model = posterior(kernel)
    trained, _ = FITS[fit](model=model, objective=loss, train_data=data)
    assert float(loss(trained, data)) < float(loss(model, data)) - 1.0
    net = trained.prior.kernel.net
    assert np.isfinite(float(val(net.weight_variance)))
    assert abs(float(val(net.weight_variance)) - 1.2) > 0.05
    assert abs(float(val(trained.prior.kernel.variance)) - 1.0) > 0.05
    if bias_variance == 0.0:
        assert net.bias_variance is None
    elif bias_variance == 0.3:
        assert abs(float(val(net.bias_variance)) - 0.3) > 0.01
    else:
        assert 0 < float(val(net.bias_variance)) < 1e-11


@pytest.mark.parametrize("freeze", ["parameter", "kernel"])
def test_frozen_parameters_stay(freeze, data):
    if freeze == "parameter":
        kernel = NTK(network(weight_variance=paramax.non_trainable(PositiveReal(1.2))))
    else:
        kernel = paramax.non_trainable(NTK(network()))
    model = posterior(kernel)
    trained, history = FITS["fit"](model=model, objective=loss, train_data=data)
    assert history[-1] < history[0]
    np.testing.assert_allclose(val(trained.prior.kernel.net.weight_variance), 1.2, rtol=1e-12)


def test_collapsed_bound_is_exact_with_all_points(data):
    """With inducing points at the data, the collapsed bound is the exact evidence up to GPJax's jitter."""
    model = posterior(NNGP(network()))
    collapsed = gpx.variational_families.CollapsedVariationalGaussian(model=model, inducing_inputs=data.X)
    bound = gpx.objectives.collapsed_elbo(collapsed, data)
    np.testing.assert_allclose(bound, -loss(model, data), atol=0.01)


@pytest.mark.slow
def test_inducing_points_are_trained(data):
    model = posterior(NNGP(network()))
    whitened = gpx.variational_families.WhitenedVariationalGaussian(model=model, inducing_inputs=data.X[:6])
    objective = lambda model, data: -gpx.objectives.elbo(model, data)  # noqa: E731
    trained, history = FITS["fit"](model=whitened, objective=objective, train_data=data)
    assert history[-1] < history[0]
    assert np.isfinite(np.asarray(trained.predict(data.X[:2]).variance)).all()
    assert float(jnp.max(jnp.abs(val(trained.inducing_inputs) - data.X[:6]))) > 0.1


def test_latent_models(data):
    labels = gpx.Dataset(X=data.X, y=(data.y > 0).astype(data.y.dtype))
    prior = gpx.gps.Prior(mean_function=gpx.mean_functions.Zero(), kernel=NTK(network()))
    model = prior * gpx.likelihoods.Bernoulli()
    objective = lambda model, data: -gpx.objectives.log_posterior_density(model, data)  # noqa: E731
    trained, history = FITS["fit"](model=model, objective=objective, train_data=labels)
    assert history[-1] < history[0]
    probability = trained.likelihood(trained.condition(labels)(data.X)).mean
    assert np.mean((np.ravel(probability) > 0.5) == (np.ravel(data.y) > 0)) > 0.9


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_one_pair_equals_the_matrix(kind, dtype, data):
    kernel, x = kind(network(), variance=2.0), data.X[:4].astype(dtype)
    cross = kernel.cross_covariance(x, x)
    pairs = jax.vmap(lambda a: jax.vmap(lambda b: kernel(a, b))(x))(x)
    assert pairs.dtype == cross.dtype == dtype
    np.testing.assert_allclose(pairs, cross, rtol=0, atol=8 * np.finfo(dtype).eps)  # values of order one


@pytest.mark.parametrize(("activation", "dtype"), [(gpntk.ReLU(), jnp.float32), (gpntk.Erf(), jnp.float64)])
def test_derivatives_at_coincidence_are_those_along_the_diagonal(activation, dtype, data):
    """Half the derivative of k(x, x), by symmetry; jit changes nothing."""
    kernel, x = NTK(gpntk.MLP(1, activation, bias_variance=0.1)), data.X[0].astype(dtype)
    gradient = jax.jit(jax.grad(lambda x, y: kernel(x, y)))(x, x)
    np.testing.assert_allclose(2 * gradient, jax.grad(lambda x: kernel(x, x))(x), rtol=20 * np.finfo(dtype).eps)
    assert np.isfinite(np.asarray(gradient)).all()
    assert float(jnp.max(jnp.abs(gradient))) > 0.1


@pytest.mark.parametrize("active_dims", [[0, 2], [-1, 0], list(np.array([2, 1])), slice(0, 2), slice(0, 3, 2)])
def test_active_dims_are_columns(active_dims, data):
    kernel = NTK(network(), active_dims=active_dims)
    expected = NTK(network()).gram(data.X[:, active_dims]).as_matrix()
    np.testing.assert_allclose(kernel.gram(data.X).as_matrix(), expected, rtol=1e-13)
    assert kernel.n_dims == 2
    assert NTK(network(), n_dims=3).gram(data.X).as_matrix().shape == (14, 14)


def test_stacked_kernels_are_mapped(data):
    variances = jnp.array([0.5, 1.0, 2.0])
    stacked = eqx.filter_vmap(lambda v: NTK(network(weight_variance=v), variance=v))(variances)
    grams = eqx.filter_vmap(lambda kernel: kernel.gram(data.X).as_matrix())(stacked)
    for v, gram in zip([0.5, 1.0, 2.0], grams, strict=True):
        expected = NTK(network(weight_variance=v), variance=v).gram(data.X).as_matrix()
        np.testing.assert_allclose(gram, expected, rtol=1e-12)


def test_float32_inputs_stay_float32_when_x64_is_on(data):
    x = data.X.astype(jnp.float32)
    kernel = NTK(network(), variance=2.0)
    assert {kernel.gram(x).as_matrix().dtype, kernel.cross_covariance(x, x).dtype} == {jnp.dtype("float32")}
    assert {k.dtype for k in gpntk.nngp_and_ntk(network(), x)} == {jnp.dtype("float32")}


def test_networks_made_without_x64_are_exact_with_it():
    before = NTK(network(weight_variance=1.1, bias_variance=0.3), variance=0.7)
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)))
        after = NTK(network(weight_variance=1.1, bias_variance=0.3), variance=0.7)
        np.testing.assert_allclose(val(before.net.weight_variance), 1.1, rtol=1e-15)
        np.testing.assert_array_equal(before.gram(x).as_matrix(), after.gram(x).as_matrix())


def test_printing():
    kernel = NTK(network(), variance=2.0) + gpx.kernels.RBF()
    assert "activation=Erf(a=1.0, b=1.0, c=0.0)" in repr(kernel)
    for show in (lambda c: gpx.summarise(kernel, console=c), lambda c: c.print(kernel)):
        console = Console(file=io.StringIO(), width=200)
        show(console)
        text = console.file.getvalue()
        assert "kernels[0].net.weight_variance" in text
        assert "1.2" in text
        assert "5 parameters, 5 trainable" in text


def test_copies_are_equal(tmp_path):
    kernel = NTK(network(), variance=2.0, active_dims=[0, 1]) * NNGP(network()) + 0.5
    for duplicate in (copy.deepcopy(kernel), pickle.loads(pickle.dumps(kernel))):
        assert eqx.tree_equal(duplicate, kernel)
    eqx.tree_serialise_leaves(tmp_path / "kernel.eqx", kernel)
    other = NTK(network(weight_variance=5.0), variance=1.0, active_dims=[0, 1]) * NNGP(network()) + 0.5
    loaded = eqx.tree_deserialise_leaves(tmp_path / "kernel.eqx", other)
    np.testing.assert_allclose(val(loaded.kernels[0].kernels[0].net.weight_variance), 1.2, rtol=1e-6)
