import math
import re

import jax
import numpy as np
import pytest

import gpntk
from gpntk.datasets import (
    Molecules,
    atom_environments,
    coulomb_matrices,
    element_counts,
    load_molecules,
    rotate_molecules,
)
from gpntk.groups._harmonics import grid_angles, spherical_harmonics

NUMBERS = np.array([[6, 8, 1, 1], [8, 1, 1, 0]])
POSITIONS = np.array(
    [
        [[0.0, 0.0, -0.53], [0.0, 0.1, 0.67], [0.2, 0.94, -1.12], [0.0, -0.94, -1.1]],
        [[0.0, 0.0, 0.12], [0.0, 0.76, -0.47], [0.3, -0.76, -0.47], [0.0, 0.0, 0.0]],
    ]
)
MOLECULES = Molecules(NUMBERS, POSITIONS, np.array([1.0, 2.0]))
ONE = "1\ncomment\nH 0 0 0\n"
ELEMENTS, POWERS, BETA = [1, 6, 8], (1.0, 6.0), 0.4

pytestmark = pytest.mark.usefixtures("x64")


def directions(bandlimit, sampling, nside=None):
    thetas, phis = map(np.array, grid_angles(bandlimit, sampling, nside))
    return np.stack([np.sin(thetas) * np.cos(phis), np.sin(thetas) * np.sin(phis), np.cos(thetas)], -1)


def direct(row, atom, element, power, x):
    """The published sum, term by term."""
    total = np.zeros(len(x))
    for other, z in enumerate(NUMBERS[row]):
        if other != atom and z == element and NUMBERS[row, atom] > 0:
            r = POSITIONS[row, other] - POSITIONS[row, atom]
            distance = np.linalg.norm(r)
            bump = np.exp(-((x @ r / distance - 1) ** 2) / BETA)
            total += NUMBERS[row, atom] * z / distance**power * bump
    return total


@pytest.mark.parametrize(("sampling", "nside"), [("dh", None), ("mw", None), ("healpix", 2)])
def test_environments_on_grids_are_the_published_sums(sampling, nside):
    signals = atom_environments(NUMBERS, POSITIONS, 4, POWERS, ELEMENTS, BETA, sampling, nside)
    x = directions(4, sampling, nside)
    signals = signals.reshape(2, 4, len(x), 3, 2)
    for row, atom, z, p in np.ndindex(2, 4, 3, 2):
        expected = direct(row, atom, ELEMENTS[z], POWERS[p], x)
        np.testing.assert_allclose(signals[row, atom, :, z, p], expected, atol=1e-12)
    assert np.all(signals[1, 3] == 0)


def test_coefficients_are_projections_of_the_published_sums():
    a = atom_environments(NUMBERS, POSITIONS, 4, POWERS, ELEMENTS, BETA).reshape(2, 4, 3, 2, 16)
    weights = np.repeat(np.polynomial.legendre.leggauss(40)[1], 79) * 2 * np.pi / 79
    harmonics = spherical_harmonics(4, *grid_angles(40, "gl", None))
    for row, atom, z, p in np.ndindex(2, 3, 3, 2):
        samples = direct(row, atom, ELEMENTS[z], POWERS[p], directions(40, "gl"))
        np.testing.assert_allclose(a[row, atom, z, p], harmonics.T @ (weights * samples), atol=1e-10)


def test_environments_turn_with_the_molecule_and_kernels_do_not():
    turned = rotate_molecules(MOLECULES, jax.random.key(0))
    lengths = [np.linalg.norm(m.positions[:, 0] - m.positions[:, 1], axis=-1) for m in (MOLECULES, turned)]
    np.testing.assert_allclose(*lengths, rtol=1e-12)
    features = [atom_environments(m.numbers, m.positions, 3, elements=ELEMENTS) for m in (MOLECULES, turned)]
    assert np.abs(features[0] - features[1]).max() > 0.1
    scale = 3 * np.sqrt(np.mean(features[0] ** 2))
    net = gpntk.SphericalCNN(3, 6, 1, "coefficients", 10, activation=gpntk.Erf(), bias_variance=0.1)
    kernel = gpntk.SetSum(gpntk.NTK(net), 4)
    before, after = (f / scale for f in features)
    np.testing.assert_allclose(kernel.cross_covariance(after, before), kernel.gram(before).as_matrix(), rtol=1e-3)


def test_coulomb_matrices_are_invariant():
    features = coulomb_matrices(NUMBERS, POSITIONS)
    assert features.shape == (2, 10)
    np.testing.assert_allclose(features[1].max(), 0.5 * 8**2.4)
    turned = rotate_molecules(MOLECULES, jax.random.key(1))
    np.testing.assert_allclose(coulomb_matrices(turned.numbers, turned.positions), features, rtol=1e-12)
    order = [2, 0, 3, 1]
    np.testing.assert_allclose(coulomb_matrices(NUMBERS[:, order], POSITIONS[:, order]), features, rtol=1e-12)


def test_element_counts():
    np.testing.assert_array_equal(element_counts(NUMBERS, ELEMENTS), [[2, 1, 1], [2, 0, 1]])


def test_files_are_read_back(tmp_path):
    np.savez(tmp_path / "set.npz", Z=NUMBERS, R=POSITIONS, energy=MOLECULES.targets)
    symbols = {6: "C", 8: "O", 1: "H"}
    blocks = []
    for z, r in zip(NUMBERS, POSITIONS, strict=True):
        atoms = [f"{symbols[n]} {a:.10f} {b:.10f} {c:.10f}" for n, (a, b, c) in zip(z, r, strict=True) if n]
        blocks.append([str(len(atoms)), f"gdb {len(blocks) + 1}.0", *atoms])
    (tmp_path / "all.xyz").write_text("\n".join(line for block in blocks for line in block) + "\n")
    (tmp_path / "qm9").mkdir()
    for i, block in enumerate(blocks):
        # As files of QM9 are: charges, exponents as other programs write them, and lines that are not atoms.
        text = "\n".join([*block[:2], *(f"{atom} -1.2*^-3" for atom in block[2:]), "3.5 7.1", "O O"])
        (tmp_path / "qm9" / f"{i}.xyz").write_text(text + "\n")
    for path, target in (("set.npz", "energy"), ("all.xyz", 1), ("qm9", 1)):
        molecules = load_molecules(tmp_path / path, target)
        np.testing.assert_array_equal(molecules.numbers, NUMBERS)
        np.testing.assert_allclose(molecules.positions, POSITIONS)
        np.testing.assert_allclose(molecules.targets, [1.0, 2.0])
        assert load_molecules(tmp_path / path).targets is None
    np.testing.assert_array_equal(molecules.take([1]).numbers, NUMBERS[1:])


def test_blank_lines_between_molecules_lose_none(tmp_path):
    text = "1\nfirst\nPt 0 0 1\n\n\n2\nsecond\n1 0 0 0\nH 0 0 0.7\n\n"
    molecules = load_molecules(_written(tmp_path, "a.xyz", "\n" + text))
    np.testing.assert_array_equal(molecules.numbers, [[78, 0], [1, 1]])
    np.testing.assert_array_equal(molecules.positions[:, :, 2], [[1.0, 0.0], [0.0, 0.7]])


@pytest.mark.parametrize("beta", [1e-14, 1e-5, 0.3, 1e3])
def test_bumps_of_any_width_have_the_integral_of_their_profile(beta):
    # The coefficient of degree 0 is the integral over the sphere over sqrt(4 pi), known in closed form.
    positions = np.array([[[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]])
    signal = atom_environments([[1, 1]], positions, 3, powers=(1.0,), beta=beta).reshape(2, 9)[0]
    integral = np.pi**1.5 * np.sqrt(beta) * math.erf(2 / math.sqrt(beta))
    np.testing.assert_allclose(signal[0], integral / np.sqrt(4 * np.pi), rtol=1e-12)
    if beta < 1e-4:  # a point, as seen by low degrees
        harmonics = spherical_harmonics(3, (0.0,), (0.0,))[0]
        np.testing.assert_allclose(signal, integral * harmonics, rtol=0, atol=4 * math.sqrt(beta) * integral)


def test_channels_fit_the_network():
    x = atom_environments(NUMBERS, POSITIONS, 4, POWERS, ELEMENTS, sampling="mw")
    assert x.shape == (2, 4 * gpntk.SphericalCNN(4, 6, 1, "mw", 4).n_features)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda path: load_molecules(path / "no.npz"), FileNotFoundError, "`path` must be a file or a folder"),
        (lambda path: load_molecules(_written(path, "a.csv", "1")), ValueError, "must be an .npz file, an .xyz"),
        (lambda path: load_molecules(path), ValueError, "must be an .npz file, an .xyz"),
        (lambda path: load_molecules(_written(path, "a.xyz", "")), ValueError, "must hold at least one molecule"),
        (lambda path: load_molecules(_stored(path), "T"), ValueError, "must have shape (2,), got (1, 2)"),
        (lambda path: load_molecules(_written(path, "a.xyz", "2\n\nH 0 0 0\n")), ValueError, "line 1"),
        (lambda path: load_molecules(_written(path, "a.xyz", "1\n\nQ 0 0 0\n")), ValueError, "XYZ format"),
        (
            lambda path: load_molecules(_written(path, "a.xyz", "\n")),
            ValueError,
            "must hold at least one molecule",
        ),
        (lambda path: load_molecules(_written(path, "a.xyz", "0\n\n")), ValueError, "XYZ format"),
        (lambda path: load_molecules(_written(path, "a.xyz", "1\n\nH nan 0 0\n")), ValueError, "not a finite"),
        (lambda path: load_molecules(_written(path, "a.xyz", ONE + "C 0 0 1\n")), ValueError, "atom at line 4"),
        (lambda path: load_molecules(_written(path, "a.xyz", ONE), 1), ValueError, "not the one that `target`"),
        (lambda path: load_molecules(_written(path, "a.npz", "Z")), ValueError, "must be an .npz file of numeric"),
        (
            lambda path: load_molecules(_stored(path), "holes"),
            ValueError,
            "must have finite real numbers, got NaN",
        ),
        (
            lambda path: load_molecules(_stored(path), "names"),
            ValueError,
            "must have finite real numbers, got dtype",
        ),
        (lambda _: coulomb_matrices([["H"]], POSITIONS[:1, :1]), ValueError, "`numbers` must be atomic numbers"),
        (lambda _: atom_environments(NUMBERS, POSITIONS, powers=()), ValueError, "`powers` must not be empty"),
        (lambda _: atom_environments(NUMBERS[0], POSITIONS), ValueError, "must have shape (N, atoms)"),
        (lambda _: atom_environments(NUMBERS, POSITIONS, elements=[1, 6]), ValueError, "`elements` must have all"),
        (lambda _: atom_environments(NUMBERS, POSITIONS, beta=0.0), ValueError, "`beta` must be"),
        (lambda _: atom_environments(NUMBERS, 0 * POSITIONS), ValueError, "`positions` must differ"),
        (lambda _: atom_environments(NUMBERS, POSITIONS + np.nan), ValueError, "`positions` must be finite"),
        (lambda _: coulomb_matrices(NUMBERS + 0.5, POSITIONS), ValueError, "`numbers` must be atomic numbers"),
    ],
)
def test_bad_input_is_refused(call, error, message, tmp_path):
    with pytest.raises(error, match=re.escape(message)):
        call(tmp_path)


def _written(folder, name, text):
    (folder / name).write_text(text)
    return folder / name


def _stored(folder):
    targets = {"T": MOLECULES.targets[None], "holes": [1.0, np.nan], "names": ["a", "b"]}
    np.savez(folder / "set.npz", Z=NUMBERS, R=POSITIONS, **targets)
    return folder / "set.npz"
