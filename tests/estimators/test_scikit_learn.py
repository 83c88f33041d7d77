"""The estimators keep scikit-learn's contract."""

import io
import pickle

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from gpntk import MLP, NTK, Erf, FiniteWidthRegressor, NTKClassifier, NTKRegressor

RNG = np.random.default_rng(0)
X = RNG.normal(size=(24, 2))
Y = np.sin(X).sum(1) + 0.1 * RNG.normal(size=24)
LABELS = np.where(Y > 0, "up", "down")
IRIS = load_iris(return_X_y=True)


def unmet(estimator):
    """Checks that cannot hold, with the reason."""
    if isinstance(estimator, NTKClassifier) and estimator.loss == "squared":
        # P(f_1 > f_0) = Phi(decision / (sqrt(2) std)): it depends on the spread at the input as well.
        return {
            "check_decision_proba_consistency": "inputs are ranked by the mean, and probabilities know the spread"
        }
    return {}


@parametrize_with_checks([NTKRegressor(), NTKClassifier()], expected_failed_checks=unmet)
def test_contract_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks(
    [
        NTKRegressor(time=10.0, normalize_y=True),
        NTKClassifier(time=10.0, reduction="mean"),
        NTKClassifier(time=10.0, loss="cross_entropy", reduction="mean"),
    ],
    expected_failed_checks=unmet,
)
def test_contract_of_scikit_learn_at_finite_time(estimator, check):
    check(estimator)


# Targets of the checks are not scaled: a width that is large beside c.
@pytest.mark.slow
@parametrize_with_checks(
    [
        FiniteWidthRegressor(width=1e8, n_points=16, normalize_y=True),
        FiniteWidthRegressor(
            width=1e4,
            n_points=16,
            normalize_y=True,
            method="mcmc",
            noise_variance=0.1,
            num_warmup=5,
            num_samples=5,
        ),
    ]
)
def test_contract_of_scikit_learn_at_finite_width(estimator, check):
    check(estimator)


def test_grid_over_a_parameter_of_the_network():
    grid = {"network__weight_variance": [0.5, 2.0, 8.0]}
    for network in (None, MLP(depth=1)):
        search = GridSearchCV(NTKRegressor(network, alpha=0.1), grid, cv=3).fit(X, Y)
        assert len(set(search.cv_results_["mean_test_score"])) == 3
        best = search.best_estimator_
        assert best.network.get_params()["weight_variance"] == pytest.approx(
            search.best_params_["network__weight_variance"], rel=1e-12
        )


def test_nested_parameters_replace_the_network_and_leave_the_original_alone():
    network = MLP(depth=1)
    model = NTKRegressor(network)
    assert model.get_params()["network__depth"] == 1
    model.set_params(network__depth=3, alpha=0.5)
    assert (model.network.depth, network.depth, model.alpha) == (3, 1, 0.5)
    model.set_params(network=MLP(depth=2), network__bias_variance=0.3)
    assert (model.network.depth, model.get_params()["network__bias_variance"]) == (2, pytest.approx(0.3))
    with pytest.raises(ValueError, match="Invalid parameter 'breadth'"):
        model.set_params(network__breadth=3)
    with pytest.raises(ValueError, match="must be an architecture"):
        NTKRegressor(NTK(network)).set_params(network__depth=2)


def test_cross_validation_in_worker_processes_gives_the_same_numbers():
    model = make_pipeline(StandardScaler(), NTKRegressor(MLP(activation=Erf()), time=5.0))
    serial, parallel = (cross_val_score(model, X, Y, cv=3, n_jobs=n) for n in (1, 2))
    assert np.array_equal(serial, parallel)


@pytest.mark.parametrize("time", [2.0, np.inf])
def test_stored_estimators_predict_the_same_numbers(time):
    fitted = NTKRegressor(time=time, normalize_y=True).fit(X, Y)
    file = io.BytesIO()
    joblib.dump(fitted, file)
    file.seek(0)
    for copy in (pickle.loads(pickle.dumps(fitted)), joblib.load(file), clone(fitted).fit(X, Y)):
        for a, b in zip(copy.predict(X, return_cov=True), fitted.predict(X, return_cov=True), strict=True):
            assert np.array_equal(a, b)
        assert np.array_equal(copy.predict(X, time=0.3), fitted.predict(X, time=0.3))


def test_pandas_in_and_names_out():
    table = pd.DataFrame(X, columns=["height", "weight"])
    for model, y in ((NTKRegressor(), Y), (NTKClassifier(), LABELS)):
        fitted = model.fit(table, pd.Series(y))
        assert fitted.feature_names_in_.tolist() == ["height", "weight"]
        assert fitted.n_features_in_ == 2
        assert np.array_equal(fitted.predict(table), model.fit(X, y).predict(X))


def test_pipeline_classifies_iris():
    model = make_pipeline(StandardScaler(), NTKClassifier(alpha=0.1))
    assert cross_val_score(model, *IRIS, cv=3).mean() > 0.93


FITTED = {
    "regressor": (NTKRegressor(alpha=0.1), {"alpha": 10.0, "network__depth": 4, "dtype": "float32"}),
    "classifier": (NTKClassifier(alpha=0.1), {"loss": "cross_entropy", "alpha": 1.0}),
    "closed form": (
        FiniteWidthRegressor(width=1e3, n_points=16),
        {"noise_variance": 5.0, "width": 1e4, "method": "mcmc"},
    ),
    "mcmc": (
        FiniteWidthRegressor(width=1e3, n_points=16, method="mcmc", num_warmup=2, num_samples=2),
        {"noise_variance": 5.0, "n_points": 32, "method": "closed_form"},
    ),
}


@pytest.mark.parametrize("name", FITTED)
def test_predictions_belong_to_the_fit(name):
    """What `set_params` changes is for the next one."""
    model, changes = FITTED[name]
    targets = [0, 1, 1, 0] if name == "classifier" else Y[:4]
    predict = (
        (lambda m: m.predict_proba(X))
        if name == "classifier"
        else lambda m: np.array(m.predict(X, return_std=True))
    )
    model = clone(model).fit(X[:4], targets)
    before = predict(model)
    np.testing.assert_allclose(predict(model.set_params(**changes)), before, rtol=1e-5)
