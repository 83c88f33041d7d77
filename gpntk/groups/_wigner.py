r"""Functions on SO(3): a quadrature, and transforms between its nodes and Wigner coefficients.

Rotations are $R = R_z(\alpha) R_y(\beta) R_z(\gamma)$. A function of bandlimit L is
$f(R) = \sum_{l<L} \sum_{mn} A^l_{mn} D^l_{mn}(R)$ with the real Wigner matrices $D^l$, which rotate the real
coefficients of `gpntk.groups._harmonics`. Coefficients are held as arrays (..., L, 2L-1, 2L-1), zero where
|m| or |n| exceeds l; orders m, n are at m + L - 1, n + L - 1.

The rule of bandlimit B has B Gauss-Legendre nodes in cos(beta) and 2B equidistant angles alpha and gamma. It is
exact for degrees below 2B and closed under inversion. Nodes are numbered by (beta, alpha, gamma) in C order.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gpntk._products import einsum
from gpntk.groups._harmonics import degree_slices, y_rotations


def quadrature_order(quadrature: int) -> int:
    """The number of nodes of the rule of bandlimit `quadrature`."""
    return 4 * quadrature**3


@functools.lru_cache(maxsize=8)
def quadrature_angles(quadrature: int) -> Float[np.ndarray, "nodes 3"]:
    """Euler angles (alpha, beta, gamma) of all nodes."""
    beta, circle = _beta_rule(quadrature)[0], _circle(quadrature)
    beta, alpha, gamma = np.meshgrid(beta, circle, circle, indexing="ij")
    return np.stack([alpha, beta, gamma], -1).reshape(-1, 3)


def quadrature_weights(quadrature: int) -> Float[np.ndarray, " nodes"]:
    """Weights of all nodes, of sum 1."""
    weights = _beta_rule(quadrature)[1] / (4 * quadrature**2)
    return np.repeat(weights / weights.sum() / (4 * quadrature**2), 4 * quadrature**2)


def _beta_rule(quadrature: int) -> tuple[Float[np.ndarray, " B"], Float[np.ndarray, " B"]]:
    cosines, weights = np.polynomial.legendre.leggauss(quadrature)
    return np.arccos(cosines), weights / 2


def _circle(quadrature: int) -> Float[np.ndarray, " 2B"]:
    return np.pi * np.arange(2 * quadrature) / quadrature


def padded(a: Float[Array | np.ndarray, "... L*L"], bandlimit: int) -> Float[Array, "... L 2L-1"]:
    """Coefficients on the sphere with an axis of degrees and one of orders, zero where |m| > l."""
    xp: Any = np if isinstance(a, np.ndarray) else jnp
    blocks = [a[..., columns] for columns in degree_slices(bandlimit)]
    margins = [(0, 0)] * (a.ndim - 1)
    rows = [xp.pad(block, [*margins, (bandlimit - 1 - degree,) * 2]) for degree, block in enumerate(blocks)]
    return xp.stack(rows, -2)


@functools.lru_cache(maxsize=16)
def _beta_tables(
    bandlimit: int, quadrature: int
) -> tuple[Float[np.ndarray, "L B 2L-1 2L-1"], Float[np.ndarray, "L B 2L-1 2L-1"]]:
    r"""What $A^l_{mn}$ and $A^l_{-m,-n}$ contribute at every beta to the Fourier coefficient (m, n).

    Fourier modes of an angle are $\cos m\alpha$ for $m \ge 0$ and $\sin |m|\alpha$ for $m < 0$. Rotations about
    z turn orders m and -m into each other, those about y act by one matrix U on the cosines and one, V, on the
    sines; the product $R_z(\alpha)\,\mathrm{diag}(U, V)\,R_z(\gamma)$ multiplied out has the signs below.
    """
    straight, mirrored = np.zeros((2, bandlimit, quadrature, 2 * bandlimit - 1, 2 * bandlimit - 1))
    beta = _beta_rule(quadrature)[0]
    for degree in range(bandlimit):
        size, matrices = np.arange(-degree, degree + 1), y_rotations(degree, beta)
        cosine, k = size >= 0, np.abs(size)
        both, first, second = cosine[:, None] & cosine, cosine[:, None], cosine[None, :]
        even = matrices[:, degree + k[:, None], degree + k]
        odd = matrices[:, degree - k[:, None], degree - k] * np.outer(k > 0, k > 0)
        block = slice(bandlimit - 1 - degree, bandlimit + degree)
        straight[degree][:, block, block] = np.where(both | (~first & second), even, -even)
        mirrored[degree][:, block, block] = np.where(both | (first & ~second), odd, -odd)
    return straight, mirrored


@functools.lru_cache(maxsize=16)
def _fourier_modes(bandlimit: int, quadrature: int) -> Float[np.ndarray, "2B 2L-1"]:
    m = np.arange(1 - bandlimit, bandlimit)
    phases = np.multiply.outer(_circle(quadrature), np.abs(m))
    return np.where(m < 0, np.sin(phases), np.cos(phases))


def inverse_wigner(
    coefficients: Float[Array | np.ndarray, "... L 2L-1 2L-1"], quadrature: int, einsum: Callable = einsum
) -> Float[Array, "... nodes"]:
    """Values at the nodes of a rule: a sum over degrees for every beta, and a matrix product for each angle."""
    bandlimit = coefficients.shape[-3]
    straight, mirrored = (_as(t, coefficients) for t in _beta_tables(bandlimit, quadrature))
    modes = _as(_fourier_modes(bandlimit, quadrature), coefficients)
    flipped = coefficients[..., ::-1, ::-1]
    by_beta = sum(
        coefficients[..., i, None, :, :] * straight[i] + flipped[..., i, None, :, :] * mirrored[i]
        for i in range(bandlimit)
    )
    values = einsum("am,...bmn->...ban", modes, by_beta)
    values = einsum("...ban,gn->...bag", values, modes)
    return values.reshape(*values.shape[:-3], quadrature_order(quadrature))


def cosets(
    coefficients: Float[Array | np.ndarray, "... L 2L-1 2L-1"], inversion: bool
) -> list[Float[Array | np.ndarray, "... L 2L-1 2L-1"]]:
    """Coefficients on the rotations and, with `inversion`, on those after x -> -x: odd degrees change sign."""
    if not inversion:
        return [coefficients]
    parity = _as((-1.0) ** np.arange(coefficients.shape[-3]), coefficients)[:, None, None]
    return [coefficients, parity * coefficients]


def values_on_group(
    coefficients: Float[Array, "... L 2L-1 2L-1"], quadrature: int, inversion: bool
) -> Float[Array, "... sites"]:
    """`inverse_wigner`; with `inversion` also for rotations that follow x -> -x."""
    return jnp.concatenate([inverse_wigner(part, quadrature) for part in cosets(coefficients, inversion)], -1)


def forward_wigner(values: Float[Array, "... nodes"], bandlimit: int, quadrature: int):
    r"""The integrals $\int f D^l_{mn}$ by quadrature, the adjoint of `inverse_wigner` with weights.

    Times 2l + 1 they are the coefficients of a function; exact for functions of a bandlimit such that both add up
    to at most 2B + 1.
    """
    straight, mirrored = (_as(t, values) for t in _beta_tables(bandlimit, quadrature))
    modes = _as(_fourier_modes(bandlimit, quadrature), values)
    weights = _as(quadrature_weights(quadrature), values)
    circle = 2 * quadrature
    grid = (values * weights).reshape(*values.shape[:-1], quadrature, circle, circle)
    by_beta = einsum("...ban,am->...bmn", einsum("...bag,gn->...ban", grid, modes), modes)
    direct = einsum("...bmn,lbmn->...lmn", by_beta, straight)
    return direct + einsum("...bmn,lbmn->...lmn", by_beta, mirrored)[..., ::-1, ::-1]


def _as(table: np.ndarray, like: Float[Array | np.ndarray, "..."]) -> np.ndarray:
    return table.astype(like.dtype)
