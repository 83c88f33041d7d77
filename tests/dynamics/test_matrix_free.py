"""Training without the Gram matrix, against training with it."""

import pickle

import jax
import jax.numpy as jnp
import matfree.decomp
import matfree.funm
import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from table_kernel import Table, close, rows

from gpntk import MLP, NNGP, NTK, Erf, GradientDescent, GradientFlow, MatrixFree, NTKClassifier, NTKRegressor
from gpntk.dynamics import _training
from gpntk.dynamics._krylov import (
    extend_krylov_spaces,
    krylov_spaces,
    pivoted_cholesky,
    preconditioner,
    quadratures_of_logarithm,
    ritz_pairs,
)
from gpntk.dynamics._matrix_free import RegularisedGram

NET = MLP(depth=2, activation=Erf(), weight_variance=1.5, bias_variance=0.2)
RNG = np.random.default_rng(0)
X, X_TEST = RNG.normal(size=(120, 3)), RNG.normal(size=(7, 3))
Y = np.stack([np.sin(X).sum(1), RNG.normal(size=120)], axis=1)
WEIGHTS = RNG.integers(0, 4, size=120).astype(float)
PRECISE = MatrixFree(tolerance=1e-11, rank=20)
OPTIONS = {
    "plain": {"alpha": 0.05},
    "weights": {"alpha": 0.3, "sample_weight": WEIGHTS, "reduction": "mean", "learning_rate": 2.0},
}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def flow(solver, **options):
    return GradientFlow(NTK(NET), NNGP(NET), X, Y, solver=solver, **options)


@pytest.mark.parametrize(
    "options",
    [pytest.param(o, id=name, marks=[pytest.mark.slow] * (name == "weights")) for name, o in OPTIONS.items()],
)
def test_every_time_agrees_with_the_stored_matrix(options):
    times = np.array([0.5, np.inf, 0.0, 20.0])
    stored, free = flow("eigh", **options), flow(PRECISE, **options)
    # The tolerance times the condition number, 120 * 3 / 0.05 at most.
    close(free.mean(X_TEST, times), stored.mean(X_TEST, times), 1e-7)
    close(free.covariance(X_TEST, times), stored.covariance(X_TEST, times), 1e-7)
    close(free.variance(X_TEST, np.inf), stored.variance(X_TEST, np.inf), 1e-7)
    close(free.dual_coefficients(20.0), stored.dual_coefficients(20.0), 1e-7)
    close(free.max_learning_rate(), stored.max_learning_rate(), 1e-9)
    assert "gram" not in free._cache


def test_descent_agrees_with_the_stored_matrix():
    stored, free = (GradientDescent(NTK(NET), NNGP(NET), X, Y, 5e-3, 0.1, solver=s) for s in ("eigh", PRECISE))
    steps = np.array([0, 3, 200, 10**6])
    close(free.mean(X_TEST, steps), stored.mean(X_TEST, steps), 1e-7)
    close(free.variance(X_TEST, 200), stored.variance(X_TEST, 200), 1e-7)


@pytest.mark.parametrize("time", [3.0, np.inf])
def test_the_residual_is_what_the_report_says(time):
    tolerance = 1e-5
    free = flow(MatrixFree(tolerance=tolerance, rank=20), alpha=0.05)
    assert free.solver_report is None
    c = free.dual_coefficients(time)
    report = free.solver_report
    assert report.converged
    assert report.iterations < 120
    assert report.residual <= tolerance
    if np.isinf(time):
        residual = Y - (free.gram + 0.05 * np.eye(120)) @ c
        true = np.max(np.linalg.norm(residual, axis=0) / np.linalg.norm(Y, axis=0))
        np.testing.assert_allclose(report.residual, true, rtol=1e-6)
    else:
        # An error of the equation of motion is damped by it: that of the coefficients is below residual x time.
        error = np.linalg.norm(c - flow("eigh", alpha=0.05).dual_coefficients(time), axis=0)
        assert (error < report.residual * time * np.linalg.norm(Y, axis=0)).all()
        assert error.max() > 0


def test_the_preconditioner_saves_iterations():
    counts = []
    for rank in (0, 20, 120):
        free = flow(MatrixFree(tolerance=1e-8, rank=rank), alpha=0.01)
        free.mean(X_TEST, np.inf)
        counts.append(free.solver_report.iterations)
    assert counts[1] < 0.7 * counts[0]
    assert counts[2] <= 3  # at full rank it is the inverse


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("alpha", [0.0, 1e-7])
def test_few_inputs_without_regularisation(alpha, dtype):
    """The preconditioner has full rank then, and nothing is left of the matrix but rounding errors."""
    kernel, x = NTK(MLP()), RNG.normal(size=(60, 8)).astype(dtype)
    stored, free = (GradientFlow(kernel, None, x, Y[:60], alpha=alpha, solver=s) for s in ("eigh", MatrixFree()))
    close(free.dual_coefficients(np.inf), stored.dual_coefficients(np.inf), 1e-3)
    assert free.solver_report.iterations <= 10


def test_pivoted_cholesky_and_its_inverse():
    half = RNG.normal(size=(30, 30))
    matrix = jnp.asarray(half @ np.diag(np.geomspace(1, 1e-6, 30)) @ half.T)
    columns = lambda i: matrix[:, i]  # noqa: E731
    full = pivoted_cholesky(columns, jnp.diagonal(matrix), 30)
    np.testing.assert_allclose(full @ full.T, matrix, atol=1e-12)
    partial = pivoted_cholesky(columns, jnp.diagonal(matrix), 8)
    left = np.diag(matrix - partial @ partial.T)
    assert (left > -1e-12).all()
    assert np.sum(abs(left) < 1e-12) == 8  # exact at its pivots
    inverse = preconditioner(columns, jnp.diagonal(matrix), jnp.asarray(0.3), 30)
    np.testing.assert_allclose(inverse(matrix + 0.3 * np.eye(30)), np.eye(30), atol=1e-10)
    low = jnp.asarray(half[:, :4] @ half[:, :4].T)  # rank 4: further columns have nothing left to say
    assert not np.any(pivoted_cholesky(lambda i: low[:, i], jnp.diagonal(low), 9)[:, 4:] > 1e-6)


def test_krylov_spaces_keep_their_identities():
    matrix = jnp.asarray((lambda a: a @ a.T)(RNG.normal(size=(30, 30))))
    start = jnp.asarray(RNG.normal(size=(30, 2)))
    spaces = krylov_spaces(start).with_room(16)
    product = jax.tree_util.Partial(jnp.matmul, matrix)
    spaces = extend_krylov_spaces(product, extend_krylov_spaces(product, spaces, 0, 5), 5, 12)
    for column in range(2):
        basis = np.asarray(spaces.basis[:13, :, column])
        np.testing.assert_allclose(basis @ basis.T, np.eye(13), atol=1e-13)
        tridiagonal = basis[:12] @ np.asarray(matrix) @ basis[:12].T
        np.testing.assert_allclose(np.diag(tridiagonal), spaces.diagonal[:12, column], rtol=1e-12)
        np.testing.assert_allclose(np.diag(tridiagonal, -1), spaces.off_diagonal[:11, column], rtol=1e-10)
        ritz = ritz_pairs(spaces, 12)
        np.testing.assert_allclose(ritz.values[:, column], np.linalg.eigvalsh(tridiagonal), rtol=1e-10)
    assert not np.any(spaces.basis[13:])


def test_quadrature_of_the_logarithm_is_that_of_matfree():
    half = RNG.normal(size=(40, 40))
    matrix = jnp.asarray(half @ half.T + 0.5 * np.eye(40))
    start = jnp.asarray(RNG.normal(size=(40, 3)))
    product = jax.tree_util.Partial(jnp.matmul, matrix)
    values = quadratures_of_logarithm(extend_krylov_spaces(product, krylov_spaces(start).with_room(12), 0, 9), 9)
    integrand = matfree.funm.monte_carlo_funm_sym_logdet(matfree.decomp.tridiag_sym(9, reortho="full"))
    expected = [integrand(lambda v: matrix @ v, vector) for vector in start.T]
    np.testing.assert_allclose(values, expected, rtol=1e-12)


@pytest.mark.parametrize("exponent", [-0.5, 0.5, 1.0])
def test_powers_and_determinant_of_the_preconditioner(exponent):
    half = RNG.normal(size=(20, 20))
    matrix = jnp.asarray(half @ np.diag(np.geomspace(1, 1e-4, 20)) @ half.T)
    inverse = preconditioner(lambda i: matrix[:, i], jnp.diagonal(matrix), jnp.asarray(0.3), 6)
    dense = np.asarray(inverse(jnp.eye(20)))
    values, vectors = np.linalg.eigh(dense)
    expected = vectors * values**exponent @ vectors.T
    np.testing.assert_allclose(inverse.power(jnp.eye(20), exponent), expected, atol=1e-10 * np.abs(expected).max())
    np.testing.assert_allclose(inverse.log_determinant(), np.log(values).sum(), rtol=1e-12)


def test_exhausted_spaces_are_exact():
    """Two distinct eigenvalues: two vectors span the Krylov space, and the answer is exact."""
    matrix = np.diag([1.0, 1.0, 3.0, 3.0])
    y = np.array([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [4.0, 0.0]])
    for time in (0.7, np.inf):
        free = GradientFlow(Table(matrix), None, rows(4), y, solver=MatrixFree(tolerance=1e-12, rank=0))
        expected = y if np.isinf(time) else (1 - np.exp(-time * np.diag(matrix)))[:, None] * y
        np.testing.assert_allclose(free.mean(rows(4), time), expected, atol=1e-13)
        assert free.solver_report.iterations <= 4


def test_large_problems_choose_it_and_small_ones_do_not(monkeypatch):
    assert flow("auto")._iterative is None
    limit = _training._LARGEST_STORED_GRAM
    assert 16_384**2 * 8 <= limit < 16_385**2 * 8
    monkeypatch.setattr(_training, "_LARGEST_STORED_GRAM", 120**2 * 8 - 1)
    assert flow("auto")._iterative == MatrixFree()
    assert flow("eigh")._iterative is None
    assert NTKRegressor(NET, alpha=0.1).fit(X, Y).solver_report_.converged


def test_gradients_at_infinite_time():
    def loss(weight_variance, alpha, solver):
        net = NET.replace(weight_variance=weight_variance)
        trained = GradientFlow(NTK(net), NNGP(net), X[:30], Y[:30], alpha=alpha, solver=solver)
        return jnp.sum(trained.mean(X_TEST, np.inf) ** 2) + trained.variance(X_TEST, np.inf).sum()

    gradient = jax.grad(loss, (0, 1))
    np.testing.assert_allclose(gradient(1.4, 0.1, PRECISE), gradient(1.4, 0.1, "cholesky"), rtol=1e-7)
    with pytest.raises(NotImplementedError, match="solver='eigh'"):
        jax.grad(lambda a: flow(PRECISE, alpha=a).mean(X_TEST, 1.0).sum())(0.1)


def test_single_precision_kernels_reach_small_residuals():
    """In float32 throughout, the residual would stall near eps x condition number = 6e-8 x 1e5."""
    free = GradientFlow(
        NTK(NET), None, X.astype(np.float32), Y, alpha=1e-2, solver=MatrixFree(tolerance=1e-9, rank=50)
    )
    assert free.dual_coefficients(np.inf).dtype == jnp.float32
    assert free.solver_report.residual < 1e-9
    stored = flow("eigh", alpha=1e-2).mean(X_TEST, np.inf)
    close(free.mean(X_TEST, np.inf), stored, 1e-3)


def test_cross_entropy_without_the_gram_matrix():
    labels = (X[:, 0] > 0).astype(int)
    options = {"time": 3.0, "loss": "cross_entropy", "alpha": 0.1, "reduction": "mean"}
    stored, free = (NTKClassifier(NET, solver=s, **options).fit(X, labels) for s in ("auto", "matrix_free"))
    np.testing.assert_allclose(free.decision_function(X_TEST), stored.decision_function(X_TEST), atol=1e-10)
    assert "gram" not in free._flow._cache


def test_all_solves_of_a_flow_share_a_preconditioner(monkeypatch):
    made, make = [], RegularisedGram.preconditioner
    monkeypatch.setattr(RegularisedGram, "preconditioner", lambda *a: made.append(make(*a)) or made[-1])
    free = flow(PRECISE, alpha=0.05)
    free.mean(X_TEST, np.inf)
    free.variance(np.tile(X_TEST, (10, 1)), np.inf)  # 64 at a time
    assert len(made) == 1
    # One without a preconditioner is kept, and pickled, the same way.
    plain = flow(MatrixFree(tolerance=1e-8, rank=0), alpha=0.05)
    close(plain.mean(X_TEST, np.inf), free.mean(X_TEST, np.inf), 1e-5)
    close(pickle.loads(pickle.dumps(plain)).variance(X_TEST, np.inf), free.variance(X_TEST, np.inf), 1e-4)


@pytest.mark.parametrize("time", [5.0, np.inf])
def test_estimators_predict_and_survive_pickling(time):
    stored, free = (NTKRegressor(NET, alpha=0.1, time=time, solver=s).fit(X, Y) for s in ("auto", PRECISE))
    assert stored.solver_report_ is None
    assert free.solver_report_.residual <= 1e-11
    close(free.predict(X_TEST), stored.predict(X_TEST), 1e-8)
    close(free.predict(X_TEST, return_std=True)[1], stored.predict(X_TEST, return_std=True)[1], 1e-6)
    close(free.predict(X_TEST, time=2.0), stored.predict(X_TEST, time=2.0), 1e-8)
    with jax.enable_x64(False):
        loaded = pickle.loads(pickle.dumps(free))
        assert np.array_equal(loaded.predict(X_TEST), free.predict(X_TEST))


def test_coefficients_are_solved_for_once(monkeypatch):
    free = flow("matrix_free", alpha=0.1)
    free.mean(X_TEST, np.inf)
    monkeypatch.setattr(_training, "solve", None)
    assert free.mean(X, np.inf).shape == (120, 2)


# What does not converge


@pytest.mark.parametrize("time", [1e4, np.inf])
def test_too_few_iterations_are_reported_with_a_remedy(time):
    free = flow(MatrixFree(tolerance=1e-10, max_iterations=5, rank=0), alpha=1e-3)
    with pytest.warns(ConvergenceWarning, match=r"in 5 iterations, .*tolerance of 1e-10.*alpha = 0.001.*Raise"):
        free.mean(X_TEST, time)
    assert not free.solver_report.converged
    assert free.solver_report.residual > 1e-10


def test_a_precision_that_cannot_be_reached_is_reported():
    free = flow(MatrixFree(tolerance=1e-18, rank=120), alpha=1e-3)
    with pytest.warns(ConvergenceWarning, match="above the tolerance of 1e-18"):
        free.mean(X_TEST, np.inf)
    assert free.solver_report.iterations < 100  # it does not go on for ever


@pytest.mark.parametrize("time", [1e6, np.inf])
def test_an_indefinite_matrix_is_refused(time):
    trained = GradientFlow(
        Table([[1.0, 2.0], [2.0, 1.0]]), None, rows(2), np.array([1.0, -1.5]), solver=MatrixFree(rank=0)
    )
    with pytest.raises(ValueError, match=r"not positive definite|too close to singular"):
        trained.mean(rows(2), time)


def test_inside_jit_too_few_iterations_are_an_error():
    few = MatrixFree(tolerance=1e-10, max_iterations=3, rank=0)
    outcome = jax.jit(lambda alpha: flow(few, alpha=alpha).mean(X_TEST, np.inf))
    with pytest.raises(jax.errors.JaxRuntimeError, match="did not converge"):
        outcome(1e-3)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"tolerance": 0.0}, ValueError, "`tolerance` must be"),
        ({"max_iterations": 0}, ValueError, "`max_iterations` must be"),
        ({"rank": -1}, ValueError, "`rank` must be"),
        ({"progress": 1}, TypeError, "`progress` must be True or False"),
    ],
)
def test_bad_settings_are_named(options, error, message):
    with pytest.raises(error, match=message):
        MatrixFree(**options)


def test_bad_solvers_are_named():
    with pytest.raises(TypeError, match=r"`solver` must be one of .*'matrix_free' or MatrixFree\(\), got 3"):
        NTKRegressor(solver=3).fit(X, Y)
    with pytest.raises(ValueError, match="for descent, got 'cholesky'"):
        GradientDescent(NTK(NET), None, X, Y, 0.1, solver="cholesky")


def test_progress_is_shown_on_request_only(capfd):
    for progress in (False, True):
        flow(MatrixFree(progress=progress), alpha=0.1).mean(X_TEST, np.array([1.0, np.inf]))
        shown = capfd.readouterr().err
        assert ("conjugate gradients" in shown) is progress
        assert ("Lanczos" in shown) is progress


@pytest.mark.parametrize("scale", [1e-25, 1e25])
@pytest.mark.parametrize("time", [1.0, np.inf])
def test_targets_of_any_size_scale_the_mean(scale, time):
    # Their squares are not numbers of single precision.
    with jax.enable_x64(False):
        unit, scaled = (
            GradientFlow(NTK(MLP()), None, X, y, alpha=1.0, solver=MatrixFree(tolerance=1e-4)).mean(X_TEST, time)
            for y in (Y, scale * Y)
        )
        np.testing.assert_allclose(np.asarray(scaled) / scale, unit, rtol=0, atol=1e-4 * np.abs(unit).max())


@pytest.mark.parametrize("scale", [1e-10, 1e10])
def test_kernels_of_any_size_at_finite_times(scale):
    # Homogeneous networks: the clock and alpha take back the scale of the inputs.
    def mean(scale):
        options = {"learning_rate": scale**-2, "alpha": scale**2, "solver": MatrixFree(tolerance=1e-4)}
        flow = GradientFlow(NTK(MLP()), None, scale * X, Y, **options)
        return flow.mean(scale * X_TEST, 1.0)

    with jax.enable_x64(False):
        unit = mean(1.0)
        np.testing.assert_allclose(mean(scale), unit, rtol=0, atol=1e-4 * np.abs(unit).max())


@pytest.mark.parametrize("rank", [0, 5])
def test_kernel_of_zeros(rank):
    zeros = np.zeros((6, 3))
    flow = GradientFlow(NTK(MLP()), None, zeros, Y[:6], alpha=0.5, solver=MatrixFree(rank=rank))
    np.testing.assert_allclose(flow.dual_coefficients(np.inf), Y[:6] / 0.5, rtol=1e-6)
