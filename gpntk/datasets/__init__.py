"""Loaders of data that users have, and features made of them. The package ships no data."""

from gpntk.datasets._molecules import (
    Molecules as Molecules,
    atom_environments as atom_environments,
    coulomb_matrices as coulomb_matrices,
    element_counts as element_counts,
    load_molecules as load_molecules,
    rotate_molecules as rotate_molecules,
)
