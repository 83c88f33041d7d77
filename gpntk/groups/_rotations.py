"""Rotations of the sphere: Euler angles, and their action on signals."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray

from gpntk import _checks
from gpntk._products import einsum, matmul
from gpntk.groups._base import AbstractGroup
from gpntk.groups._harmonics import (
    analysis,
    bandlimit_of,
    check_grid,
    degree_slices,
    degrees,
    grid_shape,
    opposite_orders,
    orders,
    quarter_turn,
    synthesis,
)
from gpntk.groups._wigner import quadrature_angles, quadrature_order, quadrature_weights


class SO3(AbstractGroup):
    r"""Rotations of the sphere (with `inversion`, the orthogonal group O(3)), as a quadrature.

    It acts on *embedded* signals, the columns that `embed` makes of sampled ones: coefficients $a_{clm}$ of
    orthonormal real harmonics, scaled by $L / \sqrt{4\pi}$ so that inner products divided by their dimension
    are $\frac{1}{4\pi c}\sum_c \int f_c f'_c$. Samples on a grid have other inner products, and
    kernels of them are not invariant. `GroupAveraged(NTK(MLP(...)), group)` of embedded signals is the kernel of
    augmentation by all rotations, and equals `NTK(SphericalCNN(...))` of the signals themselves at the same
    quadrature.

    Nodes of the quadrature are Euler angles $(\alpha, \beta, \gamma)$, rotations
    $R_z(\alpha) R_y(\beta) R_z(\gamma)$ and $(\rho(R) f)(x) = f(R^{-1} x)$; with inversion, the same nodes follow
    once more, each after $x \mapsto -x$.

    Args:
        bandlimit: L; signals have degrees l < L.
        channels: number of channels of the signals.
        sampling: how signals are given, in columns: "mw", "mwss", "dh" or "gl", the grids (n_theta, n_phi,
            channels) of s2fft (McEwen & Wiaux, 2011, and others); "healpix", pixels (12 nside^2, channels) in ring
            order; "coefficients", orthonormal real harmonics (channels, L^2), (l, m) at l^2 + l + m.
        quadrature_bandlimit: B; the rule has B nodes in beta and 2B in alpha and gamma, and is exact up to degree
            2B - 1. `None` means 2L + 4, with which averages of the kernels of ReLU networks are good to about four
            digits; `SphericalCNN` chooses its own.
        nside: the resolution of "healpix".
        inversion: whether to add the inversion $x \mapsto -x$.

    Raises:
        ValueError: for unknown samplings, an `nside` that is missing or too small for the bandlimit, and numbers
            below 1.
        TypeError: for arguments of the wrong kind.

    >>> group = SO3(bandlimit=3, channels=2, quadrature_bandlimit=4)
    >>> group.order, group.n_features, group.signal_shape
    (256, 18, (3, 5, 2))
    """

    def __init__(
        self,
        bandlimit: int,
        channels: int = 1,
        sampling: str = "mw",
        quadrature_bandlimit: int | None = None,
        nside: int | None = None,
        inversion: bool = False,
    ):
        self.bandlimit = _checks.integer("bandlimit", bandlimit, minimum=1)
        self.channels = _checks.integer("channels", channels, minimum=1)
        check_grid(self.bandlimit, sampling, nside)
        self.sampling, self.nside = sampling, nside
        self.inversion = _checks.boolean("inversion", inversion)
        self._chosen = quadrature_bandlimit is None
        if self._chosen:
            quadrature_bandlimit = 2 * self.bandlimit + 4
        self.quadrature_bandlimit = _checks.integer("quadrature_bandlimit", quadrature_bandlimit, minimum=1)

    @property
    def order(self):
        return self._rotations * (2 if self.inversion else 1)

    @property
    def _rotations(self) -> int:
        return quadrature_order(self.quadrature_bandlimit)

    @property
    def weights(self):
        weights = quadrature_weights(self.quadrature_bandlimit)
        return np.tile(weights / 2, 2) if self.inversion else weights

    @property
    def angles(self) -> Float[np.ndarray, "nodes 3"]:
        """Euler angles (alpha, beta, gamma) of the nodes (of the proper rotations among them)."""
        return quadrature_angles(self.quadrature_bandlimit)

    @property
    def n_features(self):
        return self.channels * self.bandlimit**2

    @property
    def signal_shape(self) -> tuple[int, ...]:
        """The shape of a signal before it is flattened."""
        if self.sampling == "coefficients":
            return self.channels, self.bandlimit**2
        return (*grid_shape(self.bandlimit, self.sampling, self.nside), self.channels)

    @property
    def is_orthogonal(self):
        return True

    def embed(self, x: Float[ArrayLike, "N D"]) -> Float[Array, "N n_features"]:
        """Signals as the group acts on them: scaled real coefficients, channel by channel.

        Args:
            x: signals in the group's sampling, flattened.

        Raises:
            ValueError: if the number of columns does not fit the sampling.
        """
        scale = self.bandlimit / np.sqrt(4 * np.pi)
        return (scale * self.coefficients(x)).reshape(-1, self.n_features)

    def coefficients(self, x: Float[ArrayLike, "N D"]) -> Float[Array, "N channels L*L"]:
        """Coefficients of signals in orthonormal real harmonics.

        Args:
            x: signals in the group's sampling, flattened.

        Raises:
            ValueError: if the number of columns does not fit the sampling.
        """
        x = self._checked(x)
        if self.sampling == "coefficients":
            return x.reshape(len(x), *self.signal_shape)
        matrix = analysis(self.bandlimit, self.sampling, self.nside).astype(x.dtype)
        signals = x.reshape(len(x), -1, self.channels)
        return einsum("npc,kp->nck", signals, matrix)

    def rotate(self, x: Float[ArrayLike, "N D"], angles: Float[ArrayLike, "*N 3"]) -> Float[Array, "N D"]:
        """Rotated signals in the same sampling, through their coefficients.

        Args:
            x: signals in the group's sampling, flattened. What is not below the bandlimit is lost.
            angles: Euler angles (alpha, beta, gamma), one rotation for all signals or one for each.

        Raises:
            ValueError: if the shapes do not fit.
        """
        coefficients = self.coefficients(x)
        size, angles = len(coefficients), _euler(angles)
        if angles.shape not in ((3,), (size, 3)):
            raise ValueError(f"`angles` must have shape (3,) or ({size}, 3), got {angles.shape}.")
        moved = rotate_coefficients(coefficients, angles[..., None, :])
        if self.sampling == "coefficients":
            return moved.reshape(size, -1)
        matrix = synthesis(self.bandlimit, self.sampling, self.nside).astype(moved.dtype)
        samples = einsum("nck,pk->npc", moved, matrix)
        return samples.reshape(size, -1)

    def transform(self, x, index):
        x = _checks.inputs("x", x, self.n_features, "group, which acts on embedded signals,")
        index = self._checked_index(index)
        coefficients = x.reshape(len(x), self.channels, self.bandlimit**2)
        angles = jnp.asarray(self.angles.astype(coefficients.dtype))[index % self._rotations]
        moved = rotate_coefficients(coefficients, angles)
        if self.inversion:
            parity = (-1.0) ** degrees(self.bandlimit)
            moved = jnp.where(index >= self._rotations, moved * parity.astype(moved.dtype), moved)
        return moved.reshape(x.shape)

    def arguments(self) -> dict[str, Any]:
        """Constructor arguments by name."""
        arguments = {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}
        return arguments | ({"quadrature_bandlimit": None} if self._chosen else {})

    def _checked(self, x: Any) -> Float[Array, "N D"]:
        x = _checks.inputs("x", x)
        expected = int(np.prod(self.signal_shape))
        if x.shape[1] != expected:
            raise ValueError(
                f'x has {x.shape[1]} features, but signals with sampling="{self.sampling}", bandlimit '
                f"{self.bandlimit} and {self.channels} channel(s) have {expected} = "
                f"{' * '.join(map(str, self.signal_shape))}."
            )
        return x

    def _key(self) -> tuple:
        shape = self.bandlimit, self.channels, self.sampling, self.nside
        return (*shape, self.quadrature_bandlimit, self.inversion)

    def __eq__(self, other):
        return isinstance(other, SO3) and self._key() == other._key()

    def __hash__(self):
        return hash(self._key())

    def __repr__(self):
        names = ("bandlimit", "channels", "sampling", "nside", "quadrature_bandlimit", "inversion")
        return f"SO3({', '.join(f'{name}={value!r}' for name, value in zip(names, self._key(), strict=True))})"


def rotate_coefficients(a: Float[Array, "... L*L"], angles: Float[ArrayLike, "... 3"]) -> Float[Array, "... L*L"]:
    r"""Real coefficients of rotated signals, $f \circ R^{-1}$ for $R = R_z(\alpha) R_y(\beta) R_z(\gamma)$.

    Rotations about z mix orders m and -m; one about y is one about z between two quarter turns.

    Args:
        a: coefficients of orthonormal real harmonics, (l, m) at l^2 + l + m.
        angles: Euler angles (alpha, beta, gamma), with leading axes that broadcast against those of `a`.

    Raises:
        ValueError: if the last axis of `a` is not a square number long, or that of `angles` is not 3 long.
    """
    a = _checks.floating_array("a", a)
    bandlimit = bandlimit_of(a)
    alpha, beta, gamma = jnp.moveaxis(_euler(angles).astype(a.dtype), -1, 0)
    turned = _turn(_z_rotation(a, bandlimit, gamma), bandlimit, inverse=False)
    turned = _turn(_z_rotation(turned, bandlimit, beta), bandlimit, inverse=True)
    return _z_rotation(turned, bandlimit, alpha)


def _z_rotation(a: Float[Array, "... L*L"], bandlimit: int, angle: Float[Array, "..."]) -> Float[Array, "... L*L"]:
    phase = jnp.asarray(angle)[..., None] * orders(bandlimit).astype(a.dtype)
    return jnp.cos(phase) * a - jnp.sin(phase) * a[..., opposite_orders(bandlimit)]


def _turn(a: Float[Array, "... L*L"], bandlimit: int, inverse: bool) -> Float[Array, "... L*L"]:
    parts = []
    for degree, columns in enumerate(degree_slices(bandlimit)):
        matrix = quarter_turn(degree).astype(a.dtype)
        matrix = matrix if inverse else matrix.T
        parts.append(matmul(a[..., columns], matrix))
    return jnp.concatenate(parts, -1)


def random_rotations(key: PRNGKeyArray, n: int) -> Float[Array, "n 3"]:
    """Euler angles (alpha, beta, gamma) of rotations drawn uniformly from SO(3).

    Args:
        key: JAX random key.
        n: number of rotations.

    Raises:
        ValueError: if `n` is below 1.
        TypeError: if `key` is not a random key, or `n` not an integer.
    """
    _checks.key("key", key)
    n = _checks.integer("n", n, minimum=1)
    alpha, height, gamma = jax.random.uniform(key, (3, n))
    return jnp.stack([2 * jnp.pi * alpha, jnp.arccos(2 * height - 1), 2 * jnp.pi * gamma], -1)


def rotation_matrices(angles: Float[ArrayLike, "... 3"]) -> Float[Array, "... 3 3"]:
    """Rotation matrices R_z(alpha) R_y(beta) R_z(gamma), which act on columns (x, y, z).

    Args:
        angles: Euler angles (alpha, beta, gamma).

    Raises:
        ValueError: if the last axis is not 3 long.
    """
    angles = _euler(angles)
    (ca, cb, cg), (sa, sb, sg) = (jnp.moveaxis(f(angles), -1, 0) for f in (jnp.cos, jnp.sin))
    rows = (
        (ca * cb * cg - sa * sg, -ca * cb * sg - sa * cg, ca * sb),
        (sa * cb * cg + ca * sg, -sa * cb * sg + ca * cg, sa * sb),
        (-sb * cg, sb * sg, cb),
    )
    return jnp.stack([jnp.stack(row, -1) for row in rows], -2)


def _euler(angles: Any) -> Float[Array, "... 3"]:
    angles = _checks.floating_array("angles", angles)
    if angles.shape[-1:] != (3,):
        raise ValueError(f"`angles` must have shape (..., 3), got {angles.shape}.")
    return angles
