"""Kernels of convolutional networks by their definition: all pairs of sites, one layer after the other.

A convolution is given by the neighbours of every site. This covers images with any padding, groups of rotations
and translations, and finite groups with any supports, and shares no formula with the package.
"""

import math

import numpy as np


def relu_moments(k, q1, q2):
    scale = np.sqrt(q1 * q2)
    rho = np.divide(k, scale, out=np.zeros_like(k), where=scale > 0)
    # At exact coincidence rounding would cost sqrt(eps) in the angle.
    rho = np.where(1 - np.abs(rho) < 1e-14, np.sign(rho), rho)
    angle = np.arccos(rho)
    return (
        scale * (np.sqrt(1 - rho**2) + rho * (np.pi - angle)) / (2 * np.pi),
        (np.pi - angle) / (2 * np.pi),
    )


def erf_moments(k, q1, q2):
    scale = (1 + 2 * q1) * (1 + 2 * q2)
    return 2 / np.pi * np.arcsin(2 * k / np.sqrt(scale)), 4 / np.pi / np.sqrt(scale - 4 * k**2)


def site_kernels(f1, f2, neighbours, moments, weight_variance, bias_variance):
    """NNGP and NTK after the last activation, for all pairs of sites of two signals (points, channels).

    `neighbours[l][g]` are the sites of the layer before that the site g of layer l sees; -1 stands for a zero.
    """
    f1, f2 = (f / math.sqrt(f.shape[1]) for f in (f1, f2))
    variance1, nngp, variance2 = f1 @ f1.T, f1 @ f2.T, f2 @ f2.T
    ntk = np.zeros_like(nngp)
    for seen in neighbours:
        variance1, nngp, variance2 = (
            bias_variance + weight_variance * filter_mean(k, seen) for k in (variance1, nngp, variance2)
        )
        ntk = nngp + weight_variance * filter_mean(ntk, seen)
        q1, q2 = np.diag(variance1)[:, None], np.diag(variance2)[None, :]
        variance1, variance2 = moments(variance1, q1, q1.T)[0], moments(variance2, q2.T, q2)[0]
        nngp, derivative = moments(nngp, q1, q2)
        ntk = derivative * ntk
    return nngp, ntk


def filter_mean(kernel, seen):
    padded = np.pad(kernel, ((0, 1), (0, 1)))
    return np.mean([padded[np.ix_(column, column)] for column in seen.T], axis=0)


def readout(nngp, ntk, weight_variance, bias_variance):
    nngp = bias_variance + weight_variance * nngp
    return nngp, nngp + weight_variance * ntk


def image_neighbours(height, width, filter_size, padding):
    """What every position of an image sees in a convolution, and the size of the output."""
    offsets = np.arange(filter_size) - (0 if padding == "valid" else (filter_size - 1) // 2)
    shrink = filter_size - 1 if padding == "valid" else 0
    out = (height - shrink, width - shrink)
    seen = [
        [_index(i + a, j + b, height, width, padding) for a in offsets for b in offsets]
        for i, j in np.ndindex(out)
    ]
    return np.array(seen), out


def _index(i, j, height, width, padding):
    if padding == "circular":
        i, j = i % height, j % width
    return i * width + j if 0 <= i < height and 0 <= j < width else -1


def point_matrices(name):
    """Rotations by 90 degrees, and for D4 rotations after the reflection of columns, as integer matrices."""
    rotation, reflection = np.array([[0, -1], [1, 0]]), np.array([[1, 0], [0, -1]])
    rotations = [np.linalg.matrix_power(rotation, k) for k in range(4)]
    return rotations if name == "C4" else rotations + [r @ reflection for r in rotations]


def point_table(name):
    """The index of the product of every pair of matrices."""
    matrices = point_matrices(name)
    find = lambda m: next(i for i, other in enumerate(matrices) if np.array_equal(m, other))  # noqa: E731
    return np.array([[find(a @ b) for b in matrices] for a in matrices])


def group_neighbours(name, side, filter_size, padding, lifts):
    """What the group element (t, r), at index r * positions + t, sees in a (lifting or group) convolution."""
    matrices, table = point_matrices(name), point_table(name)
    half = (filter_size - 1) // 2
    crop = half if padding == "valid" else 0
    centres = [(i, j) for i in range(crop, side - crop) for j in range(crop, side - crop)]
    taus = [np.array([a, b]) for a in range(-half, half + 1) for b in range(-half, half + 1)]
    seen = []
    for r, matrix in enumerate(matrices):
        for centre in centres:
            positions = [_index(*(np.array(centre) + matrix @ tau), side, side, padding) for tau in taus]
            if lifts:
                seen.append(positions)
            else:
                seen.append(
                    [-1 if p < 0 else table[r, q] * side**2 + p for p in positions for q in range(len(table))]
                )
    return np.array(seen), side - 2 * crop
