"""Domains: where the signals of a network live, and the covariance of raw inputs over their sites."""

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt

from gpntk._products import matmul


class AbstractDomain(eqx.Module):
    """Turns raw inputs `(N, D)` into what the first layer needs, once per input, and pairs them up."""

    @abc.abstractmethod
    def embed(self, x: Float[Array, "N D"]) -> Any:
        """Features of raw inputs: a pytree of arrays with leading axis N."""

    @abc.abstractmethod
    def variance(self, embedded: Any) -> Float[Array, " N *sites"]:
        """Second moment of each input at each of its sites."""

    @abc.abstractmethod
    def covariance(self, embedded1: Any, embedded2: Any) -> Float[Array, " N1 N2 *sites"]:
        """Second moments of all pairs of inputs, over the sites of a pair."""

    @abc.abstractmethod
    def paired_covariance(self, embedded1: Any, embedded2: Any) -> Float[Array, " N *sites"]:
        """The same for inputs paired elementwise."""

    def align_left(self, leaf: Float[Array, "N ..."]) -> Float[Array, "N ..."]:
        """A feature of the first input of a pair, in a shape that broadcasts against the sites of pairs.

        Features of one input live on its own sites (positions, say), kernels on the sites of a pair (pairs of
        positions). The leading axis stays that of the inputs. By default both kinds of sites are the same.
        """
        return leaf

    def align_right(self, leaf: Float[Array, "N ..."]) -> Float[Array, "N ..."]:
        """The same for the second input of a pair."""
        return leaf

    @property
    @abc.abstractmethod
    def sites_per_pair(self) -> int:
        """How many numbers a pair of inputs takes, that is, the number of its sites."""

    @abc.abstractmethod
    def signal(self, x: Float[Array, "N D"]) -> Float[Array, "N ..."]:
        """Raw inputs as the finite network sees them, channels last."""


class PointFeatures(NamedTuple):
    """Inputs of a dense network, scaled so that inner products are covariances."""

    x: Float[Array, "N D"]
    variance: Float[Array, " N"]
    fingerprint: UInt[Array, " N"]
    mirror_fingerprint: UInt[Array, " N"]


class Point(AbstractDomain):
    r"""Vectors without further structure: $K_0(x, x') = \langle x, x' \rangle / d$.

    A matrix product rounds the covariance of two equal inputs differently from their variance, and a kinked
    activation turns that error into its square root. Equal and opposite inputs are therefore recognised by
    fingerprints of their bits, and their covariance is set to plus or minus the variance.
    """

    def embed(self, x):
        scaled = x / np.sqrt(x.shape[-1]).astype(x.dtype)
        return PointFeatures(scaled, jnp.sum(scaled * scaled, -1), fingerprint(scaled), fingerprint(-scaled))

    def variance(self, embedded):
        return embedded.variance

    def covariance(self, embedded1, embedded2):
        product = matmul(embedded1.x, embedded2.x.T)
        return exact_at_coincidence(product, *rows_and_columns(embedded1, embedded2))

    def paired_covariance(self, embedded1, embedded2):
        return exact_at_coincidence(jnp.sum(embedded1.x * embedded2.x, -1), embedded1, embedded2)

    @property
    def sites_per_pair(self):
        return 1

    def signal(self, x):
        return x


def rows_and_columns(features1: Any, features2: Any) -> tuple[Any, Any]:
    """Features of N1 and of N2 inputs, in shapes that broadcast against arrays over all pairs, (N1, N2, ...)."""
    return (
        jax.tree.map(lambda leaf: leaf[:, None], features1),
        jax.tree.map(lambda leaf: leaf[None, :], features2),
    )


def fingerprint(x: Float[Array, "N D"]) -> UInt[Array, " N"]:
    """A hash of the bits of each row, in integer arithmetic and so independent of the order of summation."""
    unsigned = jnp.uint64 if x.dtype.itemsize == 8 else jnp.uint32
    wide = x if x.dtype.itemsize >= 4 else x.astype(jnp.float32)
    # Adding zero turns -0.0 into 0.0, which is the same number with other bits.
    bits = jax.lax.bitcast_convert_type(wide + 0.0, unsigned)
    # Odd multipliers are invertible modulo 2^32 and 2^64: a change in a single entry is always noticed.
    multipliers = np.random.default_rng(0).integers(0, 2**63, size=x.shape[-1], dtype=np.uint64) * 2 + 1
    return jnp.sum(bits * multipliers.astype(unsigned), -1, dtype=unsigned)


def exact_at_coincidence(covariance, features1: PointFeatures, features2: PointFeatures) -> Float[Array, "..."]:
    """The covariance, set to plus or minus the variance where two vectors are equal or opposite.

    Both features must broadcast against the covariance.
    """
    equal = features1.fingerprint == features2.fingerprint
    opposite = features1.fingerprint == features2.mirror_fingerprint
    # Two roots and not the root of the product, which could overflow.
    limit = jnp.sqrt(features1.variance) * jnp.sqrt(features2.variance)
    exact = jnp.where(equal, limit, jnp.where(opposite, -limit, covariance))
    # Different inputs of equal fingerprint (one pair in 2^32) are told by their covariance.
    genuine = jnp.abs(covariance - exact) <= 1e-3 * limit
    # Only the value is corrected: derivatives remain those of the inner product.
    return covariance + jax.lax.stop_gradient(jnp.where(genuine, exact - covariance, 0.0))
