"""Convolutional networks over rotations, for signals on the sphere."""

import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gpntk import _checks
from gpntk._products import einsum
from gpntk.activations import AbstractActivation, ReLU
from gpntk.groups import SO3
from gpntk.groups._wigner import padded, values_on_group
from gpntk.networks._domains import AbstractDomain
from gpntk.networks._layers import Dense, Nonlinearity, Repeat
from gpntk.networks._pooling_network import AbstractPoolingNetwork
from gpntk.networks._quadrature_error import choose_quadrature, diagonal_error, quadrature_error
from gpntk.networks._spherical_layers import Lift, QuadratureMean, RotationConvolution

# Errors of the default quadrature that large signals must exceed for a warning.
_TOLERANCE = 2e-4
_LARGEST_MEAN_SQUARE = 2.0
_CHECKED_SIGNALS = 4


class SphericalSignals(AbstractDomain):
    r"""Signals on the sphere, in pairs: their correlation over rotations.

    $$k(R) = \frac{1}{4\pi c} \sum_c \int f_c(x) f'_c(R^{-1} x)\,dx
      = \frac{1}{4\pi c} \sum_{c,l,m,n} a_{clm} D^l_{mn}(R)\, a'_{cln},$$

    evaluated at the nodes of a quadrature on the group, the sites of a pair. The variance of one input is the
    same at every rotation: one input has no sites.
    """

    group: SO3 = eqx.field(static=True)

    def embed(self, x):
        # Scaled such that inner products are covariances.
        return self.group.coefficients(x) / np.sqrt(4 * np.pi * self.group.channels).astype(x.dtype)

    def variance(self, embedded):
        return jnp.sum(embedded * embedded, (-2, -1))

    def covariance(self, embedded1, embedded2):
        return self._correlation("ncki,mckj->nmkij", embedded1, embedded2)

    def paired_covariance(self, embedded1, embedded2):
        return self._correlation("ncki,nckj->nkij", embedded1, embedded2)

    def _correlation(self, formula, embedded1, embedded2):
        left, right = (padded(embedded, self.group.bandlimit) for embedded in (embedded1, embedded2))
        products = einsum(formula, left, right)
        return values_on_group(products, self.group.quadrature_bandlimit, self.group.inversion)

    def align_left(self, leaf):
        return jnp.expand_dims(leaf, 1)

    def align_right(self, leaf):
        return jnp.expand_dims(leaf, 1)

    @property
    def sites_per_pair(self):
        return self.group.order

    def signal(self, x):
        scaled = self.group.coefficients(x) / np.sqrt(4 * np.pi).astype(x.dtype)
        return jnp.swapaxes(scaled, 1, 2)


class SphericalCNN(AbstractPoolingNetwork):
    r"""A group-convolutional network over rotations, for signals on the sphere.

    $$[N_1 f](R) = \sqrt{\tfrac{C_W}{c}} \sum_c \int_{S^2} \kappa_c(x) f_c(Rx)\, dx, \qquad
      [N_{l+1} f](R) = \sqrt{\tfrac{C_W}{n}} \sum_c \int_{SO(3)} \kappa_c(S)\, \sigma([N_l f]_c(RS))\, dS,$$

    with measures of total mass 1, followed by the mean over rotations and a readout, each with the biases of
    `AbstractNetwork`: Cohen, Geiger, Koehler & Welling (2018), arXiv:1801.10130. Outputs are invariant under
    rotations. Filters have full support, so the kernels of channels that are many depend on $R R'^{-1}$ only; they
    are those of an `MLP` pointwise in the rotation, and their mean is the average of the kernels of the `MLP`
    over all rotations of one signal.

    That mean is a sum over the nodes of a quadrature (see `gpntk.groups.SO3`), whose order is what the
    nonlinearity needs and not the signal. Errors decrease geometrically for smooth activations, and with
    about the fourth power of the order for ReLU; they are largest for pairs on one orbit, among them all of a Gram
    diagonal. By default the order is chosen for a relative error of the diagonal of 1e-4 (activations with a kink)
    or 1e-6, which random signals of mean square 1 stay below; `quadrature_error` tells what it is, for given
    signals too.

    Finite networks have white-noise filters, those on SO(3) up to the bandlimit of the quadrature. They are
    equivariant up to what the nonlinearity makes beyond it.

    Args:
        bandlimit: L; signals have degrees l < L.
        channels: number of channels of the signals.
        depth: number of hidden layers, the lifting one included, and of activations.
        sampling: how signals are given, in columns: "mw", "mwss", "dh" or "gl", the grids (n_theta, n_phi,
            channels) of s2fft; "healpix", pixels (12 nside^2, channels) in ring order; "coefficients", orthonormal
            real harmonics (channels, L^2), (l, m) at l^2 + l + m (`gpntk.groups.real_coefficients` makes them of
            complex ones).
        quadrature_bandlimit: B, at least the bandlimit; a pair of signals takes 4 B^3 numbers. `None` chooses it.
        nside: the resolution of "healpix".
        inversion: whether filters are on O(3) instead: outputs are invariant under x -> -x, too.
        activation: see `AbstractNetwork`.
        weight_variance: see `AbstractNetwork`.
        bias_variance: see `AbstractNetwork`.
        readout_bias: see `AbstractNetwork`.
        width_ratios: see `AbstractNetwork`; widths are numbers of channels.

    Raises:
        ValueError: for unknown samplings, numbers below 1, a quadrature below the bandlimit, and an `nside`
            that is missing or too small.
        TypeError: for arguments of the wrong kind.
    """

    bandlimit: int = eqx.field(static=True)
    channels: int = eqx.field(static=True)
    sampling: str = eqx.field(static=True)
    quadrature_bandlimit: int = eqx.field(static=True)
    nside: int | None = eqx.field(static=True)
    inversion: bool = eqx.field(static=True)
    _chosen: bool = eqx.field(static=True)

    def __init__(
        self,
        bandlimit: int,
        channels: int = 1,
        depth: int = 2,
        sampling: str = "mw",
        quadrature_bandlimit: int | None = None,
        nside: int | None = None,
        inversion: bool = False,
        activation: AbstractActivation = ReLU(),  # noqa: B008 (immutable)
        weight_variance: Any = 2.0,
        bias_variance: Any = 0.0,
        readout_bias: bool = True,
        width_ratios: tuple[float, ...] | None = None,
    ):
        super().__init__(depth, activation, weight_variance, bias_variance, readout_bias, width_ratios)
        group = SO3(bandlimit, channels, sampling, quadrature_bandlimit, nside, inversion)
        self.bandlimit, self.channels, self.sampling = group.bandlimit, group.channels, group.sampling
        self.nside, self.inversion = group.nside, group.inversion
        self._chosen = quadrature_bandlimit is None
        if self._chosen:
            self.quadrature_bandlimit = choose_quadrature(self)
        elif group.quadrature_bandlimit < self.bandlimit:
            raise ValueError(
                f"`quadrature_bandlimit` must be at least {self.bandlimit}, the bandlimit of the signals, got "
                f"{quadrature_bandlimit}."
            )
        else:
            self.quadrature_bandlimit = group.quadrature_bandlimit

    @property
    def group(self) -> SO3:
        """The group, as it acts on embedded signals."""
        shape = self.bandlimit, self.channels, self.sampling
        return SO3(*shape, self.quadrature_bandlimit, self.nside, self.inversion)

    @property
    def domain(self):
        return SphericalSignals(self.group)

    @property
    def body(self):
        dense, activation = Dense(self.weight_variance, self.bias_variance), Nonlinearity(self.activation)
        rule = (self.quadrature_bandlimit, self.inversion)
        lift, convolution = Lift(dense, self.bandlimit, *rule), RotationConvolution(dense, *rule)
        repeated = (Repeat((convolution, activation), self.depth - 1),) if self.depth > 1 else ()
        return (lift, activation, *repeated, QuadratureMean(*rule))

    @property
    def n_features(self):
        return int(np.prod(self.group.signal_shape))

    def is_invariant(self, group):
        # On grids the group acts on embedded signals, which this network does not take.
        if self.sampling != "coefficients" or not isinstance(group, SO3):
            return False
        same_signals = (group.bandlimit, group.channels) == (self.bandlimit, self.channels)
        return same_signals and (self.inversion or not group.inversion)

    def arguments(self):
        arguments = super().arguments()
        if self._chosen:
            arguments["quadrature_bandlimit"] = None
        return arguments

    def quadrature_error(self, x: Float[Array, "N D"] | None = None) -> float:
        """A bound on the relative error of the kernel of a signal with itself, the larger one of NNGP and NTK.

        Pairs of signals on different orbits have smaller errors. Relative to the kernel, or to its mean over the
        signals where that is larger (without biases, odd activations give signals of no mean over the sphere a
        kernel of zero). The estimate is 1.5 times the difference to a rule of half as many nodes again in each
        angle; for random signals it is four times the difference for the worst of up to 1024, which covers
        others: none of thousands had a larger error. Signals of a single degree, or symmetric about an axis, are
        not typical and may.

        Args:
            x: signals, one per row; `None` means random ones of mean square 1, as the default order is chosen by.

        Returns:
            The largest bound, over signals and kernels.

        Raises:
            ValueError: if `x` does not fit the architecture.
        """
        if x is None:
            return quadrature_error(self)
        x = _checks.inputs("x", x, self.n_features)
        return diagonal_error(self, self.features(x))

    def check_features(self, features):
        super().check_features(features)
        if not self._chosen or _checks.is_traced(self, features):
            return
        # The order was chosen for signals of mean square 1. Smaller ones need no more, larger ones may.
        sizes = np.asarray(self.domain.variance(features.embedded))
        largest = np.argsort(sizes)[-_CHECKED_SIGNALS:]
        if sizes[largest[-1]] <= _LARGEST_MEAN_SQUARE:
            return
        error = diagonal_error(self, jax.tree.map(lambda leaf: leaf[largest], features))
        if error > _TOLERANCE:
            warnings.warn(
                f"The quadrature over rotations leaves an error of {error:.0e} at signals of mean square "
                f"{sizes[largest[-1]]:.3g}. Scale them to mean square 1, or raise `quadrature_bandlimit` "
                f"above {self.quadrature_bandlimit}.",
                stacklevel=3,
            )
