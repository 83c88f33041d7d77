r"""Arc-cosine and arcsine functions of a correlation, accurate and differentiable up to coincidence.

XLA evaluates `arccos` and `arcsin` several times slower than the polynomials below, and their chain
rules divide by zero at $\rho = \pm 1$. With $y = |\rho|$ and $t = 1 - y$ the functions needed are a root
times something smooth,

$$\arccos y = t^{1/2} P_0(t), \qquad \sqrt{1 - y^2} - y \arccos y = t^{3/2} P_1(t),
  \qquad \arcsin v = v\, P_2(v^2),$$

so nothing cancels at $\rho \to \pm 1$ (nor at $v \to 0$). The coefficients are those of the Chebyshev
interpolants on $t \in [0, 1]$ and $v^2 \in [0, 1/2]$, computed in 60 digits; relative errors of the
interpolants are below 3e-9 (single precision) and 4e-18 (double precision).
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gpntk.activations._base import coincidence_tolerance, one_minus_square, root_and_inverse

_ARCCOS = {
    32: (
        1.414213565, 0.1178507595, 0.02652625288, 0.007794370296, 0.003165561433, -0.0003102686954,
        0.002373227605, -0.001501676829, 0.0006845318166,
    ),
    64: (
        1.41421356237309505, 0.117851130197760011, 0.0265165042942183545, 0.00789181676887006113,
        0.00268540946449165889, 0.000988725897193364617, 0.000383369218163854998,
        0.000154891431502407832, 0.0000603766940449561649, 0.0000416855883007371985,
        -0.0000363446319274703503, 0.000124957273975516618, -0.000229299962157957173,
        0.000345543906271698158, -0.000391514787820613699, 0.000335261377790916936,
        -0.00020866338294919977, 0.0000898231858358494454, -0.0000239465132400861511,
        3.03840147750778471e-6,
    ),
}  # fmt: skip
_SLOPE = {
    32: (
        0.9428090402, 0.04714062362, 0.007572599366, 0.001781222377, 0.0003857181742, 0.0003532754955,
        -0.0001546662861, 0.0001121847524,
    ),
    64: (
        0.942809041582063366, 0.0471404520791032412, 0.00757614408413191345, 0.00175373705702201926,
        0.000488256325525355103, 0.000152110866569836914, 0.0000511234069801374104,
        0.0000181728784964523959, 6.59715828085962297e-6, 3.08315180737621596e-6,
        -6.71579626487064446e-7, 4.60969599964673194e-6, -7.96741791189187089e-6,
        0.0000121914059412057515, -0.0000137909219393811611, 0.0000118557227907619203,
        -7.39733373594607143e-6, 3.19922872521605747e-6, -8.57326605609499219e-7,
        1.09936381927695247e-7,
    ),
}  # fmt: skip
_ARCSIN = {
    32: (
        1.000000002, 0.1666661424, 0.07502757316, 0.04409161673, 0.03581423928, -0.007020579152,
        0.1074000213, -0.1359162712, 0.1239134949,
    ),
    64: (
        0.999999999999999998, 0.166666666666669623, 0.074999999999216023, 0.0446428572251978305,
        0.0303819398816733953, 0.0223723131724858034, 0.0173493103271581963, 0.0140191720400696588,
        0.0109293490649123701, 0.0150917950285833644, -0.0263163245523388273, 0.180957462091106506,
        -0.664123630254941186, 2.00160411092915451, -4.53579180282295538, 7.76816537455500807,
        -9.66965939855062292, 8.32498352944691134, -4.43881669206693937, 1.12641928788075076,
    ),
}  # fmt: skip


def _polynomial(coefficients: dict[int, tuple[float, ...]], x: Float[Array, "..."]) -> Float[Array, "..."]:
    table = coefficients[64 if x.dtype == jnp.float64 else 32]
    value = jnp.full_like(x, table[-1])
    for coefficient in table[-2::-1]:
        value = value * x + coefficient
    return value


@jax.custom_jvp
def arc_cosine(rho: Float[Array, "..."]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    r"""The arc-cosine kernels of degree 0 and 1 as functions of the correlation.

    $$\kappa_0 = 1 - \frac{\arccos\rho}{\pi}, \qquad
      \kappa_1 = \frac{\sqrt{1-\rho^2} + \rho\,(\pi - \arccos\rho)}{\pi}$$

    Cho & Saul (2009), eqs. (5) and (6). $\kappa_1' = \kappa_0$ holds exactly, and $\kappa_0'$, infinite at
    $\rho = \pm 1$, is taken as 0 there: the slope along any path on which the pair stays coincident.
    """
    distance = 1.0 - jnp.abs(rho)
    distance = jnp.where(distance > coincidence_tolerance(rho.dtype), distance, 0.0)
    root = jnp.sqrt(distance)
    angle = root * _polynomial(_ARCCOS, distance) / math.pi
    degree0 = jnp.where(rho > 0, 1.0 - angle, angle)
    degree1 = root * distance * _polynomial(_SLOPE, distance) / math.pi + jnp.maximum(rho, 0.0)
    return degree0, degree1


@arc_cosine.defjvp
def _arc_cosine_jvp(primals, tangents):
    (rho,), (rho_dot,) = primals, tangents
    degree0, degree1 = arc_cosine(rho)
    slope = root_and_inverse(one_minus_square(rho))[1] / math.pi
    return (degree0, degree1), (slope * rho_dot, degree0 * rho_dot)


@jax.custom_jvp
def arcsine(sine: Float[Array, "..."], cosine: Float[Array, "..."]) -> Float[Array, "..."]:
    """The angle in [-pi/2, pi/2] of given sine and cosine; its slope, 1 / cosine, is taken as 0 where infinite."""
    size = jnp.abs(sine)
    near_zero = size <= cosine
    leg = jnp.where(near_zero, size, cosine)
    angle = leg * _polynomial(_ARCSIN, leg * leg)
    return jnp.where(sine < 0, -1.0, 1.0) * jnp.where(near_zero, angle, 0.5 * math.pi - angle)


@arcsine.defjvp
def _arcsine_jvp(primals, tangents):
    sine, cosine = primals
    slope = jnp.where(cosine > 0, 1.0 / jnp.where(cosine > 0, cosine, 1.0), 0.0)
    return arcsine(sine, cosine), slope * tangents[0]
