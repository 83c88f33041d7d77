"""Molecules: files of them, and features of their geometries."""

import functools
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import jax
import numpy as np
from jaxtyping import Float, Int, PRNGKeyArray

from gpntk import _checks
from gpntk.groups import SO3, random_rotations, rotation_matrices
from gpntk.groups._harmonics import degrees, grid_angles, spherical_harmonics

_ELEMENTS = """
    H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr Rb Sr Y Zr Nb
    Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au
    Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md No Lr Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv
    Ts Og
"""
_NUMBER = {symbol: number for number, symbol in enumerate(_ELEMENTS.split(), start=1)}
# Gauss-Legendre nodes for exp(-u^2), without those for Legendre polynomials times it.
_NODES = 64


class Molecules(NamedTuple):
    """Molecules of different sizes, padded with atoms of atomic number 0 at the end."""

    numbers: Int[np.ndarray, "N atoms"]
    positions: Float[np.ndarray, "N atoms 3"]
    targets: Float[np.ndarray, " N"] | None

    def take(self, rows: Any) -> Self:
        """Some of the molecules, padded as before."""
        targets = None if self.targets is None else self.targets[rows]
        return type(self)(self.numbers[rows], self.positions[rows], targets)


def load_molecules(path: str | Path, target: str | int | None = None) -> Molecules:
    """Molecules of a file or a folder.

    Args:
        path: an `.npz` file with arrays `Z` (N, atoms), padded with zeros, and `R` (N, atoms, 3), as that of QM7
            in common use; an `.xyz` file, of one molecule after the other; or a folder of `.xyz` files, as QM9
            comes, read in the order of their names.
        target: what to predict: the name of an array of an `.npz` file; for `.xyz`, the number of a
            whitespace-separated field of the comment line, from 0 (in files of QM9, 12 is the internal energy U0
            in hartree). `None` means no targets.

    Returns:
        Atomic numbers, positions as in the file, and targets.

    Raises:
        ValueError: for other files, missing arrays and fields, what is not a finite number, files without a
            molecule, and targets that are not one a molecule.
        FileNotFoundError: if there is no such file.
        TypeError: if `path` is not a path.
    """
    path = Path(_checks.instance("path", path, (str, Path), "the path of a file or a folder"))
    if not path.exists():
        raise FileNotFoundError(f"`path` must be a file or a folder, got {path}, which does not exist.")
    if path.suffix == ".npz":
        return _from_npz(path, target)
    files = sorted(path.glob("*.xyz")) if path.is_dir() else [path]
    if not files or any(file.suffix != ".xyz" for file in files):
        raise ValueError(f"`path` must be an .npz file, an .xyz file or a folder of .xyz files, got {path}.")
    field = None if target is None else _checks.integer("target", target, minimum=0)
    molecules = [molecule for file in files for molecule in _from_xyz(file, field)]
    return _padded(molecules, field is not None)


def _from_npz(path: Path, target: str | int | None) -> Molecules:
    wanted = ("Z", "R") if target is None else ("Z", "R", target)
    try:
        with np.load(path) as file:
            names = file.files
            arrays = {name: file[name] for name in wanted if name in names}
    except (ValueError, TypeError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} must be an .npz file of numeric arrays, got what NumPy cannot read.") from error
    for name in wanted:
        if name not in arrays:
            raise ValueError(f"{path} must have an array {name!r}, got {sorted(names)}.")
    numbers, positions = _checked(arrays["Z"], arrays["R"])
    if target is None:
        return Molecules(numbers, positions, None)
    targets = arrays[target]
    if targets.shape != numbers.shape[:1]:
        raise ValueError(f"{target!r} in {path} must have shape {numbers.shape[:1]}, got {targets.shape}.")
    is_real = any(np.issubdtype(targets.dtype, kind) for kind in (np.floating, np.integer, np.bool_))
    if not is_real or not np.isfinite(targets).all():
        got = "NaN or infinity" if is_real else f"dtype {targets.dtype}"
        raise ValueError(f"{target!r} in {path} must have finite real numbers, got {got}.")
    return Molecules(numbers, positions, targets.astype(float))


def _from_xyz(path: Path, target: int | None):
    lines = path.read_text().splitlines()
    start = _next_filled(lines, 0)
    if start == len(lines):
        raise ValueError(f"`path` must hold at least one molecule, got {path}.")
    while start < len(lines):
        try:
            size = int(lines[start])
            atoms = [line.split() for line in lines[start + 2 : start + 2 + size]]
            if size < 1 or len(atoms) != size or any(len(atom) < 4 for atom in atoms):
                raise ValueError(f"{size} atoms announced, but not so many lines of an element and 3 coordinates")
            numbers = [_atomic_number(atom[0]) for atom in atoms]
            positions = [[_number(value) for value in atom[1:4]] for atom in atoms]
            value = 0.0 if target is None else _field(lines[start + 1].split(), target)
        except ValueError as error:
            raise ValueError(
                f"{path} must hold molecules in XYZ format, got at line {start + 1}: {error}."
            ) from error
        yield numbers, positions, value
        start = _next_filled(lines, start + size + 2)
        if start < len(lines) and not lines[start].strip().isdigit():
            # Files of QM9 go on with frequencies and SMILES: only a number of atoms starts another molecule.
            if lines[start].split()[0] in _NUMBER and len(lines[start].split()) > 3:
                raise ValueError(
                    f"{path} must hold molecules in XYZ format, got one more atom at line {start + 1}."
                )
            return


def _next_filled(lines: list[str], start: int) -> int:
    """The first line from `start` on that is not blank."""
    return next((i for i in range(start, len(lines)) if lines[i].strip()), len(lines))


def _atomic_number(text: str) -> int:
    if text in _NUMBER:
        return _NUMBER[text]
    if text.isdigit() and int(text) > 0:
        return int(text)
    raise ValueError(f"{text!r} is neither the symbol of an element nor an atomic number")


def _field(fields: list[str], target: int) -> float:
    if target >= len(fields):
        raise ValueError(f"the comment has {len(fields)} fields, and not the one that `target` names, {target}")
    return _number(fields[target])


def _number(text: str) -> float:
    number = float(text.replace("*^", "e"))
    if not np.isfinite(number):
        raise ValueError(f"{text!r} is not a finite number")
    return number


def _padded(molecules: list, has_targets: bool) -> Molecules:
    size = max(len(numbers) for numbers, _, _ in molecules)
    numbers, positions = np.zeros((len(molecules), size), int), np.zeros((len(molecules), size, 3))
    for row, (z, r, _) in enumerate(molecules):
        numbers[row, : len(z)], positions[row, : len(z)] = z, r
    targets = np.array([value for _, _, value in molecules]) if has_targets else None
    return Molecules(numbers, positions, targets)


def rotate_molecules(molecules: Molecules, key: PRNGKeyArray) -> Molecules:
    """Every molecule in a random orientation of its own.

    Args:
        molecules: the molecules.
        key: JAX random key.

    Raises:
        TypeError: for arguments of the wrong kind.
    """
    _checks.instance("molecules", molecules, Molecules, "gpntk.datasets.Molecules")
    with jax.enable_x64(True):
        matrices = np.asarray(rotation_matrices(random_rotations(key, len(molecules.numbers))))
    return molecules._replace(positions=np.einsum("nij,naj->nai", matrices, molecules.positions))


def element_counts(
    numbers: Int[np.ndarray, "N atoms"], elements: Sequence[int]
) -> Float[np.ndarray, "N elements"]:
    """How many atoms of each element a molecule has.

    Args:
        numbers: atomic numbers, 0 for no atom.
        elements: atomic numbers of the elements, in the order of the columns.

    Raises:
        ValueError: if `numbers` are not atomic numbers in a matrix, or `elements` are none.
        TypeError: if `elements` are not integers.
    """
    numbers, elements = _atomic_numbers(numbers), _elements(elements)
    return np.sum(numbers[:, :, None] == np.asarray(elements), 1).astype(float)


def coulomb_matrices(
    numbers: Int[np.ndarray, "N atoms"], positions: Float[np.ndarray, "N atoms 3"]
) -> Float[np.ndarray, "N features"]:
    r"""Coulomb matrices sorted by the norms of their rows, upper triangles flattened.

    $M_{ij} = Z_i Z_j / |r_i - r_j|$ and $M_{ii} = Z_i^{2.4} / 2$: Rupp et al. (2012), Phys. Rev. Lett. 108,
    058301. Do not depend on the orientation of a molecule nor on the order of its atoms.

    Args:
        numbers: atomic numbers, 0 for no atom.
        positions: positions of the atoms.

    Raises:
        ValueError: if the shapes do not fit, or two atoms of a molecule have the same position.
    """
    numbers, positions = _checked(numbers, positions)
    charges = numbers.astype(float)
    _, distances, _ = _geometry(numbers, positions)
    matrices = charges[:, :, None] * charges[:, None, :] / distances
    diagonal = np.arange(numbers.shape[1])
    matrices[:, diagonal, diagonal] = 0.5 * charges**2.4
    order = np.argsort(-np.linalg.norm(matrices, axis=2), axis=1, kind="stable")
    matrices = np.take_along_axis(np.take_along_axis(matrices, order[:, :, None], 1), order[:, None, :], 2)
    return matrices[:, *np.triu_indices(numbers.shape[1])]


def atom_environments(
    numbers: Int[np.ndarray, "N atoms"],
    positions: Float[np.ndarray, "N atoms 3"],
    bandlimit: int = 4,
    powers: Sequence[float] = (2.0, 6.0),
    elements: Sequence[int] | None = None,
    beta: float | None = None,
    sampling: str = "coefficients",
    nside: int | None = None,
) -> Float[np.ndarray, "N atoms*D"]:
    r"""The surroundings of every atom as a signal on the sphere, one channel for each element z and power p.

    $$f_{i,z,p}(x) = \sum_{j \ne i,\, z_j = z} \frac{z_i z_j}{|r_{ij}|^p}
      \exp\Bigl(-\frac{(\hat r_{ij} \cdot x - 1)^2}{\beta}\Bigr)$$

    Esteves, Slotine & Makadia (2023), arXiv:2306.05420, Section 5. They turn with the molecule, and do not see
    translations. Rows are what `SetSum(NTK(SphericalCNN(bandlimit, channels, sampling=...)), atoms)` takes: blocks
    of zeros stand for atoms that are absent.

    Args:
        numbers: atomic numbers, 0 for no atom.
        positions: positions of the atoms, in the unit that distances are wanted in.
        bandlimit: L; signals have degrees l < L. With "coefficients" higher ones are cut off exactly, samples
            on grids are those of the whole sum.
        powers: the powers p.
        elements: the elements z; `None` means those that occur. Channels are (element, power) in C order.
        beta: width of the bumps. `None` means that they fall to 5% at an angle of pi / L.
        sampling: as for `SphericalCNN`.
        nside: as for `SphericalCNN`.

    Returns:
        One row a molecule, atom by atom; D is `SphericalCNN(...).n_features`. An atom without others around it has
        the signal 0, and counts as absent.

    Raises:
        ValueError: if shapes do not fit, an element occurs that is not among `elements`, two atoms of a molecule
            have the same position, or `beta` is not positive.
    """
    numbers, positions = _checked(numbers, positions)
    present = sorted(set(numbers[numbers > 0].tolist()))
    elements = present if elements is None else _elements(elements)
    if not set(present) <= set(elements):
        raise ValueError(f"`elements` must have all elements that occur, {present}, got {elements}.")
    powers = [_checks.real_number("powers", p, minimum=0.0) for p in _checks.sequence("powers", powers)]
    if not elements or not powers:
        raise ValueError(f"`elements` and `powers` must not be empty, got {elements} and {powers}.")
    group = SO3(bandlimit, len(elements) * len(powers), sampling, 1, nside)
    if beta is None:
        beta = (1 - np.cos(np.pi / max(bandlimit, 2))) ** 2 / np.log(20)
    beta = _checks.real_number("beta", beta, minimum=0.0, strict=True)
    signals = np.empty((*numbers.shape, *group.signal_shape))
    for row in range(len(numbers)):
        z, r = numbers[row], positions[row]
        directions, distances, pairs = (part[0] for part in _geometry(z[None], r[None]))
        strength = np.where(pairs, np.multiply.outer(z, z).astype(float), 0.0)
        weights = strength[..., None] / distances[..., None] ** np.array(powers)
        of_element = (z[:, None] == np.array(elements)).astype(float)
        bumps = _bumps(directions.reshape(-1, 3), beta, group).reshape(*strength.shape, -1)
        signal = np.einsum("ijp,je,ijk->iepk", weights, of_element, bumps, optimize=True)
        signal = signal.reshape(len(z), group.channels, -1)
        if sampling != "coefficients":
            signal = np.swapaxes(signal, 1, 2)
        signals[row] = signal.reshape(len(z), *group.signal_shape)
    return signals.reshape(len(numbers), -1)


def _bumps(directions: Float[np.ndarray, "n 3"], beta: float, group: SO3) -> Float[np.ndarray, "n k"]:
    """Bumps about directions, their coefficients or samples."""
    if group.sampling != "coefficients":
        thetas, phis = map(np.array, grid_angles(group.bandlimit, group.sampling, group.nside))
        sines = np.sin(thetas)
        points = np.stack([sines * np.cos(phis), sines * np.sin(phis), np.cos(thetas)])
        return np.exp(-((directions @ points - 1) ** 2) / beta)
    x, y, z = directions.T
    polar = tuple(np.arccos(np.clip(z, -1, 1)).tolist())
    values = spherical_harmonics.__wrapped__(group.bandlimit, polar, tuple(np.arctan2(y, x).tolist()))
    return _eigenvalues(group.bandlimit, beta)[degrees(group.bandlimit)] * values


@functools.lru_cache(maxsize=8)
def _eigenvalues(bandlimit: int, beta: float) -> Float[np.ndarray, " L"]:
    """Funk and Hecke: a bump about a direction has the coefficients lambda_l Y_lm(direction)."""
    # In u = (1 - t) / sqrt(beta), up to where exp(-u^2) is below rounding: no bump is too narrow for the nodes.
    end = min(2 / np.sqrt(beta), 7.0)
    nodes, weights = np.polynomial.legendre.leggauss(_NODES + bandlimit)
    u = end * (nodes + 1) / 2
    profile = np.sqrt(beta) * end / 2 * weights * np.exp(-(u**2))
    return 2 * np.pi * profile @ np.polynomial.legendre.legvander(1 - np.sqrt(beta) * u, bandlimit - 1)


def _geometry(numbers, positions):
    """Directions and distances from i to j, and whether both are there; distances are 1 where they are not."""
    there = numbers > 0
    pairs = there[:, :, None] & there[:, None, :] & ~np.eye(numbers.shape[1], dtype=bool)
    differences = positions[:, None, :, :] - positions[:, :, None, :]
    distances = np.where(pairs, np.linalg.norm(differences, axis=-1), 1.0)
    if not (distances > 0).all():
        row = int(np.argwhere(~(distances > 0))[0, 0])
        raise ValueError(f"`positions` must differ for all atoms of a molecule, got two equal ones in row {row}.")
    directions = np.where(pairs[..., None], differences / distances[..., None], np.array([0.0, 0.0, 1.0]))
    return directions, distances, pairs


def _checked(numbers: Any, positions: Any) -> tuple[np.ndarray, np.ndarray]:
    positions = np.asarray(_checks.real_array("positions", positions, np.float64))
    numbers = _atomic_numbers(numbers)
    if positions.shape != (*numbers.shape, 3):
        raise ValueError(
            "`numbers` and `positions` must have shapes (N, atoms) and (N, atoms, 3), got "
            f"{numbers.shape} and {positions.shape}."
        )
    return numbers, positions


def _atomic_numbers(numbers: Any) -> Int[np.ndarray, "N atoms"]:
    numbers = np.asarray(_checks.as_array("numbers", numbers))
    if not _checks.is_real(numbers.dtype):
        raise ValueError(f"`numbers` must be atomic numbers, integers >= 0, got dtype {numbers.dtype}.")
    if numbers.ndim != 2 or numbers.size == 0:
        raise ValueError(f"`numbers` must have shape (N, atoms), got {numbers.shape}.")
    numbers = _checks.real_array("numbers", numbers)
    if not (np.equal(numbers % 1, 0) & (numbers >= 0) & (numbers <= len(_NUMBER))).all():
        raise ValueError(f"`numbers` must be atomic numbers, integers >= 0 and <= {len(_NUMBER)}, got others.")
    return numbers.astype(int)


def _elements(elements: Any) -> list[int]:
    return [_checks.integer("elements", z, minimum=1) for z in _checks.sequence("elements", elements)]
