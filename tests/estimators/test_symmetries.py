"""Estimators with symmetric architectures and averaged kernels: nothing about them is special."""

import gpjax as gpx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.base import clone

import gpntk
from gpntk.groups import C4, FiniteGroup, augment

SHAPE = (4, 4, 1)
IMAGES, SIGNALS = C4(SHAPE), FiniteGroup.symmetric(3)
VARIANCES = {"weight_variance": 1.3, "bias_variance": 0.2}
RBF = gpx.kernels.RBF(lengthscale=jnp.linspace(1.0, 3.0, 3))
NETWORKS = {
    "planar": (gpntk.PlanarGroupCNN("C4", SHAPE, **VARIANCES), IMAGES),
    "finite": (gpntk.FiniteGroupCNN(SIGNALS, **VARIANCES), SIGNALS),
    "averaged": (gpntk.GroupAveraged(RBF, SIGNALS), SIGNALS),
}
ROUNDING = 1e-12


def data(group, n, seed=0):
    return np.random.default_rng(seed).normal(size=(n, group.n_features))


@pytest.mark.parametrize("name", NETWORKS)
def test_predictions_of_invariant_estimators_do_not_see_the_group(name):
    network, group = NETWORKS[name]
    x, x_test = data(group, 6), data(group, 3, seed=1)
    prior = network if name == "averaged" else None
    models = [
        gpntk.NTKRegressor(network, prior=prior, alpha=0.1, time=time).fit(moved, np.sin(x).sum(1))
        for time in (3.0, np.inf)
        for moved in (x, np.asarray(group.transform(x, 1)))
    ]
    for plain, of_moved in (models[:2], models[2:]):
        mean, std = plain.predict(x_test, return_std=True)
        assert np.std(mean) > 0.01
        for model in (plain, of_moved):
            for element in range(group.order):
                with jax.enable_x64(True):
                    moved = np.asarray(group.transform(x_test, element))
                moved_mean, moved_std = model.predict(moved, return_std=True)
                np.testing.assert_allclose(moved_mean, mean, atol=ROUNDING)
                # A variance is a difference of numbers of order one, and a standard deviation its root.
                np.testing.assert_allclose(moved_std**2, std**2, atol=ROUNDING)


def test_three_estimators_make_one_prediction():
    cnn = gpntk.CNN(SHAPE, **VARIANCES)
    x, x_test, y = data(IMAGES, 5), data(IMAGES, 3, seed=1), np.random.default_rng(2).normal(size=5)
    with jax.enable_x64(True):
        many, labels = (np.asarray(a) for a in augment(x, y, IMAGES))
    for time in (1.0, np.inf):
        options = {"time": time, "reduction": "mean"}
        averaged = gpntk.GroupAveraged(gpntk.NTK(cnn), IMAGES)
        predictions = [
            gpntk.NTKRegressor(cnn, alpha=0.4, **options).fit(many, labels).predict(x_test),
            gpntk.NTKRegressor(averaged, alpha=0.1, **options).fit(x, y).predict(x_test),
            gpntk.NTKRegressor(gpntk.equivariant(cnn, IMAGES), alpha=0.1, **options).fit(x, y).predict(x_test),
        ]
        assert np.max(np.abs(predictions[0])) > 0.01
        for other in predictions[1:]:
            np.testing.assert_allclose(other, predictions[0], atol=1e-10)


def test_parameters_of_networks_are_those_of_estimators():
    network = NETWORKS["planar"][0]
    model = clone(gpntk.NTKClassifier(network)).set_params(network__depth=1, network__group="D4")
    assert model.network == network.replace(depth=1, group="D4")
    x, labels = data(IMAGES, 6), np.array([0, 1, 2, 0, 1, 2])
    assert (model.fit(x, labels).predict(np.asarray(IMAGES.transform(x, 3))) == labels).all()


def test_variances_of_group_networks_are_trained_by_gpjax(x64):
    x = jnp.asarray(data(IMAGES, 5))
    dataset = gpx.Dataset(x, jnp.sin(x.sum(1, keepdims=True)))
    kernel = gpntk.NNGP(NETWORKS["planar"][0], variance=0.5) + 0.1
    prior = gpx.gps.Prior(mean_function=gpx.mean_functions.Zero(), kernel=kernel)
    posterior = prior * gpx.likelihoods.Gaussian()
    objective = lambda model, batch: -gpx.objectives.conjugate_mll(model, batch)  # noqa: E731
    fitted, history = gpx.fit_scipy(
        model=posterior, objective=objective, train_data=dataset, max_iters=3, verbose=False
    )
    assert history[-1] < history[0]
    moved = fitted.predict(IMAGES.transform(x, 1), train_data=dataset).mean
    np.testing.assert_allclose(moved, fitted.predict(x, train_data=dataset).mean, rtol=1e-9)
