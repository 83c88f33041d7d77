"""Code as users write it. The type checker reads it with the package, and a test runs it."""

import numpy as np

import gpntk

X, y = np.array([[1.0, 0.5], [-0.3, 2.0], [0.7, -1.1]]), np.array([0.3, -1.0, 0.8])
network = gpntk.MLP(depth=2, activation=gpntk.Erf(), bias_variance=0.1)
image_networks = [
    gpntk.CNN((4, 4, 1), depth=1, padding="same"),
    gpntk.PlanarGroupCNN("C4", (4, 4, 1), depth=1),
    gpntk.SphericalCNN(bandlimit=4, channels=1, depth=1),
    gpntk.FiniteGroupCNN(gpntk.groups.FiniteGroup.cyclic(4), depth=1),
    gpntk.equivariant(network, gpntk.groups.C4((1, 1, 2))),
]

kernel = gpntk.NTK(network)
total = gpntk.NNGP(network, variance=0.5) + kernel + 1.0
matrix = total.gram(X).as_matrix()
sets = [gpntk.SetSum(kernel, max_size=2), gpntk.SlotSum(kernel, 2), gpntk.Sum(kernel, 1.0), gpntk.Product(kernel)]
averaged = gpntk.GroupAveraged(kernel, gpntk.groups.C4((1, 1, 2)))
nngp, ntk = gpntk.nngp_and_ntk(network, X)

flow = gpntk.GradientFlow(kernel, None, X, y, alpha=0.1, solver=gpntk.MatrixFree(rank=2))
mean, path = flow.mean(X, np.inf), flow.mean(X, np.array([1.0, 2.0]))
predictions = gpntk.NTKRegressor(network, alpha=0.1).fit(X, y).predict(X)
labels = gpntk.NTKClassifier(alpha=0.1).fit(X, y > 0).predict(X)

statistics = gpntk.cumulants(network, X)
posterior = gpntk.finite_width_posterior(network, X, y, X, width=400, noise_variance=0.1, n_points=16)
critical = gpntk.critical_initialization(gpntk.GELU()).weight_variance
