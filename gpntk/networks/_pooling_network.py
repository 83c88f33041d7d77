"""Networks whose outputs are means over the sites of a domain."""

from jaxtyping import Array, Float

from gpntk.networks._network import AbstractNetwork, NetworkFeatures
from gpntk.networks._state import KernelState


class AbstractPoolingNetwork(AbstractNetwork):
    """A network whose last layer before the readout pools over sites; without it, outputs are equivariant."""

    def arrange(self, kernel: Float[Array, "N1 N2 *sites"]) -> Float[Array, "N1 N2 ..."]:
        """Kernels over the sites of pairs in the layout that users see; by default as they are."""
        return kernel

    def check_unpooled(self) -> None:
        """Raise `ValueError` if the architecture has no unpooled kernels; by default all have."""

    def unpooled(self, features1: NetworkFeatures, features2: NetworkFeatures) -> KernelState:
        """Kernels of all pairs of inputs and all pairs of sites, of the network that does not pool.

        Its readout acts on every site; the mean over sites are the kernels of the network itself.
        """
        layers = _without_pooling(self.layers)
        features1, features2 = (f._replace(layers=_without_pooling(f.layers)) for f in (features1, features2))
        return KernelState(*map(self.arrange, self.kernels_after(layers, features1, features2)))


def _without_pooling(per_layer: tuple) -> tuple:
    *hidden, _, readout = per_layer
    return (*hidden, readout)
