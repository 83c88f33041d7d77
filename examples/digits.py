"""Handwritten digits by an infinitely wide network, over training time.

    python examples/digits.py                      # scikit-learn's 8 x 8 digits
    python examples/digits.py path/to/mnist.npz    # arrays images (N, 28, 28) and labels (N,)

Accuracy on held-out digits of `NTKClassifier` (squared loss) as a function of the training time, from one fit,
beside an RBF support vector machine and logistic regression with cross-validated regularisation.
"""

import argparse
from pathlib import Path

import matplotlib
import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from tqdm import tqdm

import gpntk
from gpntk import plotting

matplotlib.use("Agg")
import matplotlib.pyplot as plt

TIMES = np.geomspace(1e-4, 1e4, 25)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("images", nargs="?", type=Path, help=".npz file with arrays images and labels")
    parser.add_argument("--train", type=int, default=1000, help="number of training images")
    parser.add_argument("--output", type=Path, default=Path("digits.png"), help="where the figure goes")
    args = parser.parse_args()

    name, x, labels = read(args.images)
    parts = train_test_split(x, labels, train_size=args.train, test_size=700, random_state=0, stratify=labels)
    x_train, x_test, y_train, y_test = parts
    scale = StandardScaler(with_std=False).fit(x_train)
    unit = np.sqrt(np.mean(scale.transform(x_train) ** 2))
    x_train, x_test = scale.transform(x_train) / unit, scale.transform(x_test) / unit

    net = gpntk.MLP(depth=3, activation=gpntk.ReLU(), weight_variance=2.0, bias_variance=0.1)
    model = gpntk.NTKClassifier(net, alpha=1e-3).fit(x_train, y_train)
    figure, axes = plt.subplots(figsize=(6.5, 4.2), layout="constrained")
    label = "infinitely wide ReLU network, depth 3"
    plotting.plot_against_time(model, x_test, y_test, TIMES, ax=axes, label=label)
    best = max(axes.lines[0].get_ydata())

    grids = {
        "RBF support vector machine": (SVC(), {"C": [1, 10, 100], "gamma": np.array([0.3, 1, 3]) / x.shape[1]}),
        "logistic regression": (LogisticRegression(max_iter=2000), {"C": [0.01, 0.1, 1.0]}),
    }
    baselines = {}
    for title, (estimator, grid) in tqdm(grids.items(), desc="baselines"):
        baselines[title] = GridSearchCV(estimator, grid, cv=3).fit(x_train, y_train).score(x_test, y_test)

    print(f"\n{name}: {len(x_train)} training and {len(x_test)} test images, accuracy")
    print(f"{'wide network, t = infinity':30s}{model.score(x_test, y_test):.4f}")
    print(f"{'wide network, best finite t':30s}{best:.4f}   (seen on the test images)")
    for title, accuracy in baselines.items():
        print(f"{title:30s}{accuracy:.4f}")

    for index, (title, accuracy) in enumerate(baselines.items()):
        axes.axhline(accuracy, color=f"C{index + 1}", ls="--", lw=1.2, label=title)
    axes.set(ylabel="test accuracy", title=name)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(args.output, dpi=130)
    print(f"Figure: {args.output.resolve()}")


def read(path):
    if path is None:
        digits = load_digits()
        return "scikit-learn's digits", digits.data, digits.target
    with np.load(path) as file:
        images, labels = file["images"], file["labels"]
    return path.stem, images.reshape(len(images), -1).astype(float), labels


if __name__ == "__main__":
    main()
