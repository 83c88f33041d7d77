import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from literal_recursion import (
    erf_moments,
    group_neighbours,
    image_neighbours,
    point_table,
    readout,
    relu_moments,
    site_kernels,
)

import gpntk
from gpntk.groups import C4, D4, FiniteGroup

VARIANCES = {"weight_variance": 1.3, "bias_variance": 0.2}
ACTIVATIONS = {"relu": (gpntk.ReLU(), relu_moments), "erf": (gpntk.Erf(), erf_moments)}
GROUPS = {"C4": C4, "D4": D4}
# Kernels are of order one and layers few: a few dozen roundings in double precision.
ROUNDING = 1e-12

each_padding = pytest.mark.parametrize("padding", ["same", "valid", "circular"])

pytestmark = pytest.mark.usefixtures("x64")


def images(n, shape, seed=0):
    return np.random.default_rng(seed).normal(size=(n, int(np.prod(shape))))


def pairwise(f, x1, x2):
    """A function of two signals for all pairs of inputs, (2, N1, N2, ...)."""
    return np.moveaxis(np.array([[f(a, b) for b in x2] for a in x1]), 2, 0)


def assert_close(ours, theirs, tolerance=ROUNDING):
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@each_padding
@pytest.mark.parametrize(
    ("kind", "activation", "filter_size"),
    [
        ("pool", "relu", 3),
        ("flatten", "erf", 2),
        pytest.param("pool", "erf", 2, marks=pytest.mark.slow),
        pytest.param("flatten", "relu", 3, marks=pytest.mark.slow),
    ],
)
def test_cnn_kernels_are_those_of_the_recursion(padding, kind, activation, filter_size):
    act, moments = ACTIVATIONS[activation]
    shape, depth = (5, 6, 2), 2
    net = gpntk.CNN(shape, depth, filter_size, padding, kind, act, **VARIANCES)
    neighbours, size = [], shape[:2]
    for _ in range(depth):
        seen, size = image_neighbours(*size, filter_size, padding)
        neighbours.append(seen)

    def kernel(a, b):
        kernels = site_kernels(a.reshape(-1, 2), b.reshape(-1, 2), neighbours, moments, *VARIANCES.values())
        reduce = np.mean if kind == "pool" else lambda k: np.mean(np.diag(k))
        return readout(*map(reduce, kernels), *VARIANCES.values())

    x1 = images(3, shape)
    x2 = np.concatenate([images(1, shape, seed=1), x1[:1]])
    assert_close(gpntk.nngp_and_ntk(net, x1, x2), pairwise(kernel, x1, x2))


@pytest.mark.parametrize(
    ("name", "padding", "activation"),
    [
        ("C4", "same", "relu"),
        ("D4", "circular", "relu"),
        ("D4", "valid", "erf"),
        pytest.param("C4", "valid", "relu", marks=pytest.mark.slow),
        pytest.param("C4", "circular", "erf", marks=pytest.mark.slow),
        pytest.param("D4", "same", "relu", marks=pytest.mark.slow),
    ],
)
def test_group_kernels_are_those_of_the_recursion_on_pairs_of_group_elements(name, padding, activation):
    act, moments = ACTIVATIONS[activation]
    side, depth, order = (5 if padding == "valid" else 3), 2, len(point_table(name))
    net = gpntk.PlanarGroupCNN(name, (side, side, 2), depth, 3, padding, activation=act, **VARIANCES)
    neighbours, size = [], side
    for layer in range(depth):
        seen, size = group_neighbours(name, size, 3, padding, lifts=layer == 0)
        neighbours.append(seen)

    def kernel(a, b):
        sites = site_kernels(a.reshape(-1, 2), b.reshape(-1, 2), neighbours, moments, *VARIANCES.values())
        return readout(*sites, *VARIANCES.values())

    x = images(2, (side, side, 2))
    literal = pairwise(kernel, x, x)
    assert_close(gpntk.nngp_and_ntk(net, x), literal.mean((-2, -1)))

    # The unpooled kernels hold every pair of group elements, (t, r) and (t', r'), at s = r' r^-1.
    table = point_table(name)
    quotient = np.array([[np.flatnonzero(table[:, r] == r2)[0] for r2 in range(order)] for r in range(order)])
    literal = literal.reshape(2, 2, 2, order, size**2, order, size**2)
    for ours, theirs in zip(gpntk.unpooled_kernels(net, x), literal, strict=True):
        assert ours.shape == (2, 2, order, size**2, size**2)
        for r in range(order):
            for r2 in range(order):
                np.testing.assert_allclose(ours[:, :, quotient[r, r2]], theirs[:, :, r, :, r2], atol=ROUNDING)


def test_planar_networks_are_networks_over_the_finite_group_of_a_torus():
    side, pixels = 4, np.arange(16).reshape(4, 4)
    row, column = np.indices((4, 4)).reshape(2, -1)
    generators = [np.roll(pixels, 1, 0).ravel(), np.roll(pixels, 1, 1).ravel(), (-column % side) * side + row]
    torus = FiniteGroup.from_permutations(generators)
    assert torus.order == 4 * 16
    window = [i % side * side + j % side for i in (-1, 0, 1) for j in (-1, 0, 1)]
    near = np.flatnonzero(np.isin(torus.permutations[:, 0], window)).tolist()
    x = images(2, (side, side, 1))
    pairs = gpntk.FiniteGroupCNN(torus, depth=2, supports=(window, near), **VARIANCES)
    planar = gpntk.PlanarGroupCNN("C4", (side, side, 1), 2, padding="circular", **VARIANCES)
    assert_close(gpntk.nngp_and_ntk(planar, x), gpntk.nngp_and_ntk(pairs, x))


@pytest.mark.parametrize(
    ("name", "padding", "kind"),
    [
        ("D4", "circular", "flatten"),
        ("C4", "same", "pool"),
        pytest.param("C4", "valid", "flatten", marks=pytest.mark.slow),
        pytest.param("D4", "same", "pool", marks=pytest.mark.slow),
    ],
)
def test_group_kernels_are_orbit_averages(name, padding, kind):
    shape = (6, 6, 2)
    group, cnn = GROUPS[name](shape), gpntk.CNN(shape, 2, 3, padding, kind, **VARIANCES)
    x1, x2 = images(3, shape), images(2, shape, seed=1)
    x2[1] = group.transform(x1, 3)[0]
    orbit = [gpntk.nngp_and_ntk(cnn, x1, y) for y in group.act(x2)]
    averages = [sum(k) / group.order for k in zip(*orbit, strict=True)]
    assert_close(gpntk.nngp_and_ntk(gpntk.equivariant(cnn, group), x1, x2), averages)


@pytest.mark.parametrize(("name", "kind"), [("C4", "pool"), ("D4", "flatten")])
def test_kernels_and_networks_are_invariant(name, kind):
    shape = (5, 5, 1)
    net, group = gpntk.PlanarGroupCNN(name, shape, 2, readout=kind, **VARIANCES), GROUPS[name](shape)
    x = images(3, shape)
    kernels, params = gpntk.nngp_and_ntk(net, x), net.init(jax.random.key(0), width=16)
    apply = eqx.filter_jit(net.apply)
    outputs = apply(params, x)
    assert np.std(outputs) > 0.01
    for moved in group.act(x)[1:]:
        assert_close(gpntk.nngp_and_ntk(net, moved, x), kernels)
        assert_close(gpntk.nngp_and_ntk(net, x, moved), kernels)
        np.testing.assert_allclose(apply(params, moved), outputs, atol=ROUNDING)
    # A network without the symmetry, as the check of the check.
    plain = gpntk.CNN(shape, 2, readout=kind, **VARIANCES)
    assert np.max(np.abs(plain.apply(plain.init(jax.random.key(0), width=16), group.act(x)[1]) - outputs)) > 0.01


@pytest.mark.parametrize("name", ["D4", pytest.param("C4", marks=pytest.mark.slow)])
def test_finite_features_and_unpooled_kernels_are_equivariant(name):
    shape, side = (4, 4, 2), 4
    group = GROUPS[name](shape)
    net = gpntk.PlanarGroupCNN(name, shape, 2, **VARIANCES)
    x, y = images(2, shape), images(2, shape, seed=1)
    params = [*net.init(jax.random.key(0), width=4)]

    @jax.jit
    def features(x):
        signal = net.domain.signal(jnp.asarray(x))
        for layer, parameters in zip(net.body[:-1], params, strict=False):
            signal = layer.apply(parameters, signal)
        return signal.reshape(len(x), side**2, group.order, -1)

    plain, kernels = features(x), gpntk.unpooled_kernels(net, x, y)
    positions = GROUPS[name]((side, side, 1)).permutations
    for h in range(group.order):
        h_inverse = group.inverse[h]
        back, left = positions[h_inverse], group.table[h_inverse]
        moved = group.transform(x, h)
        # A signal on the group moves as f(h^-1 (t, r)).
        np.testing.assert_allclose(features(moved), plain[:, back][:, :, left], atol=ROUNDING)
        # With s = r' r^-1, moving the first input takes s to s h, moving the second one takes it to h^-1 s.
        for before, after in zip(kernels, gpntk.unpooled_kernels(net, moved, y), strict=True):
            np.testing.assert_allclose(after, before[:, :, group.table[:, h]][:, :, :, back], atol=ROUNDING)
        moved = group.transform(y, h)
        for before, after in zip(kernels, gpntk.unpooled_kernels(net, x, moved), strict=True):
            np.testing.assert_allclose(after, before[:, :, left][..., back], atol=ROUNDING)


def test_unpooled_kernels_that_overflow_are_refused():
    # The NTK of a deep network is a multiple of the variances, which are numbers of single precision still.
    net = gpntk.CNN((2, 2, 1), depth=8, filter_size=1)
    with jax.enable_x64(False), pytest.raises(ValueError, match="Kernel values are not finite in float32"):
        gpntk.unpooled_kernels(net, 8e18 * np.ones((1, 4)))


def test_unpooled_cnn_kernels_average_to_the_pooled_ones():
    net = gpntk.CNN((3, 4, 1), 2, **VARIANCES)
    x, y = images(2, (3, 4, 1)), images(3, (3, 4, 1), seed=1)
    unpooled = gpntk.unpooled_kernels(net, x, y)
    assert unpooled[0].shape == (2, 3, 12, 12)
    assert_close([k.mean((2, 3)) for k in unpooled], gpntk.nngp_and_ntk(net, x, y))


@pytest.mark.parametrize("kind", ["pool", pytest.param("flatten", marks=pytest.mark.slow)])
def test_coincident_pairs_are_exact(kind):
    # Patches of constant, periodic and rotated images coincide at many pairs of sites, where an error eps in the
    # correlation would be one of 1e-8 in the NTK of a kinked activation.
    shape = (4, 4, 3)
    x = np.stack([np.tile([0.3, -0.7, 1.1], 16), np.tile(np.arange(6.0), 8), images(1, shape)[0]])
    x = np.concatenate([x, C4(shape).transform(x, 1)])
    net = gpntk.PlanarGroupCNN("D4", shape, 3, padding="circular", readout=kind, weight_variance=1.7)
    gram = gpntk.nngp_and_ntk(net, x)
    for k in gram:
        np.testing.assert_array_equal(k, k.T)
        np.testing.assert_allclose(k[3:, :3], k[:3, :3], rtol=1e-13)
        np.testing.assert_allclose(k[3:, 3:], k[:3, :3], rtol=1e-13)
    # A constant image sees itself everywhere: the kernel is that of an MLP.
    mlp = gpntk.nngp_and_ntk(gpntk.MLP(3, weight_variance=1.7), x[:1, :3])
    assert_close([k[0, 0] for k in gram], [k[0, 0] for k in mlp], 1e-14)


def test_zero_images_and_gradients_are_finite():
    net = gpntk.PlanarGroupCNN("C4", (4, 4, 1), 2)
    x = np.concatenate([np.zeros((1, 16)), np.eye(16)[:2], images(1, (4, 4, 1))])

    def total(x):
        return sum(k.sum() for k in gpntk.nngp_and_ntk(net, x))

    assert np.isfinite(total(x))
    assert np.isfinite(jax.jit(jax.grad(total))(jnp.asarray(x))).all()


def test_gram_and_diagonal_are_those_of_any_blocks():
    net = gpntk.PlanarGroupCNN("C4", (4, 4, 1), 2, **VARIANCES)
    x = images(7, (4, 4, 1))
    whole = gpntk.NTK(net, compute_engine=gpntk.BlockedComputation(7))
    blocks = gpntk.NTK(net, compute_engine=gpntk.BlockedComputation(2))
    gram = whole.gram(x).as_matrix()
    assert_close([gram], [blocks.gram(x).as_matrix()])
    for kernel in (whole, blocks):
        np.testing.assert_array_equal(
            jnp.diagonal(kernel.gram(x).as_matrix()), kernel.diagonal(x).as_matrix().diagonal()
        )
    assert_close([eqx.filter_jit(whole)(x[0], x[1])], [gram[0, 1]])


def test_gram_of_large_images_takes_little_memory():
    """All pairs of positions of 28 x 28 images: 614,656 numbers for each kernel, rotation and pair of images."""
    net = gpntk.PlanarGroupCNN("C4", (28, 28, 1), 3)
    x = jax.ShapeDtypeStruct((200, 784), jnp.float32)
    compiled = jax.jit(lambda x: gpntk.nngp_and_ntk(net, x)).lower(x).compile()
    # One pair at a time in one rotation takes a dozen of such arrays.
    assert compiled.memory_analysis().temp_size_in_bytes < 16 * 4 * 28**4


def test_single_precision_agrees():
    net = gpntk.PlanarGroupCNN("C4", (14, 14, 1), 2, **VARIANCES)
    x = images(2, (14, 14, 1))
    double, single = gpntk.nngp_and_ntk(net, x), gpntk.nngp_and_ntk(net, x.astype(np.float32))
    for a, b in zip(single, double, strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_parameters_are_trained_and_networks_replaced():
    net = gpntk.CNN((4, 4, 1), bias_variance=0.3)
    assert len(jax.tree.leaves(net)) == 2
    wide = net.replace(filter_size=1, readout="flatten")
    assert (wide.filter_size, wide.readout, wide.padding) == (1, "flatten", "same")
    assert net.get_params()["readout"] == "pool"
    assert gpntk.PlanarGroupCNN("D4", (4, 4, 1)).replace(group="C4").group == "C4"


def test_width_ratios_set_the_channels():
    net = gpntk.PlanarGroupCNN("C4", (5, 5, 2), 3, padding="valid", filter_size=1, width_ratios=(0.5, 2, 1))
    convolutions, _, readout = net.init(jax.random.key(0), width=4, n_outputs=3)
    shapes = [p["weight"].shape for p in (*convolutions, readout) if p]
    assert shapes == [(1, 1, 2, 2), (1, 1, 4, 2, 8), (1, 1, 4, 8, 4), (4, 3)]


@pytest.mark.parametrize(
    ("net", "group", "expected"),
    [
        (gpntk.CNN((4, 4, 1)), C4((4, 4, 1)), True),
        (gpntk.CNN((4, 4, 1)), D4((4, 4, 1)), True),
        (gpntk.CNN((4, 4, 1), filter_size=2), C4((4, 4, 1)), False),
        (gpntk.CNN((4, 4, 1), filter_size=2, padding="valid"), D4((4, 4, 1)), True),
        (gpntk.CNN((4, 4, 1), filter_size=2, padding="circular"), D4((4, 4, 1)), True),
        (gpntk.CNN((4, 4, 1), filter_size=2, padding="circular", readout="flatten"), D4((4, 4, 1)), True),
        (gpntk.CNN((4, 4, 1)), FiniteGroup.cyclic(16), False),
        (gpntk.PlanarGroupCNN("C4", (4, 4, 1)), D4((4, 4, 1)), True),
    ],
)
def test_invariance_is_declared_where_it_holds(net, group, expected):
    x = images(2, (4, 4, 1))
    before = gpntk.nngp_and_ntk(net, x)[1]
    deviation = max(np.max(np.abs(gpntk.nngp_and_ntk(net, moved)[1] - before)) for moved in group.act(x))
    assert (deviation < ROUNDING) == expected
    assert net.is_invariant(group) == expected


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: gpntk.CNN((4, 4)), ValueError, "`input_shape` must be (height, width, channels), got (4, 4)"),
        (lambda: gpntk.CNN((4, 0, 1)), ValueError, "`input_shape` must be an integer >= 1, got 0"),
        (lambda: gpntk.CNN((4, 4, 1), filter_size=0), ValueError, "`filter_size` must be an integer >= 1"),
        (lambda: gpntk.CNN((4, 4, 1), padding="full"), ValueError, "`padding` must be one of 'same', 'valid'"),
        (lambda: gpntk.CNN((4, 4, 1), readout="max"), ValueError, "`readout` must be one of 'pool', 'flatten'"),
        (lambda: gpntk.CNN((5, 4, 1), depth=2, padding="valid"), ValueError, "no positions would be left"),
        (lambda: gpntk.PlanarGroupCNN("C6", (4, 4, 1)), ValueError, "`group` must be one of 'C4', 'D4', got 'C6'"),
        (lambda: gpntk.PlanarGroupCNN("C4", (4, 5, 1)), ValueError, "must be square for rotations"),
        (
            lambda: gpntk.PlanarGroupCNN("C4"),
            ValueError,
            "`input_shape` must be (height, width, channels), got None",
        ),
        (
            lambda: gpntk.PlanarGroupCNN("C4", (4, 4, 1), filter_size=2),
            ValueError,
            "must be odd, got 2",
        ),
        (lambda: gpntk.equivariant(gpntk.CNN((4, 4, 1)), FiniteGroup.cyclic(16)), ValueError, "for this CNN"),
        (lambda: gpntk.equivariant(gpntk.CNN((4, 5, 1)), C4((4, 4, 1))), ValueError, "with square images"),
        (lambda: gpntk.equivariant(gpntk.CNN((4, 4, 1), filter_size=2), C4((4, 4, 1))), ValueError, "must be odd"),
        (
            lambda: gpntk.equivariant(gpntk.PlanarGroupCNN("C4", (4, 4, 1)), C4((4, 4, 1))),
            ValueError,
            "`net` must be an MLP",
        ),
        (lambda: gpntk.equivariant("MLP", C4((4, 4, 1))), TypeError, "`net` must be an architecture"),
        (lambda: gpntk.equivariant(gpntk.MLP(), "C4"), TypeError, "`group` must be a group"),
        (
            lambda: gpntk.unpooled_kernels(gpntk.CNN((4, 4, 1), readout="flatten"), np.ones((1, 16))),
            ValueError,
            'must have readout="pool"',
        ),
        (
            lambda: gpntk.unpooled_kernels(gpntk.PlanarGroupCNN("C4", (64, 64, 1)), np.ones((5, 4096))),
            ValueError,
            "kernels of shape (5, 5, 4, 4096, 4096) need 26,843,545,600 bytes, more than the 17,179,869,184",
        ),
        (lambda: gpntk.unpooled_kernels(gpntk.MLP(), np.ones((1, 16))), TypeError, "convolutional architecture"),
        (lambda: gpntk.nngp_and_ntk(gpntk.CNN((4, 4, 1)), np.ones((1, 15))), ValueError, "x1 has 15 features"),
    ],
)
def test_bad_input_is_refused(make, error, message):
    with pytest.raises(error, match=re.escape(message)):
        make()
