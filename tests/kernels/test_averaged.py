import re

import equinox as eqx
import gpjax as gpx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gpntk
from gpntk.groups import C4, D4, FiniteGroup, augment
from gpntk.kernels import is_invariant

SHAPE = (4, 4, 1)
ROUNDING = 1e-12
CNN = gpntk.CNN(SHAPE, 2, weight_variance=1.3, bias_variance=0.2)
MLP = gpntk.MLP(2, weight_variance=1.3, bias_variance=0.2)
S3 = FiniteGroup.symmetric(3)
RBF = gpx.kernels.RBF(lengthscale=2.0)
WIDE = gpx.kernels.RBF(lengthscale=20.0)
# Invariant under nothing.
ARD = gpx.kernels.RBF(lengthscale=jnp.linspace(1.0, 3.0, 3))

pytestmark = pytest.mark.usefixtures("x64")


def data(n, group, seed=0):
    return np.random.default_rng(seed).normal(size=(n, group.n_features))


def literal(kernel, group, x, y, both=False):
    total = 0.0
    for moved in group.act(x) if both else [x]:
        for other in group.act(y):
            total = total + kernel.cross_covariance(jnp.asarray(moved), other)
    return total / (group.order ** (2 if both else 1))


@pytest.mark.parametrize(
    ("kernel", "group", "both"),
    [
        (gpntk.NTK(MLP), S3, False),
        (gpntk.NNGP(MLP) * 2.0 + RBF, S3, False),
        (RBF * gpx.kernels.Linear(), S3, False),
        (ARD, S3, True),
        (gpntk.NTK(MLP) + ARD, S3, True),
        (gpntk.NTK(CNN), C4(SHAPE), False),
    ],
    ids=["ntk", "combination", "gpjax", "ard", "ntk+ard", "cnn"],
)
def test_averages_are_sums_over_the_group(kernel, group, both):
    averaged = gpntk.GroupAveraged(kernel, group)
    assert averaged.one_sided != both
    x, y = data(5, group), data(3, group, seed=1)
    y[2] = group.transform(x, 1)[0]
    cross = averaged.cross_covariance(x, y)
    np.testing.assert_allclose(cross, literal(kernel, group, x, y, both), rtol=ROUNDING)
    gram = averaged.gram(x).as_matrix()
    # GPJax's distances at coincidence round like 1e-16 under a root.
    np.testing.assert_allclose(gram, averaged.cross_covariance(x, x), rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(gram, gram.T)
    np.testing.assert_array_equal(jnp.diagonal(gram), jnp.diagonal(averaged.diagonal(x).as_matrix()))
    np.testing.assert_allclose(eqx.filter_jit(averaged)(x[0], x[1]), gram[0, 1], rtol=ROUNDING)
    np.testing.assert_allclose(averaged.cross_covariance(group.transform(x, 2), y), cross, rtol=ROUNDING)
    np.testing.assert_allclose(averaged.cross_covariance(x, group.transform(y, 1)), cross, rtol=ROUNDING)


def test_both_sides_of_an_invariant_kernel_change_nothing():
    x = data(4, S3)
    one, both = (gpntk.GroupAveraged(gpntk.NTK(MLP), S3, sides) for sides in ("one", "both"))
    assert one.one_sided
    assert not both.one_sided
    np.testing.assert_allclose(one.gram(x).as_matrix(), both.gram(x).as_matrix(), rtol=ROUNDING)


def test_blocks_and_compositions_change_nothing():
    group = C4(SHAPE)
    x = data(7, group)
    whole = gpntk.GroupAveraged(gpntk.NTK(CNN), group)
    blocks = gpntk.GroupAveraged(gpntk.NTK(CNN), group, compute_engine=gpntk.BlockedComputation(3))
    gram = whole.gram(x).as_matrix()
    np.testing.assert_allclose(blocks.gram(x).as_matrix(), gram, rtol=ROUNDING)
    combination = 2.0 * whole + gpntk.NNGP(MLP)
    expected = 2.0 * gram + gpntk.NNGP(MLP).gram(x).as_matrix()
    np.testing.assert_allclose(combination.gram(x).as_matrix(), expected, rtol=ROUNDING)
    assert whole.sites_per_pair == gpntk.NTK(CNN).sites_per_pair > 1


@pytest.mark.parametrize(("name", "make"), [("C4", C4), pytest.param("D4", D4, marks=pytest.mark.slow)])
def test_average_of_the_cnn_kernel_is_the_group_kernel(name, make):
    group = make(SHAPE)
    x, y = data(3, group), data(2, group, seed=1)
    net = gpntk.PlanarGroupCNN(name, SHAPE, 2, weight_variance=1.3, bias_variance=0.2)
    assert gpntk.equivariant(CNN, group) == net
    for kind in (gpntk.NNGP, gpntk.NTK):
        averaged = gpntk.GroupAveraged(kind(CNN), group)
        np.testing.assert_allclose(
            averaged.cross_covariance(x, y), kind(net).cross_covariance(x, y), rtol=ROUNDING
        )
        np.testing.assert_allclose(averaged.gram(x).as_matrix(), kind(net).gram(x).as_matrix(), rtol=ROUNDING)


def test_base_kernel_and_its_gradients_are_trained():
    x = data(4, S3)
    averaged = gpntk.GroupAveraged(gpntk.NTK(MLP, variance=0.7), S3)
    leaves = jax.tree.leaves(averaged)
    assert len(leaves) == 3

    def value(kernel):
        return jnp.sum(jnp.cos(kernel.gram(x).as_matrix()))

    def by_hand(kernel):
        return jnp.sum(jnp.cos(literal(kernel, S3, x, x)))

    ours, theirs = jax.jit(jax.grad(value))(averaged).kernel, jax.jit(jax.grad(by_hand))(averaged.kernel)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10)


def test_gpjax_models_take_averaged_kernels():
    x = jnp.asarray(data(6, S3))
    dataset = gpx.Dataset(x, jnp.sin(x.sum(1, keepdims=True)))
    prior = gpx.gps.Prior(mean_function=gpx.mean_functions.Zero(), kernel=gpntk.GroupAveraged(RBF, S3))
    posterior = prior * gpx.likelihoods.Gaussian()
    means = [posterior.predict(moved, train_data=dataset).mean for moved in S3.act(x + 0.3)]
    for mean in means[1:]:
        np.testing.assert_allclose(mean, means[0], rtol=1e-9)


@pytest.mark.parametrize("kernel", [gpntk.NTK(CNN), gpntk.NTK(MLP), WIDE], ids=["cnn", "mlp", "rbf"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_regression_on_the_augmented_set_is_regression_with_the_average(kernel, reduction):
    group, alpha = C4(SHAPE), 0.1
    x, far = data(4, group), 10.0 * data(3, group, seed=1)
    y = np.random.default_rng(2).normal(size=(4, 2))
    averaged = gpntk.GroupAveraged(kernel, group)
    flows = [
        gpntk.GradientFlow(averaged, None, x, y, alpha=alpha, reduction=reduction),
        gpntk.GradientFlow(kernel, None, *augment(x, y, group), alpha=group.order * alpha, reduction=reduction),
    ]
    # With the sum over examples, the augmented set trains |G| times faster.
    speed = group.order if reduction == "sum" else 1
    for time in (0.01, 1.0, 100.0, np.inf):
        ours, augmented = flows[0].mean(far, time), flows[1].mean(far, time / speed)
        assert np.max(np.abs(ours)) > 1e-3
        np.testing.assert_allclose(ours, augmented, atol=1e-10)


def test_the_average_predicts_what_explicit_formulas_on_the_augmented_set_do():
    # The closed form of gradient flow, from one eigendecomposition, without the package.
    group, alpha, kernel = D4(SHAPE), 0.05, gpntk.NTK(CNN)
    x, far, y = data(3, group), data(2, group, seed=1), np.array([0.3, -1.0, 0.7])
    many, labels = augment(x, y, group)
    averaged = gpntk.GroupAveraged(kernel, group)

    def mean(kernel, inputs, targets, alpha, time):
        values, vectors = np.linalg.eigh(np.asarray(kernel.gram(inputs).as_matrix()) + alpha * np.eye(len(inputs)))
        response = -np.expm1(-values * time / len(inputs)) / values
        return (
            np.asarray(kernel.cross_covariance(far, inputs))
            @ (vectors * response)
            @ vectors.T
            @ np.asarray(targets)
        )

    for time in (0.1, 3.0, np.inf):
        ours = mean(averaged, x, y, alpha, time)
        np.testing.assert_allclose(ours, mean(kernel, many, labels, group.order * alpha, time), atol=1e-10)


def test_invariance_is_known_only_where_it_holds():
    group = C4(SHAPE)
    invariant = [
        gpntk.NTK(MLP),
        gpntk.NNGP(CNN),
        gpntk.NTK(gpntk.PlanarGroupCNN("C4", SHAPE)),
        gpx.kernels.Matern32(lengthscale=jnp.array([2.0])),
        gpx.kernels.Polynomial(degree=2),
        gpntk.NTK(MLP) * RBF + 1.0,
        gpx.kernels.SumKernel([RBF, gpx.kernels.Constant(constant=0.5)]),
        gpntk.GroupAveraged(ARD, group),
    ]
    unknown = [
        gpntk.NTK(gpntk.CNN(SHAPE, filter_size=2)),
        gpntk.NTK(MLP, active_dims=[0, 1]),
        gpntk.NTK(gpntk.FiniteGroupCNN(FiniteGroup.cyclic(16))),
        gpx.kernels.RBF(active_dims=[0, 1]),
        gpx.kernels.Periodic(),
        gpntk.NTK(MLP) + ARD,
        gpntk.GroupAveraged(ARD, D4(SHAPE)),
    ]
    assert all(is_invariant(kernel, group) for kernel in invariant)
    assert not any(is_invariant(kernel, group) for kernel in unknown)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: gpntk.GroupAveraged(ARD, S3, "one"), ValueError, 'must be "auto" or "both" for RBF, got "one"'),
        (lambda: gpntk.GroupAveraged(RBF, S3, "left"), ValueError, "`sides` must be one of 'auto', 'one', 'both'"),
        (lambda: gpntk.GroupAveraged(MLP, S3), TypeError, "`kernel` must be a GPJax kernel"),
        (lambda: gpntk.GroupAveraged(RBF, "C4"), TypeError, "`group` must be a group"),
        (lambda: gpntk.GroupAveraged(RBF, S3).gram(np.ones((2, 4))), ValueError, "expects 3 features"),
    ],
)
def test_bad_input_is_refused(make, error, message):
    with pytest.raises(error, match=re.escape(message)):
        make()
