"""Kernels of equivariant outputs: one value for every pair of sites."""

import math

import equinox as eqx
import jax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from gpntk import _checks
from gpntk._features import checked_features
from gpntk.kernels._engine import finite
from gpntk.networks import AbstractPoolingNetwork

_MOST_BYTES = 16 * 2**30


def unpooled_kernels(
    net: AbstractPoolingNetwork, x1: Float[ArrayLike, "N1 D"], x2: Float[ArrayLike, "N2 D"] | None = None
) -> tuple[Float[Array, "N1 N2 ..."], Float[Array, "N1 N2 ..."]]:
    r"""NNGP and NTK of the network that does not pool: $K_{g,g'}(x, x')$ and $\Theta_{g,g'}(x, x')$.

    The readout acts on every site, and the mean over all trailing axes is `nngp_and_ntk(net, x1, x2)`, weighted
    with `net.group.weights` for rotations. They are equivariant: transforming an input moves it along the trailing
    axes. Their layout is

    - `FiniteGroupCNN`: (N1, N2, order) over $g g'^{-1}$, with full supports; otherwise (N1, N2, order, order)
      over $g$ and $g'$;
    - `PlanarGroupCNN`: (N1, N2, order, P, P) over $s = r' r^{-1}$, $t$ and $t'$, for group elements $(t, r)$
      and $(t', r')$ made of one of the P positions and a rotation or reflection;
    - `CNN`: (N1, N2, P, P) over $t$ and $t'$;
    - `SphericalCNN`: (N1, N2, order) over the nodes R of the quadrature, for the inputs $f$ and $\rho(R) f'$.

    Args:
        net: a convolutional architecture.
        x1: inputs, one per row.
        x2: further inputs; `None` means `x1`.

    Returns:
        NNGP and NTK.

    Raises:
        ValueError: if inputs are not finite 2-D arrays of the right dimension, if the network flattens instead of
            pooling, if a Gaussian moment of the activation diverges, if kernel values overflow, or if both kernels
            together would take more than 16 GiB (naming the size in bytes).
        TypeError: if `net` is not a convolutional architecture.
    """
    _checks.instance("net", net, AbstractPoolingNetwork, "a convolutional architecture such as gpntk.CNN")
    net.check_unpooled()
    x1 = _checks.inputs("x1", x1, net.n_features)
    x2 = x1 if x2 is None else _checks.inputs("x2", x2, net.n_features)
    _check_size(net, x1, x2)
    return finite(tuple(_unpooled(net, checked_features(net, x1), checked_features(net, x2))))


def _check_size(net, x1: Float[Array, "N1 D"], x2: Float[Array, "N2 D"]) -> None:
    """Refuse results too large for memory, before anything is computed."""
    kernels = eqx.filter_eval_shape(lambda: _unpooled(net, net.features(x1), net.features(x2)))
    needed = sum(math.prod(kernel.shape) * kernel.dtype.itemsize for kernel in kernels)
    if needed > _MOST_BYTES:
        raise ValueError(
            f"Unpooled kernels of shape {kernels[0].shape} need {needed:,} bytes, more than the {_MOST_BYTES:,} "
            "allowed: take fewer inputs at a time, or smaller images."
        )


@eqx.filter_jit
def _unpooled(net, features1, features2):
    # Row by row, so that temporaries do not take a multiple of the result.
    def row(features):
        state = net.unpooled(jax.tree.map(lambda leaf: leaf[None], features), features2)
        return jax.tree.map(lambda leaf: leaf[0], state)

    return jax.lax.map(row, features1)
