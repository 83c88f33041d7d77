"""Kernels as GPJax objects and the engine that evaluates them."""

from gpntk.kernels._averaged import GroupAveraged as GroupAveraged, is_invariant as is_invariant
from gpntk.kernels._base import AbstractFeatureKernel as AbstractFeatureKernel, Product as Product, Sum as Sum
from gpntk.kernels._engine import BlockedComputation as BlockedComputation
from gpntk.kernels._network_kernels import NNGP as NNGP, NTK as NTK, nngp_and_ntk as nngp_and_ntk
from gpntk.kernels._products import GramOperator as GramOperator
from gpntk.kernels._sets import SetSum as SetSum, SlotSum as SlotSum
from gpntk.kernels._streaming import stream_kernel_matrix as stream_kernel_matrix
from gpntk.kernels._unpooled import unpooled_kernels as unpooled_kernels
