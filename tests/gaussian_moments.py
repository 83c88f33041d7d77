"""Gaussian moments of activations by quadrature, independent of every formula in the package."""

import numpy as np
from mpmath import mp, mpf

_RADII = np.concatenate([[0.0], 2.0 ** np.arange(-3, 0), np.arange(1.0, 13.0)])
_SECTOR = 0.5 * np.concatenate([[0.0], 2.0 ** np.arange(-6, 0.5)])
_POINTS, _WEIGHTS = np.polynomial.legendre.leggauss(16)


def angle(k, q1, q2):
    """The angle between two Gaussians of covariance k and variances q1, q2, of these very floats."""
    if q1 == 0 or q2 == 0:
        return np.pi / 2
    with mp.workdps(60):
        k, q1, q2 = mpf(float(k)), mpf(float(q1)), mpf(float(q2))
        return float(mp.atan2(mp.sqrt(max(q1 * q2 - k * k, mpf(0))), k))


def mean_of_product(f, q1, q2, phi):
    r"""$E[f(u) f(v)]$ for Gaussians of variances `q1`, `q2` whose correlation is `cos(phi)`.

    In polar coordinates u = sqrt(q1) r cos(t) and v = sqrt(q2) r cos(t - phi): whatever the variances, what
    a function does at zero happens on four rays. Panels shrink towards these rays, and Gauss-Legendre
    quadrature inside the panels reaches rounding error. Half of the circle is the other half with both signs
    changed.
    """
    radii, radial_weights = _gauss_legendre(_RADII)
    radial_weights = radial_weights * radii * np.exp(-0.5 * radii**2) / (2 * np.pi)
    total = 0.0
    for start, stop in ((-0.5 * np.pi, phi - 0.5 * np.pi), (phi - 0.5 * np.pi, 0.5 * np.pi)):
        offsets, angular_weights = _gauss_legendre((stop - start) * _SECTOR)
        for t in (start + offsets, stop - offsets):
            u, v = (np.sqrt(q) * radii[:, None] * np.cos(t - shift) for q, shift in ((q1, 0.0), (q2, phi)))
            total += radial_weights @ (f(u) * f(v) + f(-u) * f(-v)) @ angular_weights
    return total


def _gauss_legendre(edges):
    half = 0.5 * np.diff(edges)[:, None]
    return (half * _POINTS + 0.5 * (edges[1:] + edges[:-1])[:, None]).ravel(), (half * _WEIGHTS).ravel()
