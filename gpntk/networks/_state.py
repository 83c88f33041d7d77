"""The kernel state that every layer propagates."""

from typing import NamedTuple

from jaxtyping import Array, Float


class KernelState(NamedTuple):
    """NNGP and NTK of the preactivations (or activations) of one layer.

    Both have shape `(N1, N2, *sites)` for all pairs of two sets of inputs, or `(N, *sites)` for inputs
    paired elementwise. What the sites are is the business of the domain: nothing for dense networks,
    group elements of an orbit, pairs of positions in an image.
    """

    nngp: Float[Array, "..."]
    ntk: Float[Array, "..."]
