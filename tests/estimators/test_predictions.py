"""What the estimators predict, against the flow, closed forms and sampling."""

import diffrax
import gpjax as gpx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF
from sklearn.kernel_ridge import KernelRidge

import gpntk
from gpntk import MLP, NNGP, NTK, GradientFlow, NTKClassifier, NTKRegressor
from gpntk.estimators._classifier import probability_of_largest

RNG = np.random.default_rng(1)
X, X_TEST = RNG.normal(size=(20, 2)), RNG.normal(size=(5, 2))
Y = np.stack([np.sin(X).sum(1), X[:, 0] * X[:, 1]], axis=1)
NET = MLP(depth=2, bias_variance=0.1)
LABELS = np.array(["a", "b", "c"])[(np.digitize(X[:, 0], [-0.5, 0.5]))]


@pytest.mark.parametrize("time", [0.0, 0.7, np.inf])
def test_regressor_is_the_flow_in_double_precision(time):
    assert not jax.config.jax_enable_x64
    model = NTKRegressor(NET, time=time, alpha=0.1, learning_rate=0.5).fit(X, Y)
    mean, covariance = model.predict(X_TEST, return_cov=True)
    std = model.predict(X_TEST, return_std=True)[1]
    assert mean.dtype == std.dtype == covariance.dtype == np.float64
    with jax.enable_x64(True):
        flow = GradientFlow(NTK(NET), NNGP(NET), X, Y, learning_rate=0.5, alpha=0.1)
        np.testing.assert_allclose(mean, flow.mean(X_TEST, time), atol=1e-13)
        expected = np.asarray(flow.covariance(X_TEST, time))
    for output in range(2):
        np.testing.assert_allclose(covariance[..., output], expected, atol=1e-13)
        np.testing.assert_allclose(std[:, output] ** 2, np.diag(expected), atol=1e-13)


def test_time_is_overridden_without_a_new_fit():
    models = [NTKRegressor(NET, time=t, alpha=0.1).fit(X, Y) for t in (0.5, np.inf)]
    for model in models:
        np.testing.assert_allclose(model.predict(X_TEST, time=0.5), models[0].predict(X_TEST), atol=1e-12)
        np.testing.assert_allclose(
            model.predict_path(X_TEST, [0.5, np.inf]), [m.predict(X_TEST) for m in models], atol=1e-12
        )


def test_converged_mean_is_kernel_ridge_regression():
    with jax.enable_x64(True):
        gram = np.asarray(NTK(NET).gram(X).as_matrix())
        cross = np.asarray(NTK(NET).cross_covariance(X_TEST, X))
    weights = np.random.default_rng(3).uniform(0.1, 3, size=20)
    expected = KernelRidge(alpha=0.3, kernel="precomputed").fit(gram, Y, sample_weight=weights)
    model = NTKRegressor(NET, alpha=0.3).fit(X, Y, sample_weight=weights)
    np.testing.assert_allclose(model.predict(X_TEST), expected.predict(cross), atol=1e-12)
    np.testing.assert_allclose(model.dual_coef_, expected.dual_coef_, atol=1e-10)


def test_normalised_targets_with_weights():
    counts = np.random.default_rng(2).integers(0, 4, size=20)
    repeated = np.repeat(np.arange(20), counts)
    shifted = 100 + 1000 * Y
    weighted = NTKRegressor(NET, normalize_y=True, time=3.0).fit(X, shifted, sample_weight=counts)
    literal = NTKRegressor(NET, normalize_y=True, time=3.0).fit(X[repeated], shifted[repeated])
    std = weighted.predict(X_TEST, return_std=True)[1]
    # The targets vary by 1000.
    np.testing.assert_allclose(weighted.predict(X_TEST), literal.predict(X_TEST), atol=1e-9)
    np.testing.assert_allclose(std, literal.predict(X_TEST, return_std=True)[1], rtol=1e-10)
    mean, covariance = weighted.predict(X_TEST, return_cov=True)
    assert mean.shape == (5, 2)
    assert covariance.shape == (5, 5, 2)
    np.testing.assert_allclose(np.sqrt(np.einsum("iij->ij", covariance)), std)
    spread = NTKRegressor(NET).fit(X, Y[:, 0]).predict(X_TEST, return_std=True)[1]
    for number in (7.0, 0.1):  # the mean of equal numbers may differ from them by rounding
        constant = NTKRegressor(NET, normalize_y=True).fit(X, np.full(20, number))
        mean, std = constant.predict(X_TEST, return_std=True)
        np.testing.assert_allclose(mean, number)
        np.testing.assert_allclose(std, spread)


def test_gpjax_kernel_in_the_place_of_a_network():
    kernel = gpx.kernels.RBF(lengthscale=0.9)
    model = NTKRegressor(kernel, prior=kernel, alpha=0.2).fit(X, Y[:, 0])
    expected = GaussianProcessRegressor(RBF(0.9), alpha=0.2, optimizer=None).fit(X, Y[:, 0])
    # The parameter of GPJax was made in single precision.
    np.testing.assert_allclose(model.predict(X_TEST), expected.predict(X_TEST), atol=1e-5)
    with pytest.raises(ValueError, match="`prior` must be a GPJax kernel for a spread"):
        NTKRegressor(kernel).fit(X, Y).predict(X, return_std=True)


def test_samples_have_the_predicted_moments():
    model = NTKRegressor(NET, time=2.0).fit(X, Y)
    draws = model.sample_y(X_TEST, n_samples=4000, random_state=1)
    mean, covariance = model.predict(X_TEST, return_cov=True)
    assert draws.shape == (5, 2, 4000)
    variance = np.einsum("iij->ij", covariance)
    assert (abs(draws.mean(2) - mean) < 4.5 * np.sqrt(variance / 4000)).all()
    spread = np.var(draws, axis=2) / variance
    assert (abs(spread - 1) < 4.5 * np.sqrt(2 / 4000)).all()
    assert model.sample_y(X_TEST).shape == (5, 2, 1)
    assert NTKRegressor(NET).fit(X, Y[:, 0]).sample_y(X_TEST, 3).shape == (5, 3)


def test_float32_on_request():
    double, single = (NTKRegressor(NET, alpha=0.1, dtype=d).fit(X, Y) for d in ("float64", "float32"))
    mean, std = single.predict(X_TEST, return_std=True)
    assert mean.dtype == std.dtype == np.float32
    np.testing.assert_allclose(mean, double.predict(X_TEST), atol=1e-4)


# Classifier


def test_squared_loss_is_regression_on_one_hot_targets():
    model = NTKClassifier(NET, time=4.0).fit(X, LABELS)
    targets = (LABELS[:, None] == model.classes_) - 1 / 3
    expected = NTKRegressor(NET, time=4.0).fit(X, targets).predict(X_TEST)
    np.testing.assert_allclose(model.decision_function(X_TEST), expected, atol=1e-13)
    assert np.array_equal(model.predict(X_TEST), model.classes_[expected.argmax(1)])
    assert model.predict_path(X_TEST, [0.0, 1.0]).shape == (2, 5, 3)


def test_two_classes_have_one_decision_value():
    labels = X[:, 0] > 0
    model = NTKClassifier(NET).fit(X, labels)
    decision = model.decision_function(X_TEST)
    assert decision.shape == (5,)
    assert np.array_equal(model.predict(X_TEST), decision > 0)
    # The outputs are independent, each with the spread of a regressor.
    std = NTKRegressor(NET).fit(X, labels).predict(X_TEST, return_std=True)[1]
    expected = scipy.stats.norm.cdf(decision / (np.sqrt(2) * std))
    np.testing.assert_allclose(model.predict_proba(X_TEST)[:, 1], expected, atol=1e-10)


def test_probability_of_the_largest_of_two_is_a_normal_integral():
    mean = np.array([[0.0, 0.0], [1.0, -2.0], [0.3, 0.1], [5.0, -30.0]])
    variance = np.array([1.0, 0.5, 1e-4, 2.0])
    expected = scipy.stats.norm.cdf((mean[:, 0] - mean[:, 1]) / np.sqrt(2 * variance))
    np.testing.assert_allclose(probability_of_largest(mean, variance)[:, 0], expected, atol=1e-13)


def test_probability_of_the_largest_of_ten_by_sampling():
    mean = np.linspace(0, 1, 10)[None] ** 2
    draws = mean + 0.4 * np.random.default_rng(0).normal(size=(200_000, 10))
    counts = np.bincount(draws.argmax(1), minlength=10) / 200_000
    probability = probability_of_largest(mean, np.array([0.16]))[0]
    assert (abs(counts - probability) < 4.5 * np.sqrt(probability * (1 - probability) / 200_000)).all()


def test_without_spread_the_largest_mean_wins_and_equal_ones_share():
    probability = probability_of_largest(np.array([[0.0, 1.0, 1.0], [3.0, 1.0, 2.0]]), np.zeros(2))
    np.testing.assert_allclose(probability, [[0, 0.5, 0.5], [1, 0, 0]], atol=1e-14)


@pytest.mark.parametrize("options", [{}, {"alpha": 0.5}, {"alpha": 0.5, "reduction": "mean", "weights": True}])
def test_cross_entropy_solves_its_equation_of_motion(options):
    weights = np.random.default_rng(4).uniform(0.5, 2, size=20) if options.get("weights") else np.ones(20)
    rate = 0.3 / (weights.sum() if options.get("reduction") == "mean" else 1)
    alpha, times = options.get("alpha", 1e-6), np.array([4.0, 0.0, 1.0])
    model = NTKClassifier(
        NET,
        time=4.0,
        loss="cross_entropy",
        learning_rate=0.3,
        alpha=alpha,
        reduction=options.get("reduction", "sum"),
    ).fit(X, LABELS, sample_weight=weights)
    targets = (LABELS[:, None] == model.classes_).astype(float)
    with jax.enable_x64(True):
        # In function space, on training and test inputs together, with an implicit solver.
        ntk = gpntk.nngp_and_ntk(NET, np.concatenate([X, X_TEST]))[1]

        def velocity(t, f, _):
            return rate * (ntk[:, :20] @ (weights[:, None] * (targets - jax.nn.softmax(f[:20]))) - alpha * f)

        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(velocity),
            diffrax.Kvaerno5(),
            0.0,
            4.0,
            None,
            jnp.zeros((25, 3)),
            saveat=diffrax.SaveAt(ts=[0.0, 1.0, 4.0]),
            stepsize_controller=diffrax.PIDController(rtol=1e-10, atol=1e-12),
            max_steps=100_000,
        )
        expected = np.asarray(solution.ys)[:, 20:]
    np.testing.assert_allclose(model.predict_path(X_TEST, times), expected[[2, 0, 1]], atol=2e-7)
    np.testing.assert_allclose(model.predict_proba(X_TEST, time=0.0), 1 / 3)


# Bad input


@pytest.mark.parametrize("estimator", [NTKRegressor, NTKClassifier])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"time": -1.0}, "`time` must be a real number >= 0, got -1"),
        ({"time": np.nan}, "`time` must be"),
        ({"learning_rate": 0}, "`learning_rate` must be"),
        ({"alpha": -1e-3}, "`alpha` must be"),
        ({"loss": "hinge"}, "`loss` must be one of"),
        ({"reduction": "none"}, "`reduction` must be one of"),
        ({"solver": "cg"}, "`solver` must be one of"),
        ({"dtype": "float16"}, "`dtype` must be one of"),
    ],
)
def test_bad_parameters_are_named(estimator, options, message):
    with pytest.raises(ValueError, match=message):
        estimator(**options).fit(X, LABELS == "a")


def test_other_misuse_is_explained():
    with pytest.raises(ValueError, match="finite for loss='cross_entropy'"):
        NTKClassifier(loss="cross_entropy").fit(X, LABELS)
    with pytest.raises(TypeError, match="`time` must be a real number >= 0, got 'long'"):
        NTKClassifier(loss="cross_entropy", time="long").fit(X, LABELS)
    with pytest.raises(ValueError, match="two classes"):
        NTKClassifier().fit(X, np.ones(20))
    with pytest.raises(TypeError, match="`network` must be"):
        NTKRegressor(network="mlp").fit(X, Y)
    with pytest.raises(RuntimeError, match="At most one"):
        NTKRegressor().fit(X, Y).predict(X, return_std=True, return_cov=True)
    with pytest.raises(ValueError, match="`time` must be"):
        NTKRegressor().fit(X, Y).predict(X, time=-1.0)
    classifier = NTKClassifier(NET).fit(X, LABELS)
    for predict in (NTKRegressor(NET).fit(X, Y).predict, classifier.predict, classifier.predict_proba):
        with pytest.raises(TypeError, match=r"`time` must be a real number >= 0, got \[0.5, 1.0\]"):
            predict(X_TEST, time=[0.5, 1.0])
    with pytest.raises(ValueError, match="not positive definite"):
        NTKRegressor(alpha=0.0).fit(np.repeat(X, 2, axis=0), np.repeat(Y, 2, axis=0))


@pytest.mark.parametrize("rows", [1, 9, 129])
def test_rows_are_predicted_by_themselves(rows):
    """However many shapes are filled up with others."""
    x = np.random.default_rng(3).normal(size=(130, 2))
    model = NTKRegressor(NET, time=0.7, alpha=0.1).fit(X, Y)
    mean, std = model.predict(x, return_std=True)
    some, their_std = model.predict(x[:rows], return_std=True)
    np.testing.assert_allclose(some, mean[:rows], rtol=1e-12)
    np.testing.assert_allclose(their_std, std[:rows], rtol=1e-12)
    assert model.predict_path(x[:rows], [0.1, 0.7]).shape == (2, rows, 2)
    np.testing.assert_allclose(model.predict_path(x[:rows], [0.1, 0.7])[1], some, rtol=1e-12)
