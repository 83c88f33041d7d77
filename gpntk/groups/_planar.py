"""Rotations and reflections of square images."""

from collections.abc import Sequence

import numpy as np

from gpntk import _checks
from gpntk.groups._finite import FiniteGroup


def C4(input_shape: tuple[int, int, int]) -> FiniteGroup:
    """Rotations by multiples of 90 degrees, acting on flattened square images.

    The element k rotates by k times 90 degrees, as `numpy.rot90(image, k)`.

    Args:
        input_shape: (H, W, C) of the images, with H = W.

    Raises:
        ValueError: if the images are not square.
    """
    return _on_images("C4", input_shape)


def D4(input_shape: tuple[int, int, int]) -> FiniteGroup:
    """Rotations by multiples of 90 degrees and reflections, acting on flattened square images.

    The element k acts as `numpy.rot90(image, k)`, the element 4 + k as `numpy.rot90(numpy.fliplr(image), k)`.

    Args:
        input_shape: (H, W, C) of the images, with H = W.

    Raises:
        ValueError: if the images are not square.
    """
    return _on_images("D4", input_shape)


def point_group(name: str) -> FiniteGroup:
    """C4 or D4, acting on the corners of a square; the order of elements is that of `C4` and `D4`."""
    return FiniteGroup.cyclic(4) if name == "C4" else FiniteGroup.dihedral(4)


def planar_permutations(name: str, side: int) -> np.ndarray:
    """Where the elements of C4 or D4 take the pixels of a square image, of shape (order, side * side)."""
    pixels = np.arange(side * side).reshape(side, side)
    # An image of pixel numbers, transformed as f o g^-1, shows which pixel comes to each place.
    rotated = [np.rot90(image, k) for image in (pixels, np.fliplr(pixels)) for k in range(4)]
    sources = np.stack(rotated[: point_group(name).order]).reshape(-1, side * side)
    return np.argsort(sources, axis=1)


def image_shape(name: str, value: Sequence[int] | None) -> tuple[int, int, int]:
    """`value` as (H, W, C)."""
    shape = tuple(value) if isinstance(value, Sequence) else ()
    if len(shape) != 3:
        raise ValueError(f"`{name}` must be (height, width, channels), got {value!r}.")
    height, width, channels = (_checks.integer(name, size, minimum=1) for size in shape)
    return height, width, channels


def square_image_shape(name: str, value: Sequence[int] | None) -> tuple[int, int, int]:
    """`value` as (H, W, C) with H = W."""
    shape = image_shape(name, value)
    if shape[0] != shape[1]:
        raise ValueError(f"`{name}` must be square for rotations by 90 degrees, (H, H, C), got {shape}.")
    return shape


def _on_images(name: str, input_shape: Sequence[int]) -> FiniteGroup:
    side, _, channels = square_image_shape("input_shape", input_shape)
    return FiniteGroup(planar_permutations(name, side), point_group(name).table, channels)
