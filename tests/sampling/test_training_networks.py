import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gpntk

RNG = np.random.default_rng(0)
X, X_NEW = RNG.normal(size=(6, 4)), RNG.normal(size=(3, 4))
Y = RNG.normal(size=(6, 2))
LABELS = np.array([0, 1, 2, 0, 1, 2])
NET = gpntk.MLP(2, gpntk.Tanh(), 1.5, 0.2)


def readout_only(optimizer):
    """An optimiser that holds everything before the readout fixed: training is linear."""
    labels = lambda params: [jax.tree.map(lambda _: "fixed", params[0]), jax.tree.map(lambda _: "free", params[1])]  # noqa: E731
    return optax.partition({"free": optimizer, "fixed": optax.set_to_zero()}, labels)


def readout_ntk(params, x1, x2):
    hidden1, hidden2 = NET.hidden(params, x1), NET.hidden(params, x2)
    return 1.5 / hidden1.shape[1] * hidden1 @ hidden2.T + 0.2


def assert_trees_close(tree1, tree2, **tolerances):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerances), tree1, tree2)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_descent_in_the_readout_has_a_closed_form(alpha, reduction, x64):
    """f_k = f_0 + Theta(x, X) B^-1 (1 - (1 - eta B)^k) (y - f_0), B = Theta + alpha; "mean" divides eta by N."""
    params = NET.init(jax.random.key(0), 4, width=12, n_outputs=2)
    rate, steps = 0.05, 40
    options = {"reduction": reduction, "alpha": alpha}
    trained, history = gpntk.train(NET, params, X, Y, readout_only(optax.sgd(rate)), steps, **options)

    gram = readout_ntk(params, X, X) + alpha * np.eye(6)
    per_step = np.eye(6) - rate / (6 if reduction == "mean" else 1) * gram
    travelled = np.eye(6) - np.linalg.matrix_power(per_step, steps)
    initial = NET.apply(params, X)
    expected = NET.apply(params, X_NEW) + readout_ntk(params, X_NEW, X) @ jnp.linalg.solve(
        gram, travelled @ (Y - initial)
    )
    np.testing.assert_allclose(NET.apply(trained, X_NEW), expected, rtol=1e-10)

    assert history.shape == (steps,)
    first = 0.5 * np.sum((initial - Y) ** 2) / (6 if reduction == "mean" else 1)
    np.testing.assert_allclose(history[0], first, rtol=1e-12)
    assert np.all(np.diff(history) < 0)


def test_time_is_learning_rate_times_steps(x64):
    """Halving the rate and doubling the steps halves the distance to gradient flow."""
    params = NET.init(jax.random.key(0), 4, width=12, n_outputs=2)
    time, gram, initial = 2.0, readout_ntk(params, X, X), NET.apply(params, X)
    flow = Y + jax.scipy.linalg.expm(-time * gram) @ (initial - Y)

    def error(steps):
        trained, _ = gpntk.train(NET, params, X, Y, readout_only(optax.sgd(time / steps)), steps)
        return np.linalg.norm(NET.apply(trained, X) - flow) / np.linalg.norm(flow)

    coarse, fine = error(1000), error(2000)
    assert coarse < 3e-3
    assert abs(coarse / fine - 2) < 0.05


def test_a_wide_network_stays_close_to_its_linearisation():
    """Distances fall with the width (Lee et al. 2019); twice as far is not it."""
    x = X.astype(np.float32)

    def distance(width):
        params = NET.init(jax.random.key(0), 4, width, n_outputs=2)
        linearized = gpntk.linearize(NET, params)
        trained, _ = gpntk.train(NET, params, x, Y, optax.sgd(0.05), 50)
        moved = np.linalg.norm(NET.apply(trained, X_NEW) - NET.apply(params, X_NEW))
        return np.linalg.norm(NET.apply(trained, X_NEW) - linearized(trained, X_NEW)) / moved

    wide = distance(1024)
    assert wide < 0.5 * distance(64)
    assert wide < 0.1


def test_cross_entropy_equals_a_loop_by_hand(x64):
    params = NET.init(jax.random.key(0), 4, width=12, n_outputs=3)
    optimizer = optax.adam(0.01)

    def objective(p):
        log_probabilities = jax.nn.log_softmax(NET.apply(p, X))
        return -jnp.mean(log_probabilities[np.arange(6), LABELS])

    expected, state, losses = params, optimizer.init(params), []
    for _ in range(5):
        loss, gradient = jax.value_and_grad(objective)(expected)
        updates, state = optimizer.update(gradient, state, expected)
        expected = optax.apply_updates(expected, updates)
        losses.append(loss)
    options = {"loss": "cross_entropy", "reduction": "mean"}
    trained, history = gpntk.train(NET, params, X, LABELS, optimizer, 5, **options)
    assert_trees_close(trained, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(history, losses, rtol=1e-12)
    as_probabilities, _ = gpntk.train(NET, params, X, np.eye(3)[LABELS], optimizer, 5, **options)
    assert_trees_close(trained, as_probabilities, rtol=0, atol=0)


@pytest.mark.parametrize(
    "optimizer", [optax.adamw(0.01), pytest.param(optax.lbfgs(), marks=pytest.mark.slow)], ids=["adamw", "lbfgs"]
)
def test_other_optimisers(optimizer):
    params = NET.init(jax.random.key(0), 4, width=64)
    trained, history = gpntk.train(NET, params, X, Y[:, 0], optimizer, 60)
    assert history[-1] < 0.05 * history[0]
    assert jax.tree.map(jnp.shape, trained) == jax.tree.map(jnp.shape, params)


def test_training_is_reproducible_with_and_without_progress(capfd):
    params = NET.init(jax.random.key(0), 4, width=12)
    arguments = NET, params, X, Y[:, 0], optax.adam(0.01), 120
    first, history = gpntk.train(*arguments)
    assert capfd.readouterr().err == ""
    again, same_history = gpntk.train(*arguments)
    assert_trees_close((first, history), (again, same_history), rtol=0, atol=0)
    watched, watched_history = gpntk.train(*arguments, progress=True)
    assert "120/120" in capfd.readouterr().err
    assert watched_history.shape == (120,)
    assert_trees_close((first, history), (watched, watched_history), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("loss", "y", "q"), [pytest.param("squared", Y[:, 0], 1, marks=pytest.mark.slow), ("cross_entropy", LABELS, 3)]
)
def test_ensembles_equal_individual_training(loss, y, q, x64):
    key, optimizer = jax.random.key(5), optax.adam(0.02)
    options = {"loss": loss, "alpha": 0.1, "reduction": "mean"}
    params, history = gpntk.train_ensemble(
        NET, X, y, key, 3, optimizer, 20, width=8, batch_size=2, progress=True, **options
    )
    assert history.shape == (3, 20)
    outputs = jax.vmap(NET.apply, (0, None))(params, X_NEW)
    assert outputs.shape == (3, 3, q)
    for member, member_key in enumerate(jax.random.split(key, 3)):
        alone, losses = gpntk.train(NET, NET.init(member_key, 4, 8, q), X, y, optimizer, 20, **options)
        # Batched products round differently, which Adam's division by small gradients magnifies.
        assert_trees_close(jax.tree.map(lambda leaf, m=member: leaf[m], params), alone, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(history[member], losses, rtol=1e-9)


def test_ensembles_do_not_depend_on_batches():
    arguments = NET, X, Y, jax.random.key(0), 4, optax.sgd(0.05), 10
    whole, batched = (gpntk.train_ensemble(*arguments, width=8, batch_size=size) for size in (None, 3))
    assert_trees_close(whole, batched, rtol=1e-4, atol=1e-6)


def test_divergence_is_not_silent():
    params = NET.init(jax.random.key(0), 4, width=12)
    net = NET.replace(activation=gpntk.Identity())
    with pytest.warns(RuntimeWarning, match=r"diverged for 1 of 1 network.*Lower the learning rate"):
        gpntk.train(net, params, X, Y[:, 0], optax.sgd(100.0), 50)
    with pytest.warns(RuntimeWarning, match="diverged for 3 of 3 network"):
        gpntk.train_ensemble(net, X, Y, jax.random.key(0), 3, optax.sgd(100.0), 50, width=12)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"X": X[:, :3]}, ValueError, "x has 3 features, but the layer expects 4 features"),
        ({"X": X * np.nan}, ValueError, "Input X contains NaN"),
        ({"y": Y[:3]}, ValueError, r"`y` must have shape \(6,\) or \(6, q\) as X has 6 rows, got \(3, 2\)"),
        ({"y": Y[:, :1]}, ValueError, r"`y` must have one column for each of the 2 outputs, got shape \(6, 1\)"),
        ({"y": Y * np.inf}, ValueError, "`y` must be finite"),
        ({"optimizer": 0.1}, TypeError, "`optimizer` must be an optax optimiser .* got 0.1"),
        ({"steps": 0}, ValueError, "`steps` must be an integer >= 1, got 0"),
        ({"alpha": -1.0}, ValueError, "`alpha` must be a finite real number >= 0, got -1"),
        ({"loss": "hinge"}, ValueError, "`loss` must be one of 'squared', 'cross_entropy', got 'hinge'"),
        ({"reduction": "none"}, ValueError, "`reduction` must be one of 'sum', 'mean', got 'none'"),
        ({"loss": "cross_entropy"}, ValueError, "`y` must hold class probabilities"),
        ({"loss": "cross_entropy", "y": Y[:, 0]}, ValueError, "`y` must hold integer classes >= 0"),
        ({"loss": "cross_entropy", "y": LABELS}, ValueError, "`y` must hold classes below 2, .* got 2"),
        ({"params": [{}]}, ValueError, "`params` must be parameters from"),
    ],
)
def test_bad_input(changes, error, message):
    params = NET.init(jax.random.key(0), 4, width=3, n_outputs=2)
    arguments = {"params": params, "X": X, "y": Y, "optimizer": optax.sgd(0.1), "steps": 1} | changes
    with pytest.raises(error, match=message):
        gpntk.train(NET, **arguments)


def test_bad_input_to_ensembles():
    for changes, message in (
        ({"members": 0}, "`members` must be an integer >= 1, got 0"),
        ({"width": 0}, "`width` must be an integer >= 1, got 0"),
        ({"batch_size": 0}, "`batch_size` must be an integer >= 1, got 0"),
        ({"y": Y[:2]}, "`y` must have shape"),
    ):
        arguments = {
            "X": X,
            "y": Y,
            "key": jax.random.key(0),
            "members": 2,
            "optimizer": optax.sgd(0.1),
        }
        with pytest.raises(ValueError, match=message):
            gpntk.train_ensemble(NET, steps=1, **(arguments | changes))
    with pytest.raises(ValueError, match="needs a network with at least 2 outputs, got 1"):
        gpntk.train(NET, NET.init(jax.random.key(0), 4), X, LABELS, optax.sgd(0.1), 1, loss="cross_entropy")
