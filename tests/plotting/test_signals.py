"""Orbits, and signals on the sphere."""

import numpy as np
import pytest

import gpntk
from gpntk import plotting
from gpntk.groups import C4, D4, SO3, FiniteGroup


def test_the_orbit_of_an_image_is_made_of_turned_images():
    x = np.random.default_rng(0).normal(size=(3, 3, 2))
    ax = plotting.plot_orbit(D4((3, 3, 2)), x.ravel(), (3, 3), channel=1, cmap="viridis")
    (image,) = ax.images
    mosaic = image.get_array()
    assert mosaic.shape == (3, 8 * 4 - 1)
    for element in range(8):
        turned = np.rot90(np.fliplr(x[..., 1]) if element >= 4 else x[..., 1], element % 4)
        np.testing.assert_array_equal(mosaic[:, 4 * element : 4 * element + 3], turned)
    assert mosaic.mask[:, 3::4].all()
    assert image.get_cmap().name == "viridis"
    assert [tick.get_text() for tick in ax.get_xticklabels()] == list("01234567")


def test_large_orbits_have_rows():
    group = FiniteGroup.cyclic(12)
    ax = plotting.plot_orbit(group, np.arange(12.0), (2, 6), columns=5)
    mosaic = ax.images[0].get_array()
    assert mosaic.shape == (3 * 3 - 1, 5 * 7 - 1)
    # The element 6 takes x to x + 6: the value at y is that of y - 6.
    np.testing.assert_array_equal(mosaic[3:5, 7:13], ((np.arange(12) - 6) % 12).reshape(2, 6))
    assert mosaic.mask[6:, 2 * 7 :].all()  # there are only 12 elements
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["0", "5", "10"]


def test_points_that_are_not_pixels_are_columns():
    matrix = plotting.plot_orbit(FiniteGroup.cyclic(5), np.arange(5.0)).images[0].get_array()
    np.testing.assert_array_equal(matrix, (np.arange(5) - np.arange(5)[:, None]) % 5)


def sphere(sampling, function, rings=20):
    """A signal of two channels, the second one a function of unit vectors, and the mesh that is drawn."""
    group = SO3(3, 2, sampling)
    from gpntk.groups._harmonics import grid_angles

    theta, phi = np.array(grid_angles(3, sampling, None))
    points = np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)], -1)
    x = np.stack([np.zeros(len(points)), function(points)], -1)
    ax = plotting.plot_sphere(group, x.ravel(), channel=1, rings=rings)
    return ax, ax.collections[0]


@pytest.mark.parametrize("sampling", ["mw", "gl"])
def test_values_are_those_of_the_signal(sampling):
    _, mesh = sphere(sampling, lambda p: 0.3 + p[:, 0] * p[:, 1] - 2 * p[:, 2])
    theta = np.pi * (np.arange(20) + 0.5)[:, None] / 20
    phi = np.pi * (np.arange(40) + 0.5) / 20 - np.pi
    x, y = np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi)
    np.testing.assert_allclose(mesh.get_array(), 0.3 + x * y - 2 * np.cos(theta), atol=1e-10)
    assert mesh.norm.vmin == -mesh.norm.vmax == -np.abs(mesh.get_array()).max()


def test_cells_are_where_they_belong_and_keep_their_areas():
    rings = 160
    _, mesh = sphere("mw", lambda p: p[:, 2], rings)
    x, y = np.moveaxis(mesh.get_coordinates(), -1, 0)
    assert x.shape == (rings + 1, 2 * rings + 1)
    # Shoelace formula. Errors of chords in the place of arcs fall with the angle: 4% at 20 rings, 0.5% here.
    loop = [(x[i:, j:], y[i:, j:]) for i, j in ((0, 0), (0, 1), (1, 1), (1, 0))]
    corners = [(a[:rings, : 2 * rings], b[:rings, : 2 * rings]) for a, b in loop]
    pairs = zip(corners, corners[1:] + corners[:1], strict=True)
    areas = np.abs(sum(a[0] * b[1] - b[0] * a[1] for a, b in pairs)) / 2
    heights = -np.diff(np.cos(np.pi * np.arange(rings + 1) / rings))
    exact = np.broadcast_to(heights[:, None] * np.pi / rings, areas.shape)
    np.testing.assert_allclose(areas, exact, rtol=1e-2)
    # Poles up and down, phi = 0 in the middle, growing to the right.
    np.testing.assert_allclose(x[0], 0.0, atol=1e-12)
    np.testing.assert_allclose(y[0], np.sqrt(2.0), atol=1e-12)
    np.testing.assert_allclose(x[:, rings], 0.0, atol=1e-12)
    assert (np.diff(x[1:-1], axis=1) > 0).all()
    assert (np.diff(y, axis=0) < 0).all()


def test_colours_can_be_chosen():
    group = SO3(2, sampling="coefficients")
    mesh = plotting.plot_sphere(group, np.eye(4)[2], rings=4, vmin=0.0, vmax=2.0, cmap="magma").collections[0]
    assert (mesh.norm.vmin, mesh.norm.vmax, mesh.get_cmap().name) == (0.0, 2.0, "magma")
    assert plotting.plot_sphere(group, np.zeros(4), rings=4).collections[0].norm.vmax == 1.0


def test_signals_that_do_not_fit_are_refused():
    c4, so3 = C4((2, 2, 1)), SO3(2)
    for draw, arguments, error, message in (
        (
            plotting.plot_orbit,
            (c4, np.ones(5)),
            ValueError,
            r"`x` must be a vector of 4 numbers, got shape \(5,\)",
        ),
        (plotting.plot_orbit, (c4, np.ones(4), (2, 3)), ValueError, r"`shape` must have 4 pixels.*got \(2, 3\)"),
        (
            plotting.plot_orbit,
            (c4, np.ones(4), 4),
            ValueError,
            r"`shape` must be \(height, width\) or None, got 4",
        ),
        (plotting.plot_orbit, (so3, np.ones(4)), TypeError, "`group` must be a finite group such as"),
        (plotting.plot_sphere, (c4, np.ones(4)), TypeError, r"`group` must be gpntk.groups.SO3\(...\)"),
        (
            plotting.plot_sphere,
            (so3, np.ones(5)),
            ValueError,
            r"`x` must be a vector of 6 numbers, got shape \(5,\)",
        ),
    ):
        with pytest.raises(error, match=message):
            draw(*arguments)
    with pytest.raises(ValueError, match="`channel` must be below 1, the number of channels, got 1"):
        plotting.plot_orbit(c4, np.ones(4), channel=1)
    with pytest.raises(ValueError, match="`columns` must be an integer >= 1, got 0"):
        plotting.plot_orbit(c4, np.ones(4), (2, 2), columns=0)
    with pytest.raises(ValueError, match="`rings` must be an integer >= 2, got 1"):
        plotting.plot_sphere(so3, np.ones(6), rings=1)


def test_networks_bring_their_group():
    net = gpntk.SphericalCNN(2, quadrature_bandlimit=2)
    plotting.plot_sphere(net.group, np.ones(net.n_features), rings=4)
