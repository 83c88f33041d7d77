import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import gpntk
from gpntk.sampling import _cost, _empirical

_outputs = _empirical._outputs
RNG = np.random.default_rng(0)
X1, X2 = RNG.normal(size=(5, 3)), RNG.normal(size=(4, 3))
NET = gpntk.MLP(2, gpntk.GELU(), 1.5, 0.2, width_ratios=(0.5, 1.0))


def naive(net, params, x1, x2):
    """Theta[a, b, i, j] from the whole Jacobian as one matrix."""
    flat, restore = ravel_pytree(params)
    jacobian1, jacobian2 = (jax.jacfwd(lambda p, x=x: net.apply(restore(p), x))(flat) for x in (x1, x2))
    return jnp.einsum("aip,bjp->abij", jacobian1, jacobian2)


@pytest.fixture
def params(x64):
    return NET.init(jax.random.key(0), input_dim=3, width=8, n_outputs=3)


@pytest.mark.parametrize("x2", [None, X2], ids=["gram", "cross"])
@pytest.mark.parametrize("outputs", ["mean", "full"])
def test_equals_the_naive_jacobian(params, outputs, x2, monkeypatch):
    """By either method, whatever the memory: all at once, a few inputs at a time (and a remainder), one row."""
    expected = naive(NET, params, X1, X1 if x2 is None else x2)
    if outputs == "mean":
        expected = jnp.einsum("abii->ab", expected) / 3
    kernel = gpntk.empirical_ntk(NET, params, X1, x2, outputs=outputs)
    np.testing.assert_allclose(kernel, expected, rtol=1e-11, atol=1e-12)
    for budget in (_cost.BUDGET, 1500, 1):
        monkeypatch.setattr(_cost, "BUDGET", budget)
        for method in (_empirical.by_contraction, _empirical.by_products):
            compiled = jax.jit(lambda p, x1, x2, method=method: method(_outputs, NET, p, x1, x2, outputs))
            kernel = compiled(params, X1, x2)
            np.testing.assert_allclose(kernel, expected, rtol=1e-11, atol=1e-12)
            if x2 is None:
                transposed = kernel.T if outputs == "mean" else kernel.transpose(1, 0, 3, 2)
                np.testing.assert_array_equal(kernel, transposed)


@pytest.mark.parametrize(
    ("outputs", "n_outputs", "budget", "method"),
    [
        ("mean", 10, _cost.BUDGET, "by_contraction"),
        ("mean", 10, 1, "by_products"),  # a row at a time: its Jacobian would be computed for every other row
        ("full", 1, _cost.BUDGET, "by_contraction"),
        ("full", 20, _cost.BUDGET, "by_products"),  # contraction costs 20^2, products 20
    ],
)
def test_the_cheaper_method_is_taken(outputs, n_outputs, budget, method, monkeypatch):
    taken = []
    for name in ("by_contraction", "by_products"):
        monkeypatch.setattr(_empirical, name, lambda *_, name=name: taken.append(name))
    monkeypatch.setattr(_cost, "BUDGET", budget)
    net = gpntk.MLP(2)
    params = net.init(jax.random.key(0), 30, width=100, n_outputs=n_outputs)
    _empirical.ntk(_outputs, net, params, jnp.ones((50, 30)), jnp.ones((50, 30)), outputs)
    assert taken == [method]


def test_flops_of_a_dense_network():
    net = gpntk.MLP(1, gpntk.Identity())
    params = net.init(jax.random.key(0), 30, width=100, n_outputs=10)
    multiplications = 2 * (30 * 100 + 100 * 10)
    assert multiplications <= _cost.flops(_outputs, net, params, jnp.ones((1, 30))) < 1.1 * multiplications


def test_converges_to_the_infinite_width_kernel():
    """The variance of the empirical NTK falls like 1/n: 16 times the width, a quarter of the distance."""
    net, x = gpntk.MLP(2, gpntk.Erf(), 1.5, 0.2), X1.astype(np.float32)
    limit = np.asarray(gpntk.nngp_and_ntk(net, x)[1])

    def distance(width, key):
        kernel = gpntk.empirical_ntk(net, net.init(key, 3, width, n_outputs=2), x)
        return jnp.linalg.norm(kernel - limit) / np.linalg.norm(limit)

    def root_mean_square(width):
        keys = jax.random.split(jax.random.key(1), 20)
        return np.sqrt(jnp.mean(jax.lax.map(lambda key: distance(width, key) ** 2, keys)))

    narrow, wide = root_mean_square(32), root_mean_square(512)
    assert wide < 0.06
    # 20 draws each: relative standard error of the ratio about sqrt(2 * 2 / 20) / 2, rounded up to a quarter.
    assert 2.5 < narrow / wide < 6


def test_linearize_is_right_to_second_order(params):
    direction = NET.init(jax.random.key(1), input_dim=3, width=8, n_outputs=3)
    linearized = gpntk.linearize(NET, params)

    def error(step):
        moved = jax.tree.map(lambda p, d: p + step * d, params, direction)
        return NET.apply(moved, X1) - linearized(moved, X1)

    np.testing.assert_array_equal(linearized(params, X1), NET.apply(params, X1))
    # Half the step, a quarter of the error; the third order is a relative change of order `step`.
    ratio = jnp.linalg.norm(error(1e-3)) / jnp.linalg.norm(error(5e-4))
    assert abs(ratio - 4) < 0.02


def test_linearized_networks_have_a_constant_ntk(params):
    linearized = gpntk.linearize(NET, params)
    elsewhere = jax.tree.map(lambda leaf: leaf + 1.0, params)
    slopes = [jax.jacobian(lambda p: linearized(p, X1))(p) for p in (params, elsewhere)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), *slopes)


def test_works_under_transformations():
    x = X1.astype(np.float32)
    net = gpntk.MLP(1)
    init = lambda key: net.init(key, 3, width=8)  # noqa: E731
    keys = jax.random.split(jax.random.key(0), 3)
    kernels = jax.jit(jax.vmap(lambda key: gpntk.empirical_ntk(net, init(key), x)))(keys)
    np.testing.assert_allclose(kernels[1], gpntk.empirical_ntk(net, init(keys[1]), x), rtol=1e-5)
    slope = jax.grad(lambda p: gpntk.empirical_ntk(net, p, x).sum())(init(keys[0]))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))


def test_jacobians_too_large_for_memory_are_not_formed(monkeypatch):
    taken = []
    for name in ("by_contraction", "by_products"):
        monkeypatch.setattr(_empirical, name, lambda *_, name=name: taken.append(name))
    net = gpntk.MLP(2)

    # One row of the Jacobian is 2048 times the parameters, 70 GB: traced, not run.
    def kernel(key):
        params = net.init(key, 30, width=2048, n_outputs=2048)
        return _empirical.ntk(_outputs, net, params, jnp.ones((1, 30)), None, "mean")

    jax.eval_shape(kernel, jax.random.key(0))
    assert taken == ["by_products"]


def test_linearize_mixes_precisions(params, x64):
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    moved = jax.tree.map(lambda leaf: leaf * 1.01, params)
    mixed = gpntk.linearize(NET, single)(moved, X1)
    exact = gpntk.linearize(NET, jax.tree.map(lambda leaf: leaf.astype(jnp.float64), single))(moved, X1)
    assert mixed.dtype == jnp.float64
    np.testing.assert_allclose(mixed, exact, rtol=1e-12)


def test_precision_is_that_of_the_wider_argument(x64):
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), NET.init(jax.random.key(0), 3, width=8))
    kernel = gpntk.empirical_ntk(NET, params, X1)
    assert kernel.dtype == jnp.float64
    exact = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
    np.testing.assert_allclose(kernel, gpntk.empirical_ntk(NET, exact, X1), rtol=1e-12)


def test_bad_input():
    net = gpntk.MLP(1)
    params = net.init(jax.random.key(0), 3, width=8)
    with pytest.raises(ValueError, match="`outputs` must be one of 'mean', 'full', got 'trace'"):
        gpntk.empirical_ntk(net, params, X1, outputs="trace")
    with pytest.raises(ValueError, match="x2 has 2 features, but x1 has 3"):
        gpntk.empirical_ntk(net, params, X1, X2[:, :2])
    with pytest.raises(ValueError, match="has 2 features, but the layer expects 3 features"):
        gpntk.empirical_ntk(net, params, X1[:, :2])
    with pytest.raises(ValueError, match="Expected 2D array, got 1D array"):
        gpntk.empirical_ntk(net, params, X1[0])
    with pytest.raises(ValueError, match=r"`params` must be parameters from `net.init`, a list of 2"):
        gpntk.empirical_ntk(net, params[:1], X1)
    with pytest.raises(ValueError, match="`params` must be parameters"):
        gpntk.linearize(net, None)
    with pytest.raises(ValueError, match="`params` must be parameters"):
        gpntk.linearize(net, params)(params[:1], X1)
    with pytest.raises(ValueError, match="`params` must be parameters"):
        net.apply([], X1)
    with pytest.raises(TypeError, match="`net` must be an architecture"):
        gpntk.empirical_ntk(gpntk.MLP, params, X1)
