"""What the user gets for bad input: an error that names the parameter, its value and what is allowed."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from gpjax.parameters import NonNegativeReal, Real

import gpntk

NET = gpntk.MLP(1, gpntk.Identity())
KERNEL = gpntk.NTK(NET)
KEY = jax.random.key(0)
X = np.ones((3, 2))
VARIANCE = "must be a finite real number"


def raises(error, *parts):
    """`pytest.raises` with a message that has all the parts, in this order."""
    return pytest.raises(error, match="(?s)" + ".*".join(re.escape(part) for part in parts))


INPUTS = {
    "one-dimensional": (X[0], "Expected 2D array, got 1D array instead", "(2,)"),
    "three-dimensional": (X[None], "Expected 2D array, got 3D array instead", "(1, 3, 2)", "flatten images"),
    "a number": (1.0, "Expected 2D array, got 0D array instead"),
    "no rows": (X[:0], "Found array with 0 sample(s) (shape=(0, 2))", "a minimum of 1 is required"),
    "no columns": (X[:, :0], "Found array with 0 feature(s) (shape=(3, 0))", "a minimum of 1 is required"),
    "strings": (np.full((3, 2), "a"), "must be an array of real numbers, got dtype <U1"),
    "objects": (np.full((3, 2), None), "must be an array of real numbers, got dtype object"),
    "complex": (X + 1j, "must be an array of real numbers, got dtype complex128"),
    "NaN": (np.where(X > 0, np.nan, 0), "contains NaN"),
    "infinity": (np.where(X > 0, -np.inf, 0), "contains infinity or a value too large"),
    "too large for float32": (X * 1e300, "contains infinity or a value too large for dtype('float32')"),
}
CALLS = {
    "nngp_and_ntk": lambda x: gpntk.nngp_and_ntk(NET, x),
    "nngp_and_ntk, x2": lambda x: gpntk.nngp_and_ntk(NET, X, x),
    "gram": KERNEL.gram,
    "cross_covariance": lambda x: KERNEL.cross_covariance(X, x),
    "diagonal": KERNEL.diagonal,
    "sum": (KERNEL + 1.0).gram,
    "apply": lambda x: NET.apply(NET.init(KEY, 2, 4), x),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("case", INPUTS)
def test_inputs(call, case):
    value, *message = INPUTS[case]
    with raises(ValueError, *message):
        CALLS[call](value)


@pytest.mark.parametrize("x", [X.tolist(), X.astype(int), X.astype(bool), X.astype(np.float16), jnp.asarray(X)])
def test_inputs_that_are_numbers_are_accepted(x):
    np.testing.assert_allclose(KERNEL.gram(x).as_matrix(), 8.0, rtol=1e-2)  # float16 has three digits


def test_sets_of_inputs_must_match():
    with raises(ValueError, "x2 has 1 features, but x1 has 2"):
        gpntk.nngp_and_ntk(NET, X, X[:, :1])
    with raises(ValueError, "y has 1 features, but x has 2"):
        KERNEL.cross_covariance(X, X[:, :1])
    with raises(ValueError, "y has 1 features, but x has 2"):
        KERNEL(X[0], X[0, :1])
    with raises(ValueError, "`x` must be one input of shape (n_features,)", "(3, 2)"):
        KERNEL(X, X)
    with raises(ValueError, "Input y contains NaN"):
        KERNEL(X[0], X[0] * np.nan)


def test_kernels_that_overflow_are_refused():
    deep = gpntk.MLP(20)
    huge = np.full((2, 2), 3e18, np.float32)  # the NNGP is finite in single precision, the NTK is not
    for call in (
        lambda: gpntk.nngp_and_ntk(deep, huge),
        lambda: gpntk.nngp_and_ntk(deep, huge, huge),
        lambda: gpntk.NTK(deep).gram(huge),
        lambda: gpntk.NTK(deep).cross_covariance(huge, huge),
        lambda: gpntk.NTK(deep).diagonal(huge),
        lambda: gpntk.NTK(deep)(huge[0], huge[0]),
        lambda: gpntk.NNGP(NET, variance=1e30).gram(np.full((2, 2), 1e10, np.float32)),
    ):
        with raises(ValueError, "Kernel values are not finite in float32"):
            call()


def test_columns_of_the_inputs():
    with raises(ValueError, "x has 2 features, but `active_dims` is slice(0, 3, None)"):
        gpntk.NTK(NET, active_dims=slice(0, 3)).gram(X)
    with raises(ValueError, "x has 2 features, but `active_dims` is [0, 2]"):
        gpntk.NTK(NET, active_dims=[0, 2]).gram(X)
    with raises(ValueError, "x has 2 features, but `n_dims` is 3"):
        gpntk.NTK(NET, n_dims=3).gram(X)
    with raises(ValueError, "`active_dims` must be a non-empty list of integers or a slice", "got []"):
        gpntk.NTK(NET, active_dims=[])
    with raises(ValueError, "`active_dims`", "a slice with a stop", "slice(1, None, None)"):
        gpntk.NTK(NET, active_dims=slice(1, None))
    for wrong in ((0, 1), [0.5], [True, False], "ab"):
        with raises(TypeError, "`active_dims` must be a non-empty list of integers", repr(wrong)):
            gpntk.NTK(NET, active_dims=wrong)


ARCHITECTURES = {
    "weight_variance zero": ({"weight_variance": 0}, ValueError, "`weight_variance`", VARIANCE + " > 0", "0"),
    "weight_variance negative": ({"weight_variance": -1}, ValueError, "`weight_variance`", VARIANCE, "-1"),
    "weight_variance NaN": ({"weight_variance": np.nan}, ValueError, "`weight_variance`", VARIANCE, "nan"),
    "weight_variance infinite": ({"weight_variance": np.inf}, ValueError, "`weight_variance`", VARIANCE, "inf"),
    "weight_variance string": ({"weight_variance": "a"}, TypeError, "`weight_variance`", VARIANCE, "'a'"),
    "weight_variance None": ({"weight_variance": None}, TypeError, "`weight_variance`", VARIANCE, "None"),
    "weight_variance array": ({"weight_variance": np.ones(2)}, TypeError, "`weight_variance`", VARIANCE, "array"),
    "weight_variance parameter": ({"weight_variance": Real(-1.0)}, ValueError, "`weight_variance`", "-1"),
    "bias_variance negative": ({"bias_variance": -1}, ValueError, "`bias_variance`", VARIANCE + " >= 0", "-1"),
    "bias_variance NaN": ({"bias_variance": np.nan}, ValueError, "`bias_variance`", VARIANCE, "nan"),
    "bias_variance boolean": ({"bias_variance": True}, TypeError, "`bias_variance`", VARIANCE, "True"),
    "depth zero": ({"depth": 0}, ValueError, "`depth` must be an integer >= 1", "0"),
    "depth fractional": ({"depth": 1.5}, TypeError, "`depth` must be an integer >= 1", "1.5"),
    "depth boolean": ({"depth": True}, TypeError, "`depth` must be an integer >= 1", "True"),
    "activation by name": ({"activation": "relu"}, TypeError, "`activation` must be an activation", "'relu'"),
    "activation class": ({"activation": gpntk.ReLU}, TypeError, "`activation`", "Did you mean ReLU()?"),
    "activation function": ({"activation": jnp.tanh}, TypeError, "`activation`", "gpntk.Elementwise(function)"),
    "readout_bias": ({"readout_bias": "no"}, TypeError, "`readout_bias` must be True or False", "'no'"),
    "width_ratios number": (
        {"width_ratios": 1.0},
        TypeError,
        "`width_ratios` must be a sequence of numbers",
        "1.0",
    ),
    "width_ratios too few": ({"width_ratios": (1.0,)}, ValueError, "`width_ratios` must be 2 positive", "(1.0,)"),
    "width_ratios last": ({"width_ratios": (1, 2)}, ValueError, "`width_ratios`", "the last one 1", "(1.0, 2.0)"),
    "width_ratios zero": ({"width_ratios": (0, 1)}, ValueError, "`width_ratios`", "> 0", "0"),
    "width_ratios strings": ({"width_ratios": ("a", 1)}, TypeError, "`width_ratios`", "'a'"),
}


@pytest.mark.parametrize("case", ARCHITECTURES)
@pytest.mark.parametrize("build", [gpntk.MLP, gpntk.MLP().replace, gpntk.MLP().set_params])
def test_architectures(case, build):
    arguments, error, *message = ARCHITECTURES[case]
    with raises(error, *message):
        build(**{"depth": 2, **arguments})


def test_unknown_arguments():
    with raises(TypeError, "depht"):
        gpntk.MLP(depht=2)
    with raises(ValueError, "Invalid parameter 'depht' for MLP", "Valid parameters are", "'depth'"):
        gpntk.MLP().set_params(depht=2)
    with raises(AttributeError, "module 'gpntk' has no attribute 'RELU'"):
        gpntk.RELU  # noqa: B018


def test_a_zero_parameter_means_no_biases():
    assert gpntk.MLP(bias_variance=NonNegativeReal(0.0)).bias_variance is None


def test_finite_networks():
    with raises(ValueError, "`width` must be an integer >= 1", "0"):
        NET.init(KEY, 2, width=0)
    with raises(TypeError, "`width` must be an integer >= 1", "2.5"):
        NET.init(KEY, 2, width=2.5)
    with raises(ValueError, "`input_dim` must be given"):
        NET.init(KEY)
    with raises(ValueError, "`input_dim` must be an integer >= 1", "0"):
        NET.init(KEY, 0)
    with raises(ValueError, "`n_outputs` must be an integer >= 1", "-1"):
        NET.init(KEY, 2, n_outputs=-1)


KEYED = {
    "init": lambda key: NET.init(key, 2, width=4),
    "sample_kernels": lambda key: gpntk.sample_kernels(NET, X, 4, 2, key),
    "train_ensemble": lambda key: gpntk.train_ensemble(NET, X, X[:, 0], key, 1, optax.sgd(0.1), 1, width=4),
    "random_rotations": lambda key: gpntk.groups.random_rotations(key, 3),
}


@pytest.mark.parametrize("call", KEYED.values(), ids=KEYED)
def test_random_keys(call):
    for wrong in (0, np.float32(1), np.zeros(2, int), jax.random.split(KEY)):
        with raises(TypeError, "`key` must be a JAX random key such as jax.random.key(0)", repr(wrong)):
            call(wrong)
    old_style, new_style = jax.tree.leaves(call(jax.random.PRNGKey(0))), jax.tree.leaves(call(KEY))
    assert all(np.array_equal(a, b) for a, b in zip(old_style, new_style, strict=True))


@pytest.mark.parametrize("build", [gpntk.NNGP, gpntk.NTK, lambda net: gpntk.nngp_and_ntk(net, X)])
def test_kernels_of_something_else_than_a_network(build):
    with raises(TypeError, "`net` must be an architecture", "Did you mean MLP()?"):
        build(gpntk.MLP)
    with raises(TypeError, "`net` must be an architecture", "'mlp'"):
        build("mlp")


def test_output_scale_and_engine():
    for wrong, error in ((0.0, ValueError), (-1.0, ValueError), (np.nan, ValueError), ("a", TypeError)):
        with raises(error, "`variance` must be a finite real number > 0", "got"):
            gpntk.NNGP(NET, variance=wrong)
    with raises(TypeError, "`compute_engine` must be an engine", "'fast'"):
        gpntk.NNGP(NET, compute_engine="fast")
    with raises(ValueError, "`block_size` must be an integer >= 1", "0"):
        gpntk.BlockedComputation(0)
    with raises(TypeError, "`block_size` must be an integer >= 1", "1.5"):
        gpntk.BlockedComputation(1.5)


def test_sums_and_products_with_what_is_no_kernel():
    for combine in (lambda n: KERNEL + n, lambda n: n + KERNEL, lambda n: KERNEL * n, lambda n: n * KERNEL):
        with raises(ValueError, "must be a finite real number >= 0, got -1"):
            combine(-1)
        with raises(ValueError, "must be a finite real number >= 0, got nan"):
            combine(np.nan)
        for wrong in ("a", None, X, [KERNEL]):
            with pytest.raises(TypeError, match=r"operand|concatenate|multiply"):
                combine(wrong)
    with raises(TypeError, "`kernel` must be a GPJax kernel or a number", "'a'"):
        gpntk.Sum(KERNEL, "a")
    with raises(ValueError, "Product needs at least one kernel"):
        gpntk.Product()
