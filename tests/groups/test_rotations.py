import pickle
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpntk.groups import SO3, augment, random_rotations, rotate_coefficients, rotation_matrices
from gpntk.groups._harmonics import grid_angles, spherical_harmonics

pytestmark = pytest.mark.usefixtures("x64")
GRIDS = {
    "mw": SO3(4, 2, "mw", 4),
    "mwss": SO3(3, 1, "mwss", 2),
    "dh": SO3(5, 1, "dh", 2),
    "gl": SO3(4, 3, "gl", 2),
    "healpix": SO3(4, 2, "healpix", 2, nside=2),
    "coefficients": SO3(3, 2, "coefficients", 3),
}
every_grid = pytest.mark.parametrize("group", GRIDS.values(), ids=GRIDS)


def signals(group, n=3, seed=0):
    """Random signals of the bandlimit."""
    a = np.random.default_rng(seed).normal(size=(n, group.channels, group.bandlimit**2))
    flat = a.reshape(n, -1)
    if group.sampling == "coefficients":
        return flat
    harmonics = spherical_harmonics(group.bandlimit, *grid_angles(group.bandlimit, group.sampling, group.nside))
    return np.einsum("nck,pk->npc", a, harmonics).reshape(n, -1)


def test_rotations_move_points():
    """(R f)(x) = f(R^-1 x), at arbitrary points."""
    a = np.random.default_rng(0).normal(size=25)
    x = np.random.default_rng(1).normal(size=(30, 3))
    x /= np.linalg.norm(x, axis=1, keepdims=True)

    def values(a, x):
        return spherical_harmonics(5, tuple(np.arccos(x[:, 2])), tuple(np.arctan2(x[:, 1], x[:, 0]))) @ a

    for angles in random_rotations(jax.random.key(0), 4):
        matrix = np.asarray(rotation_matrices(angles))
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-15)
        np.testing.assert_allclose(np.linalg.det(matrix), 1.0, rtol=1e-14)
        # Rows times the matrix are the inverse applied to the points.
        np.testing.assert_allclose(values(rotate_coefficients(a, angles), x), values(a, x @ matrix), atol=1e-13)


def test_random_rotations_are_uniform():
    n = 20_000
    moved = rotation_matrices(random_rotations(jax.random.key(0), n)).reshape(n, 9)
    # Entries of a uniform rotation matrix have mean 0 and covariance 1/3.
    assert np.abs(moved.mean(0)).max() < 4 / np.sqrt(3 * n)
    np.testing.assert_allclose(moved.T @ moved / n, np.eye(9) / 3, atol=4 * 0.3 / np.sqrt(n))


@every_grid
def test_inner_products_of_embedded_signals_are_integrals(group):
    x = signals(group)
    embedded = group.embed(x)
    assert embedded.shape == (3, group.n_features)
    # Gauss-Legendre sums of samples, an exact integral of the product of two signals.
    a = np.asarray(embedded).reshape(3, group.channels, -1) * np.sqrt(4 * np.pi) / group.bandlimit
    thetas, phis = grid_angles(2 * group.bandlimit, "gl", None)
    samples = np.einsum("nck,pk->npc", a, spherical_harmonics(group.bandlimit, thetas, phis))
    weights = np.polynomial.legendre.leggauss(2 * group.bandlimit)[1] / 2
    weights = np.repeat(weights, 4 * group.bandlimit - 1) / (4 * group.bandlimit - 1)
    integrals = np.einsum("npc,mpc,p->nm", samples, samples, weights) / group.channels
    np.testing.assert_allclose(embedded @ embedded.T / group.n_features, integrals, atol=1e-12)


@every_grid
def test_group_acts_on_embedded_signals_as_rotations_do_on_signals(group):
    x = signals(group)
    embedded = group.embed(x)
    for index in (0, 5, group.order - 1):
        moved = group.transform(embedded, index)
        np.testing.assert_allclose(group.embed(group.rotate(x, group.angles[index])), moved, atol=1e-13)
        np.testing.assert_allclose(moved @ moved.T, embedded @ embedded.T, atol=1e-12)
    each = group.rotate(x, group.angles[:3])
    np.testing.assert_allclose(each[1], group.rotate(x, group.angles[1])[1], atol=1e-14)


def test_nodes_are_closed_under_inversion():
    group = SO3(2, quadrature_bandlimit=3)
    matrices = np.asarray(rotation_matrices(group.angles))
    distances = np.abs(matrices[:, None].transpose(0, 1, 3, 2) - matrices[None]).max((2, 3))
    inverse = distances.argmin(1)
    assert distances.min(1).max() < 1e-14
    np.testing.assert_allclose(group.weights[inverse], group.weights, rtol=1e-14)


def test_inversion_comes_after_the_rotations():
    group = SO3(3, 1, "coefficients", 2, inversion=True)
    assert group.order == 64
    np.testing.assert_allclose(group.weights.sum(), 1.0)
    x = signals(group)
    proper, improper = group.transform(x, 7), group.transform(x, 32 + 7)
    np.testing.assert_allclose(improper, proper * (-1.0) ** np.repeat([0, 1, 2], [1, 3, 5]), atol=1e-15)


def test_whole_numbers_are_turned_as_numbers():
    group, x = SO3(2, quadrature_bandlimit=2), np.arange(8).reshape(2, 4)
    np.testing.assert_array_equal(group.act(x), group.act(x.astype(float)))


def test_groups_are_values():
    group = SO3(4, 2, "healpix", 5, nside=2)
    assert pickle.loads(pickle.dumps(group)) == group
    assert hash(SO3(**group.arguments())) == hash(group)
    assert SO3(4) != SO3(4, quadrature_bandlimit=3)
    assert SO3(4).arguments()["quadrature_bandlimit"] is None
    moved = jax.jit(SO3(2).transform)(jnp.ones((1, 4), jnp.float32), 3)
    assert moved.dtype == jnp.float32


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: SO3(0), ValueError, "`bandlimit` must be an integer >= 1, got 0"),
        (lambda: SO3(3, 0), ValueError, "`channels` must be an integer >= 1, got 0"),
        (lambda: SO3(3, sampling="lonlat"), ValueError, "`sampling` must be one of 'mw'"),
        (lambda: SO3(3, sampling="healpix"), ValueError, "`nside` must be given"),
        (lambda: SO3(3, nside=2), ValueError, "`nside` must be None"),
        (lambda: SO3(8, sampling="healpix", nside=2), ValueError, "`nside` must be large enough"),
        (lambda: SO3(3, quadrature_bandlimit=0), ValueError, "`quadrature_bandlimit` must be"),
        (lambda: SO3(3, inversion=1), TypeError, "`inversion` must be True or False"),
        (lambda: SO3(3, 2).embed(np.ones((1, 10))), ValueError, "have 30 = 3 * 5 * 2"),
        (
            lambda: SO3(3).transform(np.ones((1, 15)), 0),
            ValueError,
            "embedded signals, expects 9 features",
        ),
        (lambda: SO3(3).rotate(np.ones((2, 15)), np.ones((3, 3))), ValueError, "`angles` must have shape (3,)"),
        (lambda: rotation_matrices(np.ones(2)), ValueError, "`angles` must have shape (..., 3), got (2,)"),
        (lambda: rotate_coefficients(np.ones(4), np.ones(4)), ValueError, "`angles` must have shape (..., 3)"),
        (
            lambda: rotate_coefficients(np.ones(5), np.ones(3)),
            ValueError,
            "`a` must have shape (..., L * L), got (5,)",
        ),
        (lambda: augment(np.ones((1, 9)), np.ones(1), SO3(3)), ValueError, "equally weighted"),
    ],
)
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()
