"""Sums and products: with GPJax's kernels and with numbers, in every order, through our engine."""

import gpjax as gpx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from gpjax.kernels import RBF, Linear, Matern32, ProductKernel, SumKernel, White
from gpjax.parameters import val

import gpntk
from gpntk import NNGP, NTK, BlockedComputation, Product, Sum
from gpntk.kernels import AbstractFeatureKernel

pytestmark = pytest.mark.usefixtures("x64")

# How kernels combine does not depend on the activation: one that compiles quickly.
NET = gpntk.MLP(1, gpntk.Identity(), bias_variance=0.1)


@pytest.fixture
def x():
    return jnp.asarray(np.random.default_rng(0).normal(size=(9, 3)))


def matrix(kernel, x):
    return kernel.gram(x).as_matrix()


# Each: the combination, and what its Gram matrix must be from those of NTK(NET) and RBF().
CASES = {
    "ours + gpjax": (lambda k, r: k + r, lambda k, r: k + r),
    "gpjax + ours": (lambda k, r: r + k, lambda k, r: k + r),
    "ours * gpjax": (lambda k, r: k * r, lambda k, r: k * r),
    "gpjax * ours": (lambda k, r: r * k, lambda k, r: k * r),
    "Sum(gpjax, ours)": (lambda k, r: Sum(r, k), lambda k, r: k + r),
    "Sum(gpjax + ours)": (lambda k, r: Sum(r + k), lambda k, r: k + r),
    "Product(gpjax * ours)": (lambda k, r: Product(r * k), lambda k, r: k * r),
    "number + ours": (lambda k, r: 0.5 + k, lambda k, r: 0.5 + k),
    "ours + number": (lambda k, r: k + 0.5, lambda k, r: 0.5 + k),
    "number * ours": (lambda k, r: 2 * k, lambda k, r: 2 * k),
    "ours * number": (lambda k, r: k * 2, lambda k, r: 2 * k),
    "numpy number": (lambda k, r: np.float64(2) * k + np.float32(0.5), lambda k, r: 2 * k + 0.5),
    "jax number": (lambda k, r: jnp.float64(2) * k + jnp.float64(0.5), lambda k, r: 2 * k + 0.5),
    "nested": (lambda k, r: (k + r) * (0.5 + k * r), lambda k, r: (k + r) * (0.5 + k * r)),
    "sum()": (lambda k, r: sum([k, k, r]), lambda k, r: k + k + r),
}


@pytest.mark.parametrize("case", CASES)
def test_combinations_are_entrywise(case, x):
    combine, expected = CASES[case]
    ours, theirs = NTK(NET), RBF(lengthscale=0.7, variance=1.3)
    combination = combine(ours, theirs)
    values = expected(matrix(ours, x), matrix(theirs, x))
    np.testing.assert_allclose(matrix(combination, x), values, rtol=1e-12)
    if case in ("nested", "Sum(gpjax, ours)", "gpjax + ours"):
        np.testing.assert_allclose(combination.cross_covariance(x[:4], x), values[:4], rtol=1e-12)
        np.testing.assert_allclose(lx.diagonal(combination.diagonal(x)), np.diagonal(values), rtol=1e-12)
        np.testing.assert_allclose(combination(x[1], x[2]), values[1, 2], rtol=1e-12)


@pytest.mark.parametrize("case", [case for case in CASES if case not in ("gpjax + ours", "gpjax * ours")])
def test_combinations_keep_the_engine(case, x, monkeypatch):
    """No entry is computed by the scalar `__call__`, as GPJax's own combinations would."""

    def refuse(self, x, y):
        raise AssertionError("evaluated pair by pair")

    monkeypatch.setattr(AbstractFeatureKernel, "__call__", refuse)
    combination = CASES[case][0](NTK(NET), RBF())
    assert isinstance(combination, Sum | Product)
    assert isinstance(combination.compute_engine, BlockedComputation)
    jax.eval_shape(lambda x: combination.gram(x).as_matrix(), x)
    jax.eval_shape(lambda x: combination.cross_covariance(x, x[:4]), x)
    jax.eval_shape(lambda x: lx.diagonal(combination.diagonal(x)), x)


def test_gpjax_combinations_do_not_keep_the_engine(x, monkeypatch):
    """The check above can fail: `gpjax + ours` is GPJax's."""
    monkeypatch.setattr(AbstractFeatureKernel, "__call__", lambda self, x, y: 1 / 0)
    assert isinstance(RBF() + NTK(NET), SumKernel)
    with pytest.raises(ZeroDivisionError):
        (RBF() + NTK(NET)).gram(x)


def test_nested_sums_and_products_are_flat():
    k, r = NNGP(NET), RBF()
    types = lambda kernel: [type(part) for part in kernel.kernels]  # noqa: E731
    assert types((k + r) + (k + 1.0)) == [NNGP, RBF, NNGP, type((k + 1.0).kernels[1])]
    assert types(Sum(r + k, k)) == [RBF, NNGP, NNGP]
    assert types(k * r * k) == [NNGP, RBF, NNGP]
    assert types(Product(r * k)) == [RBF, NNGP]
    assert types(k * r + r) == [Product, RBF]
    assert types(Sum(ProductKernel([r, k]), k)) == [ProductKernel, NNGP]


def test_combinations_take_the_engine_of_our_kernel():
    blocks = BlockedComputation(64)
    assert (1.0 + NNGP(NET, compute_engine=blocks)).compute_engine == blocks
    assert Sum(RBF(), NNGP(NET, compute_engine=blocks) * 2).compute_engine == blocks
    assert Sum(RBF(), NNGP(NET), compute_engine=blocks).compute_engine == blocks
    assert Sum(RBF(), Linear()).compute_engine == BlockedComputation()


def test_blocks_of_a_combination_do_not_change_it(x):
    parts = NTK(NET), RBF(), 0.5, Matern32(), White(variance=0.1)
    whole, tiled = Sum(*parts), Sum(*parts, compute_engine=BlockedComputation(4))
    gram = matrix(tiled, x)
    np.testing.assert_allclose(gram, matrix(whole, x), rtol=1e-12)
    np.testing.assert_array_equal(gram, gram.T)
    np.testing.assert_array_equal(jnp.diagonal(gram), lx.diagonal(tiled.diagonal(x)))


def test_each_kernel_keeps_its_active_dims(x):
    combination = NTK(NET, active_dims=[0, 2]) + RBF(active_dims=[1])
    expected = matrix(NTK(NET), x[:, [0, 2]]) + matrix(RBF(), x[:, [1]])
    np.testing.assert_allclose(matrix(combination, x), expected, rtol=1e-12)


def test_combinations_of_float32_inputs_are_float32(x):
    x = x.astype(jnp.float32)
    for combination in (NTK(NET) + 0.5, 2 * NTK(NET), NTK(NET) + RBF(), NTK(NET) * Linear()):
        assert matrix(combination, x).dtype == jnp.float32


def test_integer_inputs_are_real_numbers():
    """A number is not rounded to the type of the inputs."""
    kernel, x, y = NTK(NET), jnp.array([1, 2]), jnp.array([2, 1])
    np.testing.assert_allclose((kernel + 0.5)(x, y), kernel(x, y) + 0.5, rtol=1e-14)


def test_numbers_are_not_trained_and_parameters_of_all_parts_are():
    kernel = 0.5 + NTK(NET, variance=1.0) * RBF()
    assert len(jax.tree.leaves(kernel)) == 5  # two variances, the output scale, lengthscale and variance


def test_a_traced_number_is_differentiated(x):
    gradient = jax.grad(lambda scale: jnp.sum(matrix(scale * NTK(NET), x)))(2.0)
    np.testing.assert_allclose(gradient, jnp.sum(matrix(NTK(NET), x)), rtol=1e-12)


def test_gradients_reach_every_part(x):
    def total(weight_variance, lengthscale, kind):
        net = gpntk.MLP(1, gpntk.Erf(), weight_variance=weight_variance)
        rbf = RBF(lengthscale=lengthscale)
        return jnp.sum(matrix(kind(rbf, NTK(net), 0.5), x))

    for kind in (Sum, Product):
        gradients = jax.grad(total, (0, 1))(1.2, 0.8, kind)
        for argument, gradient in enumerate(gradients):
            # Central differences: error of order step^2 and eps / step.
            step = 1e-5 * np.eye(2)[argument]
            difference = total(*(np.array([1.2, 0.8]) + step), kind) - total(*(np.array([1.2, 0.8]) - step), kind)
            np.testing.assert_allclose(gradient, difference / 2e-5, rtol=1e-7)


def test_a_combination_in_a_combination_of_gpjax(x):
    combination = (Linear() + (NTK(NET) + 0.5)) * Matern32()
    expected = (matrix(Linear(), x) + matrix(NTK(NET), x) + 0.5) * matrix(Matern32(), x)
    np.testing.assert_allclose(matrix(combination, x), expected, rtol=1e-12)


def test_a_trained_constant_is_gpjax_s(x):
    kernel = NTK(NET) * gpx.kernels.Constant(constant=3.0)
    np.testing.assert_allclose(matrix(kernel, x), 3 * matrix(NTK(NET), x), rtol=1e-12)
    assert float(val(kernel.kernels[1].constant)) == 3.0


def test_kernels_of_several_outputs_are_refused():
    several = gpx.kernels.ICMKernel(NTK(NET), gpx.parameters.CoregionalizationMatrix(2, 1, jax.random.key(0)))
    with pytest.raises(TypeError, match="`kernel` must have one output, got ICMKernel"):
        NTK(NET) + several
