r"""Real spherical harmonics: their rotations, and the grids on which signals are sampled.

A real signal on the sphere of bandlimit L has the coefficients $a_{lm} = \int f\, y_{lm}$, $l < L$, in the
orthonormal basis

$$y_{lm} = \sqrt2\, (-1)^m\, \mathrm{Re}\, Y_{lm} \;(m > 0), \qquad y_{l0} = Y_{l0}, \qquad
  y_{lm} = \sqrt2\, (-1)^m\, \mathrm{Im}\, Y_{l|m|} \;(m < 0),$$

of harmonics $Y_{lm}$ with the Condon-Shortley phase, as those of s2fft and SciPy. They are stored by degree and
then by order, $(l, m)$ at $l^2 + l + m$. Rotations act on them by orthogonal matrices, one block a degree.

All tables are NumPy constants in double precision, made once.
"""

import functools
from typing import Any

import numpy as np
from jaxtyping import Complex, Float, Int

from gpntk import _checks

GRIDS = ("mw", "mwss", "dh", "gl", "healpix")


def bandlimit_of(a: Any) -> int:
    """The bandlimit L of coefficients `a` of shape (..., L * L).

    Raises:
        ValueError: if the last axis is not a square number long.
    """
    bandlimit = round(np.sqrt(a.shape[-1])) if a.ndim else 0
    if bandlimit == 0 or bandlimit**2 != a.shape[-1]:
        raise ValueError(f"`a` must have shape (..., L * L), got {a.shape}.")
    return bandlimit


def degrees(bandlimit: int) -> Int[np.ndarray, " L*L"]:
    """The degree l of every coefficient."""
    return np.repeat(np.arange(bandlimit), 2 * np.arange(bandlimit) + 1)


def orders(bandlimit: int) -> Int[np.ndarray, " L*L"]:
    """The order m of every coefficient."""
    return np.concatenate([np.arange(-degree, degree + 1) for degree in range(bandlimit)])


def opposite_orders(bandlimit: int) -> Int[np.ndarray, " L*L"]:
    """Where the coefficient of order -m is, for every coefficient."""
    return np.arange(bandlimit**2) - 2 * orders(bandlimit)


def degree_slices(bandlimit: int) -> list[slice]:
    """Where the coefficients of each degree are."""
    return [slice(degree**2, (degree + 1) ** 2) for degree in range(bandlimit)]


def wigner_d(degree: int, angles: float | Float[np.ndarray, "..."]) -> Float[np.ndarray, "... 2l+1 2l+1"]:
    r"""Wigner's $d^l_{mn}(\beta) = \langle m | e^{-i\beta J_y} | n \rangle$, to rounding at every degree.

    From the eigenvectors of $J_y$, whose eigenvalues $-l, \ldots, l$ are known: nothing is recurred over degrees,
    orders or angles. Feng, Wang, Yang & Jin (2015), Phys. Rev. E 92, 043307.
    """
    vectors, phases = _y_eigenvectors(degree), _phases(degree, angles)
    return np.real((vectors * phases[..., None, :]) @ vectors.conj().T)


def _middle_columns(degree: int, angles: Float[np.ndarray, "..."]) -> Float[np.ndarray, "... 2l+1"]:
    """The columns n = 0 of `wigner_d`."""
    vectors, phases = _y_eigenvectors(degree), _phases(degree, angles)
    return np.real((phases * vectors[degree].conj()) @ vectors.T)


@functools.cache
def _y_eigenvectors(degree: int) -> Complex[np.ndarray, "2l+1 2l+1"]:
    m = np.arange(-degree, degree)
    ladder = np.sqrt(degree * (degree + 1) - m * (m + 1)) / 2j
    return _frozen(np.linalg.eigh(np.diag(ladder, -1) - np.diag(ladder, 1))[1])


def _phases(degree: int, angles: float | Float[np.ndarray, "..."]) -> Complex[np.ndarray, "... 2l+1"]:
    return np.exp(-1j * np.multiply.outer(angles, np.arange(-degree, degree + 1)))


def real_basis(degree: int) -> Complex[np.ndarray, "2l+1 2l+1"]:
    """The unitary matrix that takes coefficients of complex harmonics of one degree to those of real ones."""
    change = np.zeros((2 * degree + 1, 2 * degree + 1), complex)
    change[degree, degree] = 1.0
    for m in range(1, degree + 1):
        sign = (-1) ** m / np.sqrt(2)
        # f = a_m Y_m + a_-m Y_-m with Y_-m = (-1)^m conj(Y_m)
        change[degree + m, degree + m], change[degree + m, degree - m] = sign, 1 / np.sqrt(2)
        change[degree - m, degree + m], change[degree - m, degree - m] = 1j * sign, -1j / np.sqrt(2)
    return change


@functools.cache
def quarter_turn(degree: int) -> Float[np.ndarray, "2l+1 2l+1"]:
    """The rotation by 90 degrees about the x axis in the real basis; it takes the y axis to the z axis."""
    phases = np.exp(0.5j * np.pi * np.arange(-degree, degree + 1))
    # R_x(a) = R_z(-90) R_y(a) R_z(90)
    complex_turn = phases[:, None] * wigner_d(degree, np.pi / 2) * phases.conj()
    change = real_basis(degree)
    return _frozen(np.real(change @ complex_turn @ change.conj().T))


def y_rotations(degree: int, angles: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n 2l+1 2l+1"]:
    """Rotations about the y axis in the real basis; they do not mix orders m >= 0 with orders m < 0."""
    change = real_basis(degree)
    return np.real(change @ wigner_d(degree, angles) @ change.conj().T)


@functools.lru_cache(maxsize=32)
def spherical_harmonics(
    bandlimit: int, thetas: tuple[float, ...], phis: tuple[float, ...]
) -> Float[np.ndarray, "points L*L"]:
    """Real harmonics at points given by their polar and azimuthal angles."""
    rings, ring = np.unique(thetas, return_inverse=True)
    values = np.empty((len(thetas), bandlimit**2))
    for degree, columns in enumerate(degree_slices(bandlimit)):
        # Y_lm = sqrt((2l + 1) / 4 pi) d^l_m0(theta) exp(i m phi)
        m = np.arange(degree + 1)
        polar = _middle_columns(degree, rings)[ring, degree:]
        polar = polar * np.sqrt((2 * degree + 1) / (4 * np.pi)) * (-1.0) ** m * np.where(m > 0, np.sqrt(2), 1.0)
        azimuth = np.multiply.outer(phis, m)
        block = values[:, columns]
        block[:, degree:] = polar * np.cos(azimuth)
        block[:, :degree] = (polar * np.sin(azimuth))[:, :0:-1]
    return _frozen(values)


def real_coefficients(flm: Complex[np.ndarray, "... L 2L-1"]) -> Float[np.ndarray, "... L*L"]:
    """From s2fft's complex coefficients of real signals to those of real harmonics.

    Args:
        flm: coefficients as s2fft has them, order m at column m + L - 1.

    Returns:
        Coefficients of orthonormal real harmonics, (l, m) at l^2 + l + m.

    Raises:
        ValueError: for other shapes, or if the signals are not real: f_{l,-m} = (-1)^m conj(f_lm).
    """
    flm = np.asarray(_checks.as_array("flm", flm))
    if flm.dtype.kind not in "biufc" or not np.isfinite(flm).all():
        raise ValueError(f"`flm` must be an array of finite complex numbers, got {flm!r}.")
    if flm.ndim < 2 or flm.shape[-1] != 2 * flm.shape[-2] - 1:
        raise ValueError(f"`flm` must have shape (..., L, 2L - 1), got {flm.shape}.")
    bandlimit = flm.shape[-2]
    real, size = np.empty((*flm.shape[:-2], bandlimit**2)), np.max(np.abs(flm), initial=0.0)
    for degree, columns in enumerate(degree_slices(bandlimit)):
        block = flm[..., degree, bandlimit - 1 - degree : bandlimit + degree] @ real_basis(degree).T
        if np.max(np.abs(np.imag(block)), initial=0.0) > 1e-5 * size:
            raise ValueError(
                f"`flm` must be the coefficients of real signals, f_(l,-m) = (-1)^m conj(f_lm), got a part of "
                f"degree {degree} that is not."
            )
        real[..., columns] = np.real(block)
    return real


def complex_coefficients(a: Float[np.ndarray, "... L*L"]) -> Complex[np.ndarray, "... L 2L-1"]:
    """The inverse of `real_coefficients`.

    Args:
        a: coefficients of orthonormal real harmonics, (l, m) at l^2 + l + m.

    Returns:
        Coefficients as s2fft has them, order m at column m + L - 1.

    Raises:
        ValueError: if the last axis is not a square number long.
    """
    a = np.asarray(_checks.real_array("a", a), float)
    bandlimit = bandlimit_of(a)
    flm = np.zeros((*a.shape[:-1], bandlimit, 2 * bandlimit - 1), complex)
    for degree, columns in enumerate(degree_slices(bandlimit)):
        flm[..., degree, bandlimit - 1 - degree : bandlimit + degree] = a[..., columns] @ real_basis(degree).conj()
    return flm


def grid_shape(bandlimit: int, sampling: str, nside: int | None) -> tuple[int, ...]:
    """The shape of one channel of a sampled signal: (n_theta, n_phi), or (pixels,) for HEALPix."""
    if nside is not None:  # HEALPix
        return (12 * nside**2,)
    rings = {"mw": bandlimit, "gl": bandlimit, "mwss": bandlimit + 1, "dh": 2 * bandlimit}[sampling]
    return rings, 2 * bandlimit if sampling == "mwss" else 2 * bandlimit - 1


@functools.lru_cache(maxsize=32)
def grid_angles(bandlimit: int, sampling: str, nside: int | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Polar and azimuthal angles of all points of a grid, in the order of s2fft (HEALPix: ring order)."""
    if nside is not None:  # HEALPix
        return _healpix_angles(nside)
    rings, n_phi = grid_shape(bandlimit, sampling, nside)
    t = np.arange(rings)
    theta = {
        "mw": lambda: (2 * t + 1) * np.pi / (2 * bandlimit - 1),
        "mwss": lambda: t * np.pi / bandlimit,
        "dh": lambda: (2 * t + 1) * np.pi / (4 * bandlimit),
        "gl": lambda: np.arccos(np.polynomial.legendre.leggauss(bandlimit)[0])[::-1],
    }[sampling]()
    phi = 2 * np.pi * np.arange(n_phi) / n_phi
    return tuple(np.repeat(theta, n_phi).tolist()), tuple(np.tile(phi, rings).tolist())


def _healpix_angles(nside: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Centres of HEALPix pixels in ring order: Gorski et al. (2005), ApJ 622, 759, eqs. (4) to (9)."""
    thetas, phis = [], []
    for ring in range(1, 4 * nside):
        distance = min(ring, 4 * nside - ring)
        if distance < nside:
            count, shift, z = 4 * distance, 0.5, 1 - distance**2 / (3 * nside**2)
            z = z if ring < 2 * nside else -z
        else:
            count, shift, z = 4 * nside, 0.5 * ((ring - nside + 1) % 2), (4 - 2 * ring / nside) / 3
        thetas += [float(np.arccos(z))] * count
        phis += (2 * np.pi * (np.arange(count) + shift) / count).tolist()
    return tuple(thetas), tuple(phis)


def synthesis(bandlimit: int, sampling: str, nside: int | None) -> Float[np.ndarray, "points L*L"]:
    """Samples of a signal from its real coefficients."""
    return spherical_harmonics(bandlimit, *grid_angles(bandlimit, sampling, nside))


@functools.lru_cache(maxsize=32)
def analysis(bandlimit: int, sampling: str, nside: int | None) -> Float[np.ndarray, "L*L points"]:
    """Real coefficients of a signal from its samples, exact for signals of the bandlimit.

    The least-squares solution, every sample weighted with its share of the sphere. On the grids of the sampling
    theorems ("gl", "dh") this is their quadrature; on HEALPix pixels, where sums over pixels are only
    approximate integrals, it is exact all the same.

    Raises:
        ValueError: if the grid does not determine the coefficients.
    """
    thetas, _ = grid_angles(bandlimit, sampling, nside)
    harmonics = synthesis(bandlimit, sampling, nside)
    root = np.sqrt(_solid_angles(np.array(thetas), sampling, bandlimit))
    weighted = root[:, None] * harmonics
    singular = np.linalg.svd(weighted, compute_uv=False)
    if len(weighted) < bandlimit**2 or singular[-1] < 1e-6 * singular[0]:
        raise ValueError(
            f"`nside` must be large enough for the bandlimit {bandlimit}, got {nside}: its {len(weighted)} pixels "
            f"do not determine {bandlimit**2} coefficients."
        )
    return _frozen(np.linalg.pinv(weighted) * root)


def _solid_angles(theta: Float[np.ndarray, " points"], sampling: str, bandlimit: int):
    """What part of the sphere each point stands for, up to a factor."""
    if sampling == "healpix":
        return np.ones_like(theta)
    if sampling == "gl":
        return np.repeat(np.polynomial.legendre.leggauss(bandlimit)[1], len(theta) // bandlimit)
    if sampling == "dh":
        # Driscoll & Healy (1994), Adv. Appl. Math. 15, 202: exact for products of two signals.
        k = 2 * np.arange(bandlimit) + 1
        return np.sin(theta) * (np.sin(np.multiply.outer(theta, k)) @ (1.0 / k))
    # Poles are points of the other equiangular grids, and must not be lost.
    return np.sin(theta) + 0.4 * np.abs(np.cos(theta)) / bandlimit


def check_grid(bandlimit: int, sampling: str, nside: int | None) -> None:
    """Raise `ValueError` for an unknown sampling, or an `nside` where there is none or that is too small."""
    _checks.option("sampling", sampling, (*GRIDS, "coefficients"))
    if sampling == "healpix":
        if nside is None:
            raise ValueError('`nside` must be given for sampling="healpix", got None.')
        _checks.integer("nside", nside, minimum=1)
        analysis(bandlimit, sampling, nside)
    elif nside is not None:
        raise ValueError(f'`nside` must be None unless sampling="healpix", got {nside} with {sampling!r}.')


def _frozen(table: np.ndarray) -> np.ndarray:
    table.setflags(write=False)
    return table
