import pickle
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gpntk
from gpntk.groups import SO3, random_rotations, rotate_coefficients, rotation_matrices
from gpntk.groups._harmonics import grid_angles, synthesis
from gpntk.kernels import is_invariant

VARIANCES = {"weight_variance": 1.3, "bias_variance": 0.2}
ERF = {"activation": gpntk.Erf(), **VARIANCES}

pytestmark = pytest.mark.usefixtures("x64")


def signals(net, n, seed=0):
    """Random signals of mean square 1."""
    group = SO3(net.bandlimit, net.channels, "coefficients", 1)
    a = np.random.default_rng(seed).normal(size=(n, group.n_features))
    a *= np.sqrt(4 * np.pi * net.channels) / np.linalg.norm(a, axis=1, keepdims=True)
    return _sampled(net, a)


def _sampled(net, a):
    if net.sampling == "coefficients":
        return a
    matrix = synthesis(net.bandlimit, net.sampling, net.nside)
    return np.einsum("nck,pk->npc", a.reshape(len(a), net.channels, -1), matrix).reshape(len(a), -1)


def relative(ours, theirs):
    """Differences in units of the geometric mean of the diagonals, of a typical one where they are smaller."""
    size = np.sqrt(np.maximum(np.diag(theirs), np.diag(theirs).mean()))
    return np.abs((ours - theirs) / np.outer(size, size)).max()


@pytest.mark.parametrize(
    ("activation", "inversion", "sampling"),
    [
        (gpntk.ReLU(), False, "mw"),
        pytest.param(gpntk.ReLU(), True, "coefficients", marks=pytest.mark.slow),
        (gpntk.Erf(), True, "mw"),
        pytest.param(gpntk.Erf(), False, "coefficients", marks=pytest.mark.slow),
    ],
)
def test_kernels_are_group_averages_of_a_dense_network(activation, inversion, sampling):
    group = SO3(3, 2, sampling, 4, inversion=inversion)
    mlp = gpntk.MLP(3, activation, **VARIANCES)
    net = gpntk.equivariant(mlp, group)
    assert (net.quadrature_bandlimit, net.inversion, net.depth) == (4, inversion, 3)
    x = signals(net, 4)
    y = x[1:]
    embedded, other = group.embed(x), group.embed(y)
    for kind, theory in zip((gpntk.NNGP, gpntk.NTK), gpntk.nngp_and_ntk(net, x, y), strict=True):
        averaged = gpntk.GroupAveraged(kind(mlp), group)
        assert averaged.one_sided
        np.testing.assert_allclose(averaged.cross_covariance(embedded, other), theory, rtol=1e-12)
        np.testing.assert_allclose(kind(net).cross_covariance(x, y), theory, rtol=1e-14)


def test_kernels_are_averages_over_rotated_points():
    """Signals that are polynomials of x, rotated by matrices: no harmonics on this side."""

    def sample(points):
        x, y, z = points.T
        return np.stack(
            [np.stack([1 + x * y - z, z * z + x], -1), np.stack([x - 0.5 * y * z, 0.3 + y + z * x], -1)]
        )

    thetas, phis = map(np.array, grid_angles(3, "gl", None))
    points = np.stack([np.sin(thetas) * np.cos(phis), np.sin(thetas) * np.sin(phis), np.cos(thetas)], -1)
    weights = np.repeat(np.polynomial.legendre.leggauss(3)[1] / 2, 5) / 5
    root = np.sqrt(weights[:, None] * len(points))
    net = gpntk.SphericalCNN(3, 2, 2, "gl", 14, **ERF)
    ours = gpntk.nngp_and_ntk(net, sample(points).reshape(2, -1))

    rule = SO3(3, quadrature_bandlimit=14)
    offset = np.asarray(rotation_matrices(jnp.array([0.3, 1.1, -0.4])))
    mlp = gpntk.NTK(gpntk.MLP(2, **ERF))
    left = (sample(points) * root).reshape(2, -1)
    total, angles, at_once = 0.0, rule.angles, 98
    for start in range(0, rule.order, at_once):
        matrices = np.asarray(rotation_matrices(angles[start : start + at_once])) @ offset
        # The rotated signals of a batch, all of them at once.
        moved = sample((points @ matrices).reshape(-1, 3)).reshape(2, at_once, len(points), 2) * root
        kernel = mlp.cross_covariance(left, moved.reshape(2 * at_once, -1)).reshape(2, 2, at_once)
        total = total + kernel @ rule.weights[start : start + at_once]
    np.testing.assert_allclose(ours[1], total, rtol=1e-7)


@pytest.mark.parametrize("bandlimit", [1, 2, 5, 8])
def test_linear_networks_see_the_mean_only(bandlimit):
    net = gpntk.SphericalCNN(bandlimit, 2, 3, activation=gpntk.Identity(), **VARIANCES)
    x = signals(net, 3)
    mean = np.asarray(net.group.coefficients(x))[:, :, 0] / np.sqrt(4 * np.pi)
    nngp = 0.2 + 1.3 * mean @ mean.T / 2
    ntk = nngp
    for _ in range(3):
        nngp = 0.2 + 1.3 * nngp
        ntk = nngp + 1.3 * ntk
    for ours, theirs in zip(gpntk.nngp_and_ntk(net, x), (nngp, ntk), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)


CASES = [
    (bandlimit, activation, variances)
    for bandlimit in range(2, 9)
    for activation in (gpntk.ReLU(), gpntk.Erf(), gpntk.GELU())
    for variances in ((2.0, 0.0), (1.3, 0.2))
]


def marked(case):
    """With some dozens of signals, and all of them with hundreds."""
    bandlimit, _, (_, bias_variance) = case
    quick = [pytest.param(*case, 48)] if bandlimit == 3 and bias_variance else []
    return [*quick, pytest.param(*case, 300, marks=pytest.mark.slow)]


@pytest.mark.parametrize(
    ("bandlimit", "activation", "variances", "n"), [param for case in CASES for param in marked(case)]
)
def test_error_estimate_bounds_the_error(bandlimit, activation, variances, n):
    net = gpntk.SphericalCNN(bandlimit, 1, 2, "coefficients", None, None, False, activation, *variances)
    estimate = net.quadrature_error()
    assert estimate <= (1e-4 if isinstance(activation, gpntk.ReLU) else 1e-6)
    x = signals(net, n, seed=bandlimit)
    fine = net.replace(quadrature_bandlimit=min(2 * net.quadrature_bandlimit, 56))
    ours, exact = (jnp.diagonal(gpntk.NTK(rule).diagonal(x).as_matrix()) for rule in (net, fine))
    largest = np.max(np.abs(ours - exact) / np.maximum(exact, exact.mean()))
    print(f"largest of {n}: {largest / estimate:.2f} of the estimate")
    # Not by much more than a margin either: a hundredth of it would be one that says nothing.
    assert 0.01 * estimate < largest < estimate
    for ours, exact in zip(gpntk.nngp_and_ntk(net, x[:12]), gpntk.nngp_and_ntk(fine, x[:12]), strict=True):
        assert relative(ours, exact) < estimate
    # The smallest sufficient order: a much lower one is not good enough.
    lower = net.replace(quadrature_bandlimit=max(bandlimit, net.quadrature_bandlimit // 2))
    if lower.quadrature_bandlimit < 0.6 * net.quadrature_bandlimit:
        assert lower.quadrature_error() > 3 * estimate


def untypical(bandlimit, family, n=12):
    """Coefficients of mean square 1: of a single degree, symmetric about an axis each, or of a point."""
    degree = np.floor(np.sqrt(np.arange(bandlimit**2))).astype(int)
    order = np.arange(bandlimit**2) - degree * (degree + 1)
    a = np.random.default_rng(0).normal(size=(n, bandlimit**2))
    if family == "one degree":
        a = a * (degree == 1 + np.arange(n)[:, None] % (bandlimit - 1))
    else:
        a = (a if family == "axial" else np.sqrt(2 * degree + 1)) * (order == 0) * np.ones((n, 1))
        a = np.asarray(rotate_coefficients(jnp.asarray(a), random_rotations(jax.random.key(0), n)))
    return np.sqrt(4 * np.pi) * a / np.linalg.norm(a, axis=1, keepdims=True)


@pytest.mark.parametrize("family", ["one degree", "axial", "point"])
@pytest.mark.parametrize("activation", [gpntk.ReLU(), gpntk.Erf()])
def test_error_estimate_of_given_signals(activation, family):
    """Also where they are not typical, and larger than that of random ones."""
    net = gpntk.SphericalCNN(4, 1, 2, "coefficients", activation=activation, **VARIANCES)
    x = untypical(4, family)
    estimate = net.quadrature_error(x)
    fine = net.replace(quadrature_bandlimit=3 * net.quadrature_bandlimit)
    errors = [
        relative(*kernels) for kernels in zip(gpntk.nngp_and_ntk(net, x), gpntk.nngp_and_ntk(fine, x), strict=True)
    ]
    print(f"{family}: estimate {estimate:.1e}, of random signals {net.quadrature_error():.1e}")
    assert 0.3 * estimate < max(errors) < estimate


def test_kernels_near_zero_have_errors_in_units_of_typical_ones():
    """Without biases an odd activation leaves nothing of a signal without a mean over the sphere."""
    net = gpntk.SphericalCNN(2, 1, 2, "coefficients", activation=gpntk.Erf(), weight_variance=2.0)
    x = signals(net, 8)
    x[0, 0] = 1e-6
    x[0] *= np.sqrt(4 * np.pi) / np.linalg.norm(x[0])
    kernel = jnp.diagonal(gpntk.NTK(net).diagonal(x).as_matrix())
    assert kernel[0] < 1e-9 * kernel.mean()
    assert net.quadrature_error(x) < 1e-6


def test_kernels_are_symmetric_and_tiles_change_nothing():
    net = gpntk.SphericalCNN(4, 3, 3, **ERF)
    x = signals(net, 6)
    for kernel in (gpntk.NNGP(net), gpntk.NTK(net)):
        cross = kernel.cross_covariance(x, x)
        assert relative(cross, cross.T) < 1e-14
        gram = kernel.gram(x).as_matrix()
        np.testing.assert_array_equal(gram, gram.T)
        np.testing.assert_array_equal(jnp.diagonal(gram), jnp.diagonal(kernel.diagonal(x).as_matrix()))
        assert relative(gram, cross) < 1e-14
        assert np.linalg.eigvalsh(gram).min() > 0


@pytest.mark.parametrize(
    "sampling",
    [
        "healpix",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("mw", "mwss", "dh", "gl", "coefficients")),
    ],
)
def test_kernels_and_predictions_are_invariant_under_rotations(sampling):
    net = gpntk.SphericalCNN(4, 2, 2, sampling, nside=2 if sampling == "healpix" else None, **ERF)
    x = signals(net, 8)
    angles = random_rotations(jax.random.key(0), len(x))
    moved = net.group.rotate(x, angles)
    error = net.quadrature_error()
    gram = gpntk.NTK(net).gram(x).as_matrix()
    assert relative(gpntk.NTK(net).cross_covariance(moved, x), gram) < 2 * error
    assert relative(gpntk.NTK(net).cross_covariance(x, moved), gram) < 2 * error
    y = np.random.default_rng(0).normal(size=6)
    model = gpntk.NTKRegressor(net, alpha=1e-2).fit(x[:6], y)
    np.testing.assert_allclose(model.predict(moved), model.predict(x), atol=1e-4)


def test_inversion_is_an_invariance_of_its_own():
    net = gpntk.SphericalCNN(3, 3, 2, "coefficients", 8, **ERF)
    x = signals(net, 2)
    mirrored = x * np.tile((-1.0) ** np.repeat([0, 1, 2], [1, 3, 5]), 3)
    ntk = gpntk.NTK(net).gram(x).as_matrix()
    assert relative(gpntk.NTK(net).cross_covariance(mirrored, x), ntk) > 1e-3
    both = gpntk.NTK(net.replace(inversion=True))
    ours = both.gram(x).as_matrix()
    assert relative(both.cross_covariance(mirrored, x), ours) < 1e-12
    np.testing.assert_allclose(ours, (ntk + gpntk.NTK(net).cross_covariance(mirrored, x)) / 2, rtol=1e-5)


def test_unpooled_kernels_live_on_quotients_of_rotations():
    net = gpntk.SphericalCNN(3, 1, 2, "coefficients", 6, **ERF)
    x = signals(net, 3)
    rule = net.group
    for unpooled, pooled in zip(gpntk.unpooled_kernels(net, x), gpntk.nngp_and_ntk(net, x), strict=True):
        assert unpooled.shape == (3, 3, rule.order)
        np.testing.assert_allclose(unpooled @ rule.weights, pooled, rtol=1e-13)
    # K_{R,R'}(f, f') at R R'^-1 = S is the kernel of f and S f' without any rotation.
    moved = rule.transform(x, 100)
    dense = gpntk.nngp_and_ntk(gpntk.MLP(2, **ERF), rule.embed(x), rule.embed(moved))
    for unpooled, kernel in zip(gpntk.unpooled_kernels(net, x), dense, strict=True):
        np.testing.assert_allclose(unpooled[..., 100], kernel, rtol=1e-12)


@pytest.mark.parametrize("inversion", [False, True])
def test_finite_networks_are_equivariant_up_to_the_bandlimit(inversion):
    errors = []
    for quadrature in (4, 8):
        net = gpntk.SphericalCNN(3, 3, 2, "coefficients", quadrature, inversion=inversion, **ERF)
        x = signals(net, 2)
        params = net.init(jax.random.key(0), width=6)
        apply = eqx.filter_jit(net.apply)
        outputs = apply(params, x)
        moved = [net.group.rotate(x, angles) for angles in random_rotations(jax.random.key(1), 3)]
        errors.append(max(np.abs(apply(params, y) - outputs).max() for y in moved) / np.std(outputs))
        mirrored = x * np.tile((-1.0) ** np.repeat([0, 1, 2], [1, 3, 5]), 3)
        change = np.abs(apply(params, mirrored) - outputs).max() / np.std(outputs)
        assert change < 1e-12 if inversion else change > 1e-3
    assert errors[1] < 2e-3
    assert errors[1] < 0.05 * errors[0]


def test_finite_linear_networks_are_exactly_equivariant():
    net = gpntk.SphericalCNN(4, 2, 3, "dh", 4, activation=gpntk.Identity(), **VARIANCES)
    x = signals(net, 2)
    params = net.init(jax.random.key(0), width=5)
    moved = net.group.rotate(x, random_rotations(jax.random.key(1), 2))
    np.testing.assert_allclose(net.apply(params, moved), net.apply(params, x), atol=1e-13)


def test_lifting_layers_have_the_kernel_of_their_filters():
    """A single layer of many channels: covariances over channels are k(R R'^-1), node by node."""
    net = gpntk.SphericalCNN(3, 2, 1, "coefficients", 3, activation=gpntk.Identity(), weight_variance=1.0)
    x = signals(net, 2)
    lift = net.body[0]
    parameters, _ = lift.init(jax.random.key(0), (9, 2), iter([40_000]))
    values = np.asarray(lift.apply(parameters, net.domain.signal(x)))[:, [5, 77]]
    sampled = np.einsum("igc,jhc->ijgh", values, values) / 40_000
    group = net.group
    rotated = np.stack([_inverse_rotated(group, x, i) for i in (5, 77)], 1) / np.sqrt(2 * 4 * np.pi)
    expected = np.einsum("igk,jhk->ijgh", rotated, rotated)
    np.testing.assert_allclose(sampled, expected, atol=5 * np.sqrt(2 / 40_000))
    assert np.abs(expected).max() > 0.5


def _inverse_rotated(group, x, index):
    """F o R, coefficients of what a filter sees."""
    alpha, beta, gamma = group.angles[index]
    return np.asarray(group.rotate(x, np.array([-gamma, -beta, -alpha])))


def test_kernel_objects_train_and_travel():
    net = gpntk.SphericalCNN(2, 1, 2, **ERF)
    kernel = gpntk.NTK(net)
    x = signals(net, 3)
    gradient = jax.jit(jax.grad(lambda k: k.gram(x).as_matrix().sum()))(kernel)
    assert np.isfinite(gradient.net.weight_variance._unconstrained)
    assert len(jax.tree.leaves(kernel)) == 2
    again = pickle.loads(pickle.dumps(kernel))
    np.testing.assert_array_equal(again.gram(x).as_matrix(), kernel.gram(x).as_matrix())
    np.testing.assert_allclose(eqx.filter_jit(kernel)(x[0], x[1]), kernel.gram(x).as_matrix()[0, 1], rtol=1e-13)


def test_networks_can_be_built_from_traced_variances():
    x = np.random.default_rng(0).normal(size=(2, 4))

    @jax.jit
    def ntk(variance):
        net = gpntk.SphericalCNN(2, 1, 1, "coefficients", activation=gpntk.Erf(), weight_variance=variance)
        return gpntk.nngp_and_ntk(net, x)[1]

    net = gpntk.SphericalCNN(2, 1, 1, "coefficients", activation=gpntk.Erf(), weight_variance=1.5)
    np.testing.assert_allclose(ntk(1.5), gpntk.nngp_and_ntk(net, x)[1], rtol=1e-5)


def test_orders_are_chosen_again_when_the_network_changes():
    net = gpntk.SphericalCNN(3, activation=gpntk.Erf(), **VARIANCES)
    rougher = net.replace(weight_variance=4.0)
    assert rougher.quadrature_bandlimit > net.quadrature_bandlimit
    assert net.replace(quadrature_bandlimit=5).replace(weight_variance=4.0).quadrature_bandlimit == 5
    assert gpntk.equivariant(gpntk.MLP(2, **ERF), SO3(3)).quadrature_bandlimit == net.quadrature_bandlimit


def test_large_signals_are_noticed():
    net = gpntk.SphericalCNN(4, 1, 2, "coefficients", **ERF)
    x = signals(net, 3)
    with pytest.warns(UserWarning, match="Scale them to mean square 1"):
        gpntk.nngp_and_ntk(net, 30 * x)
    relu = net.replace(activation=gpntk.ReLU(), bias_variance=0.0)
    np.testing.assert_allclose(gpntk.NTK(relu).gram(30 * x).as_matrix(), 900 * gpntk.NTK(relu).gram(x).as_matrix())


def test_single_precision_agrees():
    net = gpntk.SphericalCNN(4, 2, 3, **ERF)
    x = signals(net, 4)
    for single, double in zip(
        gpntk.nngp_and_ntk(net, x.astype(np.float32)), gpntk.nngp_and_ntk(net, x), strict=True
    ):
        assert single.dtype == np.float32
        np.testing.assert_allclose(single, double, rtol=1e-5)


def test_zero_and_constant_signals_are_exact():
    net = gpntk.SphericalCNN(3, 1, 2, "coefficients", **VARIANCES)
    x = np.zeros((3, 9))
    x[1, 0], x[2, 0] = np.sqrt(4 * np.pi), -np.sqrt(4 * np.pi)
    dense = gpntk.nngp_and_ntk(gpntk.MLP(2, **VARIANCES), np.array([[0.0], [1.0], [-1.0]]))
    for ours, theirs in zip(gpntk.nngp_and_ntk(net, x), dense, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-7)


def test_only_coefficients_are_moved_by_the_group():
    net = gpntk.SphericalCNN(3, 1, 2, "coefficients", 4)
    group = SO3(3, 1, "coefficients", 4)
    assert is_invariant(gpntk.NTK(net), group)
    assert not is_invariant(gpntk.NTK(net), SO3(3, 1, "coefficients", 4, inversion=True))
    assert not is_invariant(gpntk.NTK(net.replace(sampling="mw")), group)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: gpntk.SphericalCNN(0), ValueError, "`bandlimit` must be an integer >= 1, got 0"),
        (lambda: gpntk.SphericalCNN(3, 0), ValueError, "`channels` must be an integer >= 1, got 0"),
        (lambda: gpntk.SphericalCNN(3, sampling="ring"), ValueError, "`sampling` must be one of 'mw'"),
        (lambda: gpntk.SphericalCNN(3, sampling="healpix"), ValueError, "`nside` must be given"),
        (
            lambda: gpntk.SphericalCNN(4, quadrature_bandlimit=3),
            ValueError,
            "`quadrature_bandlimit` must be at least 4, the bandlimit of the signals, got 3",
        ),
        (
            lambda: gpntk.nngp_and_ntk(gpntk.SphericalCNN(3, 2), np.ones((1, 16))),
            ValueError,
            "x1 has 16 features, but the network expects 30",
        ),
        (
            lambda: gpntk.equivariant(gpntk.CNN((4, 4, 1)), SO3(3)),
            ValueError,
            "`group` must be groups.C4",
        ),
    ],
)
def test_bad_input_is_refused(make, error, message):
    with pytest.raises(error, match=re.escape(message)):
        make()
