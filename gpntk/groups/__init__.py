"""Groups and their actions on flattened inputs."""

from gpntk.groups._augment import augment as augment
from gpntk.groups._base import AbstractGroup as AbstractGroup
from gpntk.groups._finite import FiniteGroup as FiniteGroup
from gpntk.groups._planar import C4 as C4, D4 as D4
