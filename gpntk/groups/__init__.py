"""Groups and their actions on flattened inputs."""

from gpntk.groups._augment import augment as augment
from gpntk.groups._base import AbstractGroup as AbstractGroup
from gpntk.groups._finite import FiniteGroup as FiniteGroup
from gpntk.groups._harmonics import (
    complex_coefficients as complex_coefficients,
    real_coefficients as real_coefficients,
)
from gpntk.groups._planar import C4 as C4, D4 as D4
from gpntk.groups._rotations import (
    SO3 as SO3,
    random_rotations as random_rotations,
    rotate_coefficients as rotate_coefficients,
    rotation_matrices as rotation_matrices,
)
