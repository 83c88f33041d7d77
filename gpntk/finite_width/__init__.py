"""Finite width: every statistic at order 1/n."""

from gpntk.finite_width._action import QuarticAction as QuarticAction
from gpntk.finite_width._criticality import (
    CriticalInitialization as CriticalInitialization,
    critical_initialization as critical_initialization,
    depth_to_width as depth_to_width,
    susceptibilities as susceptibilities,
)
from gpntk.finite_width._cumulants import (
    Corrected as Corrected,
    CorrectedFactors as CorrectedFactors,
    Cumulants as Cumulants,
    FactoredCumulants as FactoredCumulants,
    cumulants as cumulants,
)
from gpntk.finite_width._importance import (
    SampledPosterior as SampledPosterior,
    sample_finite_width_posterior as sample_finite_width_posterior,
)
from gpntk.finite_width._posterior import (
    FiniteWidthPosterior as FiniteWidthPosterior,
    finite_width_posterior as finite_width_posterior,
)
from gpntk.finite_width._sampled import SampledCumulants as SampledCumulants, sample_cumulants as sample_cumulants
