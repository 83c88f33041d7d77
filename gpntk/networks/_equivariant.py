"""From an architecture to its equivariant version."""

import inspect
from typing import Any

from gpntk import _checks
from gpntk.groups import SO3, AbstractGroup, FiniteGroup
from gpntk.networks._finite_group import FiniteGroupCNN
from gpntk.networks._mlp import MLP
from gpntk.networks._network import AbstractNetwork
from gpntk.networks._planar import CNN, PlanarGroupCNN, planar_group_name
from gpntk.networks._spherical import SphericalCNN


def equivariant(net: AbstractNetwork, group: AbstractGroup) -> AbstractNetwork:
    r"""The group-convolutional network whose kernels are the orbit averages of those of `net`.

    $$\Theta_{\text{equivariant}}(x, x') = \frac{1}{|G|} \sum_g \Theta_{\text{net}}(x, g x')$$

    It therefore predicts what `net` predicts when it is trained on the fully augmented data set.

    Args:
        net: an `MLP`, or a `CNN` on square images whose filters rotations map to themselves.
        group: a finite group or `groups.SO3(...)` for an `MLP`, `groups.C4(input_shape)` or
            `groups.D4(input_shape)` for a `CNN`.

    Returns:
        A `FiniteGroupCNN`, `SphericalCNN` or `PlanarGroupCNN` with the same depth, activation and variances. A
        `SphericalCNN` takes signals in the sampling of the group, while `net` sees them embedded.

    Raises:
        ValueError: if there is no such network for this pair.
        TypeError: if `net` is not an architecture or `group` not a group.

    >>> import gpntk
    >>> cnn = gpntk.CNN((8, 8, 3), depth=3)
    >>> gpntk.equivariant(cnn, gpntk.groups.D4((8, 8, 3))).group
    'D4'
    """
    _checks.instance("net", net, AbstractNetwork, "an architecture such as gpntk.MLP()")
    _checks.instance("group", group, AbstractGroup, "a group such as gpntk.groups.C4((28, 28, 1))")
    if isinstance(net, MLP) and isinstance(group, FiniteGroup):
        return FiniteGroupCNN(group, channels=group.channels, **_shared(net, FiniteGroupCNN))
    if isinstance(net, MLP) and isinstance(group, SO3):
        return SphericalCNN(**group.arguments(), **_shared(net, SphericalCNN))
    if isinstance(net, CNN):
        name = planar_group_name(group, net.input_shape)
        if name is not None:
            return PlanarGroupCNN(name, **_shared(net, PlanarGroupCNN))
        raise ValueError(
            f"`group` must be groups.C4({net.input_shape}) or groups.D4({net.input_shape}), with square images, "
            f"for this CNN, got {group!r}."
        )
    raise ValueError(
        "`net` must be an MLP (with a finite group or SO3) or a CNN (with C4 or D4) to have an equivariant "
        f"version, got {type(net).__name__} with {group!r}."
    )


def _shared(net: AbstractNetwork, kind: type) -> dict[str, Any]:
    """Those constructor arguments of `net` that networks of the other kind have too."""
    return {name: value for name, value in net.arguments().items() if name in inspect.signature(kind).parameters}
