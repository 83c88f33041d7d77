"""Finite networks: parameters, outputs, and the architecture object around them."""

import copy
import dataclasses
import pickle

import equinox as eqx
import gpjax
import jax
import jax.numpy as jnp
import numpy as np
import paramax
import pytest
from gpjax.parameters import PositiveReal
from scipy.special import erf
from sklearn.base import clone

import gpntk

X = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
NET = gpntk.MLP(2, gpntk.Erf(), 1.5, 0.3, width_ratios=(1.5, 1.0))


def shapes(params):
    return jax.tree.map(jnp.shape, params)


def dense(params):
    """The affine layers, in order."""
    hidden, readout = params
    return [layer for layer in [*hidden, readout] if layer]


def test_shapes_follow_widths_and_outputs():
    params = dense(NET.init(jax.random.key(0), input_dim=4, width=10, n_outputs=3))
    assert [layer["weight"].shape for layer in params] == [(4, 15), (15, 10), (10, 3)]
    assert [layer["bias"].shape for layer in params] == [(15,), (10,), (3,)]
    defaults = dense(gpntk.MLP(depth=1).init(jax.random.key(0), input_dim=2))
    assert [shapes(layer) for layer in defaults] == [{"weight": (2, 256)}, {"weight": (256, 1)}]


def test_narrow_layers_keep_a_neuron():
    params = dense(NET.replace(width_ratios=(0.01, 1.0)).init(jax.random.key(0), 4, width=3))
    assert params[0]["weight"].shape == (4, 1)


def test_readout_bias_is_optional():
    params = dense(NET.replace(readout_bias=False).init(jax.random.key(0), 4))
    assert ["bias" in layer for layer in params] == [True, True, False]


def test_parameters_are_independent_standard_normal_numbers():
    leaves = jax.tree.leaves(NET.init(jax.random.key(0), 4, width=300, n_outputs=5))
    values = np.concatenate([np.ravel(leaf) for leaf in leaves]).astype(np.float64)
    # Variances of the sample moments of orders 1, 2 and 4 of N(0, 1): 1, 2 and 96.
    for order, moment, variance in ((1, 0, 1), (2, 1, 2), (4, 3, 96)):
        assert abs(np.mean(values**order) - moment) < 4 * np.sqrt(variance / values.size)
    assert len(np.unique(values)) > 0.99 * values.size  # no layer repeats the numbers of another


def test_keys_determine_parameters():
    same, again, other = (NET.init(jax.random.key(seed), 4, width=5) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, same, again)
    assert not np.allclose(dense(same)[0]["weight"], dense(other)[0]["weight"])


def test_outputs_have_the_covariance_of_the_kernel():
    """At depth 1 the infinite-width covariance is exact at every width; outputs are uncorrelated."""
    net, n_networks = gpntk.MLP(1, gpntk.Erf(), 1.5, 0.3), 4000
    keys = jax.random.split(jax.random.key(0), n_networks)
    outputs = jax.jit(jax.vmap(lambda key: net.apply(net.init(key, 4, width=5, n_outputs=2), X[:2])))(keys)
    outputs = np.asarray(outputs, np.float64).reshape(n_networks, 4)  # (input, output) flattened
    nngp = np.asarray(gpntk.nngp_and_ntk(net, X[:2])[0])
    for samples, expected in (
        (outputs, np.zeros(4)),
        (outputs[:, :, None] * outputs[:, None, :], np.kron(nngp, np.eye(2))),
    ):
        assert np.all(abs(samples.mean(0) - expected) < 4 * samples.std(0) / n_networks**0.5)


@pytest.mark.parametrize("readout_bias", [True, False])
def test_apply_equals_a_forward_pass_by_hand(readout_bias, x64):
    net = NET.replace(readout_bias=readout_bias)
    params = net.init(jax.random.key(0), 4, width=10, n_outputs=3)
    first, second, readout = (jax.tree.map(np.asarray, layer) for layer in dense(params))
    x = X.astype(np.float64)
    z1 = np.sqrt(1.5 / 4) * x @ first["weight"] + np.sqrt(0.3) * first["bias"]
    z2 = np.sqrt(1.5 / 15) * erf(z1) @ second["weight"] + np.sqrt(0.3) * second["bias"]
    z3 = np.sqrt(1.5 / 10) * erf(z2) @ readout["weight"]
    if readout_bias:
        z3 = z3 + np.sqrt(0.3) * readout["bias"]
    np.testing.assert_allclose(net.hidden(params, x), erf(z2), rtol=1e-12)
    np.testing.assert_allclose(net.apply(params, x), z3, rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_precision(dtype, x64):
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), NET.init(jax.random.key(0), 4, width=10))
    outputs = NET.apply(params, X.astype(dtype))
    assert outputs.dtype == dtype
    exact = NET.apply(jax.tree.map(lambda leaf: leaf.astype(np.float64), params), X.astype(np.float64))
    np.testing.assert_allclose(outputs, exact, rtol=100 * np.finfo(dtype).eps, atol=100 * np.finfo(dtype).eps)


def test_parameters_have_the_precision_that_is_on():
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(NET.init(jax.random.key(0), 4)))
    with jax.enable_x64(True):
        assert all(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves(NET.init(jax.random.key(0), 4)))


def test_apply_under_transformations():
    params = NET.init(jax.random.key(0), 4, width=10)
    outputs = NET.apply(params, X)
    np.testing.assert_allclose(eqx.filter_jit(NET.apply)(params, X), outputs, rtol=1e-5, atol=1e-6)
    one_by_one = jax.vmap(lambda x: NET.apply(params, x[None])[0])(jnp.asarray(X))
    np.testing.assert_allclose(one_by_one, outputs, rtol=1e-5, atol=1e-6)
    gradient = jax.grad(lambda p: NET.apply(p, X).sum())(params)
    # The output is linear in the readout: its gradients are known.
    scale = np.sqrt(1.5 / 10)
    np.testing.assert_allclose(gradient[-1]["weight"][:, 0], scale * NET.hidden(params, X).sum(0), rtol=1e-5)
    np.testing.assert_allclose(gradient[-1]["bias"], [len(X) * np.sqrt(0.3)], rtol=1e-5)


def test_outputs_are_differentiable_in_the_variances():
    params = NET.init(jax.random.key(0), 4, width=10)

    def output(weight_variance):
        return NET.replace(weight_variance=weight_variance).apply(params, X).sum()

    with jax.enable_x64(True):
        double = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
        by_hand = lambda c: NET.replace(weight_variance=c).apply(double, X.astype(np.float64)).sum()  # noqa: E731
        difference = (by_hand(1.5 + 1e-6) - by_hand(1.5 - 1e-6)) / 2e-6
    np.testing.assert_allclose(jax.grad(output)(1.5), difference, rtol=1e-4)


@pytest.mark.parametrize("params", [[None, None], gpntk.MLP(1).init(jax.random.key(0), 4)])
def test_parameters_must_fit_the_depth(params):
    with pytest.raises(ValueError, match=r"`params` must be parameters .* of this architecture"):
        NET.apply(params, X)


def test_inputs_must_fit_the_first_layer():
    with pytest.raises(ValueError, match="x has 3 features, but the layer expects 4 features as input"):
        NET.apply(NET.init(jax.random.key(0), 4, width=10), X[:, :3])


def test_replace_makes_another_network():
    deeper = NET.replace(depth=3, width_ratios=None)
    assert (NET.depth, deeper.depth) == (2, 3)
    assert deeper.activation == NET.activation
    np.testing.assert_allclose(gpjax.parameters.val(deeper.weight_variance), 1.5, rtol=1e-6)
    with pytest.raises(TypeError):
        NET.replace(width=3)


def test_replace_takes_one_traced_variance_beside_a_concrete_one():
    trace = lambda variance: gpntk.nngp_and_ntk(NET.replace(weight_variance=variance), X[:2])[0].sum()  # noqa: E731
    np.testing.assert_allclose(jax.jit(trace)(2.0), trace(2.0), rtol=1e-6)


def test_scikit_learn_reads_and_writes_the_constructor_arguments():
    arguments = {
        "depth": 2,
        "activation": gpntk.Erf(),
        "weight_variance": 1.5,
        "bias_variance": 0.3,
        "readout_bias": True,
        "width_ratios": (1.5, 1.0),
    }
    # Variances are stored through a softplus in double precision and come back to rounding.
    assert NET.get_params() == arguments | {
        k: pytest.approx(arguments[k], rel=1e-15) for k in arguments if "var" in k
    }
    assert gpntk.MLP().get_params()["bias_variance"] == 0.0
    changed = NET.set_params(bias_variance=0.0, depth=1, width_ratios=None)
    assert changed.get_params()["bias_variance"] == 0.0
    assert changed.depth == 1
    assert NET.depth == 2
    with pytest.raises(ValueError, match="Invalid parameter 'width' for MLP"):
        NET.set_params(width=3)
    assert clone(NET) is NET


def test_frozen_parameters_stay_frozen_through_get_params():
    x = jnp.asarray(X)
    for variance, trained in ((PositiveReal(1.5), True), (paramax.non_trainable(PositiveReal(1.5)), False)):
        again = gpntk.MLP(**gpntk.MLP(weight_variance=variance).get_params())
        slope = eqx.filter_grad(lambda net: gpntk.nngp_and_ntk(net, x)[0].sum())(again)
        assert any(np.any(leaf != 0.0) for leaf in jax.tree.leaves(slope)) == trained


def test_networks_are_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        NET.depth = 3


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_are_the_same_network(copied):
    twin = copied(NET)
    assert twin.get_params() == NET.get_params()
    params = NET.init(jax.random.key(0), 4, width=10)
    jax.tree.map(np.testing.assert_array_equal, twin.init(jax.random.key(0), 4, width=10), params)
    np.testing.assert_array_equal(twin.apply(params, X), NET.apply(params, X))
    for kernel, same in zip(gpntk.nngp_and_ntk(NET, X), gpntk.nngp_and_ntk(twin, X), strict=True):
        np.testing.assert_array_equal(kernel, same)
