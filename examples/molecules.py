"""Atomisation energies of molecules, by networks that do not see how a molecule is turned.

    python examples/molecules.py path/to/qm7.npz      # arrays Z (N, atoms), R (N, atoms, 3) and energy (N,)
    python examples/molecules.py                      # without data: a small made-up set, in random orientations

The surroundings of every atom are a signal on the sphere, one channel for each element and power of the distance.
A network maps each to a number, and the energy of a molecule is their sum. Four predictors of the energy minus its
linear fit on element counts, all of them kernel regressions:

- the NTK of an SO(3)-convolutional network, summed over atoms;
- the NTK of a fully connected network on the same signals, summed over atoms;
- the same, trained on randomly rotated copies of the training molecules, too;
- a Laplacian kernel of sorted Coulomb matrices.

Depth, scaling of channels, widths and alpha are chosen by the leave-one-out error of training molecules (depth and
scaling on the first hundred). Every finished shuffle is written to the results file; an interrupted run goes on.
"""

import argparse
import itertools
import json
import os
from pathlib import Path

import jax
import matplotlib
import numpy as np
from sklearn.metrics.pairwise import laplacian_kernel
from tqdm import tqdm

import gpntk
from gpntk import plotting
from gpntk.datasets import (
    Molecules,
    atom_environments,
    coulomb_matrices,
    element_counts,
    load_molecules,
    rotate_molecules,
)

matplotlib.use("Agg")
import matplotlib.pyplot as plt

BANDLIMIT, QUADRATURE, POWERS, COPIES = 3, 4, (2.0, 6.0), 3
ALPHAS = np.geomspace(1e-8, 1.0, 33)
DEPTHS, SCALINGS, WIDTHS = (1, 2), ("all", "each"), (100.0, 300.0, 1000.0, 3000.0, 10000.0)
SO3, MLP, ROTATED, COULOMB = "SO(3) NTK", "MLP NTK", "MLP NTK, rotated copies", "Laplacian, Coulomb matrices"


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("molecules", nargs="?", type=Path, help=".npz file with arrays Z, R and energy")
    parser.add_argument("--sizes", type=int, nargs="+", default=None, help="numbers of training molecules")
    parser.add_argument("--test", type=int, default=None, help="number of test molecules")
    parser.add_argument("--shuffles", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("molecules.png"), help="where the figure goes")
    parser.add_argument("--results", type=Path, default=None, help="JSON file, by default beside the figure")
    args = parser.parse_args()
    results_path = args.results or args.output.with_suffix(".json")

    if args.molecules is None:
        print("No data given: molecules made up at random, with energies of a pair potential.")
        molecules, name = made_up(), "made-up molecules"
    else:
        molecules, name = load_molecules(args.molecules, "energy"), args.molecules.stem
    sizes = args.sizes or ([100, 200, 500] if args.molecules else [20, 40])
    n_test = args.test or (300 if args.molecules else 40)

    settings = {"data": name, "sizes": sizes, "test": n_test}
    results = json.loads(results_path.read_text()) if results_path.exists() else {}
    if results.get("settings") != settings:
        results = {"settings": settings, "shuffles": []}
    for seed in range(len(results["shuffles"]), args.shuffles):
        results["shuffles"].append(one_shuffle(molecules, sizes, n_test, seed))
        write(results_path, results)
    report(results, name, args.output)


def one_shuffle(molecules, sizes, n_test, seed):
    """Errors of all methods at all sizes, and for the largest one the scatter under rotations."""
    order = np.random.default_rng(seed).permutation(len(molecules.numbers))
    test, train = molecules.take(order[:n_test]), molecules.take(order[n_test : n_test + max(sizes)])
    elements = sorted(set(molecules.numbers[molecules.numbers > 0].tolist()))
    turned = rotate_molecules(molecules.take(np.repeat(order[: min(n_test, 12)], 6)), jax.random.key(seed))
    copies = [rotate_molecules(train, jax.random.key(100 * seed + i)) for i in range(COPIES)]
    # Training molecules, test molecules, rotated test molecules, rotated training molecules.
    raw = [environments(part, elements) for part in (train, test, turned, *copies)]
    coulomb = [coulomb_matrices(part.numbers, part.positions) for part in (train, test)]
    targets = {n: residuals(train, test, elements, n) for n in sizes}
    errors, scatter, depths = {}, {}, {}
    few = min(100, sizes[0])
    choices = {kind: choose(kind, raw[0][:few], targets[sizes[0]][0][:few], elements) for kind in ("so3", "mlp")}
    bar = tqdm([(SO3, "so3"), (MLP, "mlp"), (ROTATED, "mlp")], desc=f"shuffle {seed}")
    for title, kind in bar:
        bar.set_postfix_str(title)
        kernel, scale = choices[kind]
        parts = [scale(part) for part in (raw[0], *(raw[3:] if title == ROTATED else ()))]
        inputs = np.concatenate(parts)
        gram = matrix(kernel, inputs)
        cross = [matrix(kernel, scale(part), inputs) for part in raw[1:3]]
        errors[title] = []
        for n in sizes:
            y, y_test = targets[n]
            # The first n molecules, and all of their copies.
            rows = np.concatenate([np.arange(n) + len(raw[0]) * copy for copy in range(len(parts))])
            part, y = gram[np.ix_(rows, rows)], np.tile(y, len(parts))
            alpha, _ = best_alpha(part, y, groups=len(parts))
            coefficients = np.linalg.solve(part + alpha * np.eye(len(rows)), y)
            errors[title].append(float(np.mean(np.abs(cross[0][:, rows] @ coefficients - y_test))))
        by_molecule = (cross[1] @ coefficients).reshape(-1, 6)
        scatter[title] = (by_molecule - by_molecule.mean(1, keepdims=True)).ravel().tolist()
        depths[title] = kernel.kernel.net.depth
    errors[COULOMB], errors["linear fit on element counts"] = [], []
    for n in sizes:
        y, y_test = targets[n]
        candidates = [(*best_alpha(laplacian_kernel(coulomb[0][:n], gamma=1 / w), y), w) for w in WIDTHS]
        alpha, _, width = min(candidates, key=lambda c: c[1])
        gram, cross = (laplacian_kernel(x, coulomb[0][:n], 1 / width) for x in (coulomb[0][:n], coulomb[1]))
        prediction = cross @ np.linalg.solve(gram + alpha * np.eye(n), y)
        errors[COULOMB].append(float(np.mean(np.abs(prediction - y_test))))
        errors["linear fit on element counts"].append(float(np.mean(np.abs(y_test))))
    return {"errors": errors, "scatter": scatter, "depths": depths}


def residuals(train, test, elements, n):
    """Energies minus the linear fit on element counts of the first n training molecules."""
    linear = np.linalg.lstsq(counts(train, elements)[:n], train.targets[:n], rcond=None)[0]
    y, y_test = (part.targets - counts(part, elements) @ linear for part in (train, test))
    return y[:n], y_test


def environments(molecules, elements):
    return atom_environments(molecules.numbers, molecules.positions, BANDLIMIT, POWERS, elements)


def counts(molecules, elements):
    return np.column_stack([element_counts(molecules.numbers, elements), np.ones(len(molecules.numbers))])


def choose(kind, raw, y, elements):
    """The depth and the scaling with the smallest leave-one-out error."""
    channels = len(elements) * len(POWERS)
    best = None
    for depth, scaling in itertools.product(DEPTHS, SCALINGS):
        shared = {"depth": depth, "weight_variance": 2.0, "bias_variance": 0.1}
        if kind == "so3":
            net = gpntk.SphericalCNN(
                BANDLIMIT, channels, sampling="coefficients", quadrature_bandlimit=QUADRATURE, **shared
            )
        else:
            net = gpntk.MLP(**shared)
        signal_size = channels * BANDLIMIT**2
        kernel = gpntk.SetSum(gpntk.NTK(net), raw.shape[1] // signal_size)
        scale = scaler(raw, channels, scaling)
        error = best_alpha(matrix(kernel, scale(raw)), y)[1]
        if best is None or error < best[0]:
            best = error, kernel, scale
    return best[1:]


def scaler(raw, channels, scaling):
    """Signals with a mean square of 1 over training atoms, all channels together or each."""
    atoms = raw.reshape(-1, channels, BANDLIMIT**2)
    atoms = atoms[np.any(atoms != 0, (1, 2))]
    squares = np.mean(np.sum(atoms**2, -1), 0) / (4 * np.pi)
    size = np.sqrt(np.where(squares > 0, squares, 1.0) if scaling == "each" else np.full(channels, squares.mean()))

    def scale(x):
        scaled = x.reshape(len(x), -1, channels, BANDLIMIT**2) / size[:, None]
        return scaled.reshape(len(x), -1).astype(np.float32)

    return scale


def matrix(kernel, x, x2=None):
    """A kernel matrix, with molecules in the order of their sizes: tiles of equal ones have no empty slots."""
    by_size = [None if part is None else np.argsort(np.count_nonzero(part, axis=1)) for part in (x, x2)]
    if x2 is None:
        values = kernel.gram(x[by_size[0]]).as_matrix()
        back = np.argsort(by_size[0])
        return np.asarray(values, float)[np.ix_(back, back)]
    values = kernel.cross_covariance(x[by_size[0]], x2[by_size[1]])
    return np.asarray(values, float)[np.ix_(*map(np.argsort, by_size))]


def best_alpha(gram, y, groups=1):
    """The alpha of the smallest leave-one-out mean absolute error, and that error.

    A coarse quadrature and single precision leave negative eigenvalues: an alpha that does not exceed them twice
    would fit errors of the kernel, and is not considered.

    Rotated copies of a molecule are not left out with it: for `groups` > 1 every molecule is held out with all of
    its copies, in five folds.
    """
    grid = ALPHAS * np.mean(np.diag(gram))
    n = len(y) // groups
    if groups == 1:
        values, vectors = np.linalg.eigh(gram)
        rotated = vectors.T @ y
        losses = np.full(len(grid), np.inf)
        for i in np.flatnonzero(grid > -2 * values[0]):
            shrunk = 1 / (values + grid[i])
            losses[i] = np.mean(np.abs((vectors @ (shrunk * rotated)) / ((vectors**2) @ shrunk)))
        best = int(np.argmin(losses))
        return grid[best], losses[best]
    losses = np.zeros(len(grid))
    for fold in range(5):
        held = np.tile(np.arange(n) % 5 == fold, groups)
        values, vectors = np.linalg.eigh(gram[np.ix_(~held, ~held)])
        rotated, cross = vectors.T @ y[~held], gram[np.ix_(held, ~held)] @ vectors
        losses[grid <= -2 * values[0]] = np.inf
        for i in np.flatnonzero(np.isfinite(losses)):
            losses[i] += np.mean(np.abs(cross @ (rotated / (values + grid[i])) - y[held])) / 5
    best = int(np.argmin(losses))
    return grid[best], losses[best]


def made_up():
    """Molecules of three elements at random positions; the energy is a sum over pairs."""
    rng = np.random.default_rng(0)
    numbers, positions = np.zeros((120, 7), int), np.zeros((120, 7, 3))
    energies = np.zeros(120)
    for row in range(120):
        size = rng.integers(4, 8)
        numbers[row, :size] = np.sort(rng.choice([1, 6, 8], size))[::-1]
        points = []
        while len(points) < size:
            candidate = rng.uniform(-2, 2, 3)
            if all(np.linalg.norm(candidate - other) > 1.0 for other in points):
                points.append(candidate)
        positions[row, :size] = points
        for i, j in itertools.combinations(range(size), 2):
            distance = np.linalg.norm(positions[row, i] - positions[row, j])
            energies[row] -= 10 * np.sqrt(numbers[row, i] * numbers[row, j]) * np.exp(-distance)
    return rotate_molecules(Molecules(numbers, positions, energies), jax.random.key(0))


def report(results, name, path):
    sizes, shuffles = results["settings"]["sizes"], results["shuffles"]
    titles = list(shuffles[0]["errors"])
    table = {t: np.array([s["errors"][t] for s in shuffles]) for t in titles}
    print(f"\n{name}: mean absolute error in kcal/mol, mean and standard error over {len(shuffles)} shuffles")
    print(f"{'training molecules':32s}" + "".join(f"{n:>16d}" for n in sizes))
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.2), layout="constrained")
    for title, values in table.items():
        mean = values.mean(0)
        error = values.std(0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.zeros(len(sizes))
        print(f"{title:32s}" + "".join(f"{m:9.2f} ± {e:4.2f}" for m, e in zip(mean, error, strict=True)))
        plotting.plot_against_size(sizes, values, ax=left, label=title)
    left.set(yscale="log", xlabel="training molecules", ylabel="mean absolute error (kcal/mol)", title=name)
    left.minorticks_off()
    # Room for the legend below the curves.
    left.set_ylim(bottom=0.35 * min(values.mean(0).min() for values in table.values()))
    left.set_yticks([2, 5, 10], ["2", "5", "10"])
    left.legend(fontsize=8, loc="lower left")
    scatter = {t: np.abs(np.concatenate([s["scatter"][t] for s in shuffles])) for t in shuffles[0]["scatter"]}
    for title, values in scatter.items():
        spread = np.sqrt(np.mean(values**2))
        print(f"scatter under rotations, {title:28s}rms {spread:.2e}, median {np.median(values):.2e} kcal/mol")
        right.hist(np.log10(np.maximum(values, 1e-6)), bins=40, alpha=0.6, label=f"{title}: rms {spread:.1e}")
    right.set(xlabel="log10 |change of a prediction under rotation| (kcal/mol)", ylabel="rotated test molecules")
    right.legend(fontsize=8)
    figure.savefig(path, dpi=130)
    print(f"Figure: {path.resolve()}")


def write(path, content):
    """All or nothing."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(part, path)


if __name__ == "__main__":
    main()
