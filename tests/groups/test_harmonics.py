"""Harmonic analysis on the sphere and on SO(3), against s2fft, exact arithmetic and the groups' laws."""

import math
import re

import mpmath
import numpy as np
import pytest
import s2fft
from s2fft.sampling import s2_samples

from gpntk.groups import _harmonics as harmonics, _wigner as wigner, complex_coefficients, real_coefficients

pytestmark = pytest.mark.usefixtures("x64")
BANDLIMITS = (*range(2, 9), *(pytest.param(bandlimit, marks=pytest.mark.slow) for bandlimit in (12, 16)))


def rng(seed=0):
    return np.random.default_rng(seed)


def s2fft_inverse(flm, bandlimit, **options):
    # Its recursion takes logarithms of 0 and less.
    with np.errstate(divide="ignore", invalid="ignore"):
        return s2fft.inverse_numpy(flm, bandlimit, **options)


def exact_wigner_d(degree, m, n, angle):
    """Wigner's explicit sum, in exact arithmetic but for the angle."""
    c, s = mpmath.cos(angle / 2), mpmath.sin(angle / 2)
    total, f = mpmath.mpf(0), math.factorial
    root = mpmath.sqrt(f(degree + m) * f(degree - m) * f(degree + n) * f(degree - n))
    for k in range(max(0, n - m), min(degree + n, degree - m) + 1):
        below = f(degree + n - k) * f(k) * f(m - n + k) * f(degree - m - k)
        total += (-1) ** (m - n + k) * c ** (2 * degree + n - m - 2 * k) * s ** (m - n + 2 * k) * root / below
    return total


@pytest.mark.parametrize("degree", [0, 1, 2, 5, 10, 20, 40])
def test_wigner_matrices_are_exact_to_rounding(degree):
    with mpmath.workdps(60):
        for angle in (0.1, 1.3, 3.0):
            ours = harmonics.wigner_d(degree, angle)
            for m, n in rng(degree).integers(-degree, degree + 1, size=(20, 2)):
                expected = exact_wigner_d(degree, int(m), int(n), mpmath.mpf(angle))
                assert abs(ours[degree + m, degree + n] - expected) < 2e-15 * (degree + 1)


@pytest.mark.parametrize("degree", range(33))
def test_wigner_matrices_form_a_group_at_every_degree(degree):
    first, second, both = (harmonics.wigner_d(degree, angle) for angle in (0.4, 0.7, 1.1))
    np.testing.assert_allclose(first @ second, both, atol=1e-13)
    np.testing.assert_allclose(both @ both.T, np.eye(2 * degree + 1), atol=1e-13)


@pytest.mark.parametrize("sampling", ["mw", "mwss", "dh", "gl"])
@pytest.mark.parametrize("bandlimit", BANDLIMITS)
def test_grids_and_transforms_are_those_of_s2fft(bandlimit, sampling):
    shape = harmonics.grid_shape(bandlimit, sampling, None)
    assert shape == s2_samples.f_shape(bandlimit, sampling)
    a = rng(bandlimit).normal(size=(2, bandlimit**2))
    flm = complex_coefficients(a)
    samples = np.stack([s2fft_inverse(f, bandlimit, sampling=sampling).reshape(-1) for f in flm])
    assert np.abs(samples.imag).max() < 1e-12
    ours = a @ harmonics.synthesis(bandlimit, sampling, None).T
    # s2fft's recursion loses a digit or two by bandlimit 16.
    np.testing.assert_allclose(ours, samples.real, atol=1e-12)
    np.testing.assert_allclose(ours @ harmonics.analysis(bandlimit, sampling, None).T, a, atol=1e-13)
    np.testing.assert_allclose(real_coefficients(flm), a, atol=1e-15)


@pytest.mark.parametrize("sampling", ["dh", "gl"])
def test_analysis_of_any_samples_is_the_quadrature_of_s2fft(sampling):
    samples = rng().normal(size=harmonics.grid_shape(6, sampling, None))
    with np.errstate(divide="ignore", invalid="ignore"):
        theirs = real_coefficients(s2fft.forward_numpy(samples, 6, sampling=sampling))
    np.testing.assert_allclose(harmonics.analysis(6, sampling, None) @ samples.reshape(-1), theirs, atol=1e-13)


@pytest.mark.parametrize(("bandlimit", "nside"), [(2, 1), (4, 2), (8, 4)])
def test_healpix_is_exact_for_signals_of_the_bandlimit(bandlimit, nside):
    a = rng().normal(size=bandlimit**2)
    flm = complex_coefficients(a)
    samples = s2fft_inverse(flm, bandlimit, sampling="healpix", nside=nside)
    np.testing.assert_allclose(harmonics.synthesis(bandlimit, "healpix", nside) @ a, samples.real, atol=1e-13)
    np.testing.assert_allclose(harmonics.analysis(bandlimit, "healpix", nside) @ samples.real, a, atol=1e-13)


def test_harmonics_are_orthonormal():
    # Gauss-Legendre weights of a bandlimit of 12 integrate products of degree 5 + 5 exactly.
    thetas, phis = harmonics.grid_angles(12, "gl", None)
    weights = np.repeat(np.polynomial.legendre.leggauss(12)[1], 23) * 2 * np.pi / 23
    values = harmonics.spherical_harmonics(6, thetas, phis)
    np.testing.assert_allclose(values.T @ (weights[:, None] * values), np.eye(36), atol=1e-14)


def random_coefficients(bandlimit, seed=0):
    values = rng(seed).normal(size=(2, bandlimit, 2 * bandlimit - 1, 2 * bandlimit - 1))
    for degree in range(bandlimit):
        outside = np.abs(np.arange(1 - bandlimit, bandlimit)) > degree
        values[:, degree, outside] = 0
        values[:, degree, :, outside] = 0
    return values


@pytest.mark.parametrize(("bandlimit", "quadrature"), [(1, 1), (2, 2), (4, 4), (6, 8), (8, 8), (12, 12)])
def test_transforms_on_the_group_are_inverse_to_each_other(bandlimit, quadrature):
    coefficients = random_coefficients(bandlimit)
    values = wigner.inverse_wigner(coefficients, quadrature)
    again = wigner.forward_wigner(values, bandlimit, quadrature)
    again = again * (2 * np.arange(bandlimit) + 1)[:, None, None]
    np.testing.assert_allclose(again, coefficients, atol=1e-13)


@pytest.mark.parametrize("quadrature", [1, 2, 5])
def test_quadrature_is_exact_below_twice_its_bandlimit(quadrature):
    bandlimit = 2 * quadrature + 1
    values = wigner.inverse_wigner(random_coefficients(bandlimit), quadrature)
    coefficients = random_coefficients(bandlimit)
    weights = wigner.quadrature_weights(quadrature)
    np.testing.assert_allclose(weights.sum(), 1.0, rtol=1e-15)
    # Without the degree 2B the mean is the constant part, with it it is not.
    inexact = np.abs(values @ weights - coefficients[:, 0, bandlimit - 1, bandlimit - 1]).max()
    coefficients[:, -1] = 0
    mean = wigner.inverse_wigner(coefficients, quadrature) @ weights
    np.testing.assert_allclose(mean, coefficients[:, 0, bandlimit - 1, bandlimit - 1], atol=1e-13)
    assert inexact > 1e-3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: real_coefficients(np.zeros((3, 4), complex)),
            "`flm` must have shape (..., L, 2L - 1), got (3, 4)",
        ),
        (lambda: real_coefficients(np.full((2, 3), 1j)), "`flm` must be the coefficients of real signals"),
        (lambda: complex_coefficients(np.zeros(5)), "`a` must have shape (..., L * L), got (5,)"),
    ],
)
def test_bad_coefficients_are_refused(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
