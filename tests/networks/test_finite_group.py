import re

import equinox as eqx
import jax
import numpy as np
import pytest
from literal_recursion import readout, relu_moments, site_kernels

import gpntk
from gpntk.groups import FiniteGroup

VARIANCES = {"weight_variance": 1.3, "bias_variance": 0.2}
ROUNDING = 1e-12
S3 = FiniteGroup.symmetric(3, channels=2)
CASES = {
    "full": (S3, None),
    "subsets": (S3, ((0, 1), (0, 2, 3), (1, 4))),
    "partly-full": (S3, (None, None, (0, 5))),
    "dihedral": (FiniteGroup.dihedral(4, channels=2), (None, (0, 1), (3, 4, 6))),
    "unfaithful": (FiniteGroup.dihedral(2, channels=2), ((0,), None, None)),
}
every_case = pytest.mark.parametrize(
    "case", [c if c in ("full", "subsets") else pytest.param(c, marks=pytest.mark.slow) for c in CASES]
)

pytestmark = pytest.mark.usefixtures("x64")


def network(case, depth=3):
    group, supports = CASES[case]
    return gpntk.FiniteGroupCNN(group, channels=2, depth=depth, supports=supports, **VARIANCES)


def inputs(net, n=3, seed=0):
    """Random inputs; the last one is on the orbit of the first one."""
    x = np.random.default_rng(seed).normal(size=(n, net.n_features))
    x[-1] = net.group.transform(x[:1], net.group.order - 1)[0]
    return x


def literal(net, x):
    group, supports = net.group, net.supports or (None,) * net.depth
    points, elements = (
        list(range(n)) if s is None else list(s) for n, s in ((group.points, supports[0]), (group.order, None))
    )
    neighbours = [group.permutations[:, points]]
    neighbours += [group.table[:, elements if s is None else list(s)] for s in supports[1:]]
    signals = x.reshape(len(x), group.points, 2)
    kernels = [
        [site_kernels(a, b, neighbours, relu_moments, *VARIANCES.values()) for b in signals] for a in signals
    ]
    return readout(*np.moveaxis(np.array(kernels), 2, 0), *VARIANCES.values())


@every_case
def test_kernels_are_those_of_the_recursion_on_pairs_of_group_elements(case):
    net = network(case)
    x = inputs(net)
    expected = literal(net, x)
    for ours, theirs in zip(gpntk.nngp_and_ntk(net, x), expected, strict=True):
        np.testing.assert_allclose(ours, theirs.mean((2, 3)), rtol=ROUNDING)
    for ours, theirs in zip(gpntk.unpooled_kernels(net, x), expected, strict=True):
        if net.supports is None:
            quotient = net.group.table[:, net.group.inverse]
            ours = ours[..., quotient]
        np.testing.assert_allclose(ours, theirs, rtol=ROUNDING)


@every_case
def test_kernels_and_networks_are_invariant(case):
    net = network(case)
    x = inputs(net)
    params = net.init(jax.random.key(0), width=8)
    apply = eqx.filter_jit(net.apply)
    kernels, outputs = gpntk.nngp_and_ntk(net, x, x), apply(params, x)
    assert np.std(outputs[:2]) > 0.01
    for moved in net.group.act(x):
        for k, before in zip(gpntk.nngp_and_ntk(net, moved, x), kernels, strict=True):
            np.testing.assert_allclose(k, before, rtol=ROUNDING)
        for k, before in zip(gpntk.nngp_and_ntk(net, x, moved), kernels, strict=True):
            np.testing.assert_allclose(k, before, rtol=ROUNDING)
        np.testing.assert_allclose(apply(params, moved), outputs, atol=ROUNDING)


def test_equivariant_mlp_is_the_orbit_average():
    mlp = gpntk.MLP(depth=3, activation=gpntk.Erf(), readout_bias=False, width_ratios=(2, 1, 1), **VARIANCES)
    net = gpntk.equivariant(mlp, S3)
    assert (net.depth, net.channels, net.readout_bias, net.width_ratios) == (3, 2, False, (2.0, 1.0, 1.0))
    x = inputs(net, 4)
    orbit = [gpntk.nngp_and_ntk(mlp, x, y) for y in S3.act(x)]
    for ours, theirs in zip(gpntk.nngp_and_ntk(net, x), zip(*orbit, strict=True), strict=True):
        np.testing.assert_allclose(ours, sum(theirs) / S3.order, rtol=ROUNDING)


def test_gram_diagonals_and_orbits_are_exact():
    # Long inputs: inner products round by more than the tolerance of kinked activations.
    net = gpntk.FiniteGroupCNN(FiniteGroup.product(FiniteGroup.cyclic(2), FiniteGroup.cyclic(4), 300), 300, 4)
    x = inputs(net, 4)
    nngp, ntk = gpntk.nngp_and_ntk(net, x)
    cross = gpntk.nngp_and_ntk(net, x, x)
    for k, other in zip((nngp, ntk), cross, strict=True):
        np.testing.assert_array_equal(k, k.T)
        np.testing.assert_allclose(k[-1], k[0], rtol=1e-13)
        np.testing.assert_allclose(k, other, rtol=1e-13)


def test_kernel_objects_match_single_pairs_and_train():
    net = network("subsets")
    x = inputs(net)
    kernel = gpntk.NTK(net)
    gram = kernel.gram(x).as_matrix()
    np.testing.assert_allclose(eqx.filter_jit(kernel)(x[0], x[1]), gram[0, 1], rtol=ROUNDING)
    gradient = jax.jit(jax.grad(lambda k: k.gram(x).as_matrix().sum()))(kernel)
    assert np.isfinite(gradient.net.weight_variance._unconstrained)
    assert len(jax.tree.leaves(kernel)) == 2


def test_full_supports_are_recognised():
    full = gpntk.FiniteGroupCNN(S3, 2, depth=2, supports=((2, 0, 1), None))
    assert full.supports is None
    assert full.domain.sites_per_pair == 6
    assert network("subsets").domain.sites_per_pair == 36
    assert network("subsets").replace(depth=2, supports=None).supports is None


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: gpntk.FiniteGroupCNN("C4"), TypeError, "`group` must be a FiniteGroup"),
        (lambda: gpntk.FiniteGroupCNN(S3, channels=3), ValueError, "`channels` must be 2"),
        (lambda: gpntk.FiniteGroupCNN(S3, 2, supports=((0,),)), ValueError, "must be None or have 2 entries"),
        (lambda: gpntk.FiniteGroupCNN(S3, 2, supports=((0, 3), None)), ValueError, "`supports[0]` must be"),
        (
            lambda: gpntk.FiniteGroupCNN(S3, 2, supports=(None, ())),
            ValueError,
            "must be a non-empty set",
        ),
        (lambda: gpntk.FiniteGroupCNN(S3, 2, supports=(None, (1, 1))), ValueError, "different integers below 6"),
        (
            lambda: gpntk.FiniteGroupCNN(S3, 2, supports=(None, (0.5,))),
            TypeError,
            "`supports[1]` must be",
        ),
        (lambda: gpntk.FiniteGroupCNN(S3, 2).init(jax.random.key(0), 5), ValueError, "`input_dim` must be 6"),
        (
            lambda: gpntk.nngp_and_ntk(gpntk.FiniteGroupCNN(S3, 2), np.ones((1, 5))),
            ValueError,
            "x1 has 5 features",
        ),
    ],
)
def test_bad_input_is_refused(make, error, message):
    with pytest.raises(error, match=re.escape(message)):
        make()
