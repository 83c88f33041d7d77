"""The random-kernel model, which NUTS samples, against exact posteriors of networks by importance sampling."""

import numpy as np
import pytest
from integrated import integrated_posterior
from posteriors import FIELDS, SETTINGS, X_TEST, X, closed_form, exact


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_error_at_width_64(x64, name):
    """At most an eighth of the Gaussian process's for moments, a tenth for the evidence."""
    net, y, noise = SETTINGS[name]
    truth, limit = exact(name, 64, 2**18), closed_form(name, np.inf)
    model = integrated_posterior(
        X[: len(y)], y, X_TEST, net=net, width=64, noise_variance=noise, retained=0.9999, draws=2048, replicates=4
    )
    for field, (value, error), share in zip(FIELDS, model, (1 / 8, 1 / 8, 1 / 10), strict=True):
        if field == "log_marginal_likelihood" and abs(limit.evidence_slope) < 1:
            continue  # the Gaussian process is right by accident: c is a difference of larger numbers
        expected = np.asarray(getattr(truth, field))
        left, whole = (np.linalg.norm(np.asarray(v) - expected) for v in (value, getattr(limit, field)))
        sampling = np.hypot(np.linalg.norm(getattr(truth, f"{field}_se")), np.linalg.norm(error))
        print(f"{name}, {field}: {left / whole:.3f} of the error, sampling {sampling / whole:.3f}")
        assert left < share * whole + 2 * sampling, field
        assert sampling < 0.05 * whole, field
