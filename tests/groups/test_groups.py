import re

import jax
import numpy as np
import pytest

from gpntk.groups import C4, D4, FiniteGroup, augment

GROUPS = {
    "cyclic-5": FiniteGroup.cyclic(5),
    "dihedral-1": FiniteGroup.dihedral(1),
    "dihedral-2": FiniteGroup.dihedral(2),
    "dihedral-5": FiniteGroup.dihedral(5, channels=2),
    "symmetric-4": FiniteGroup.symmetric(4),
    "product": FiniteGroup.product(FiniteGroup.cyclic(2), FiniteGroup.symmetric(3), channels=2),
    "generated": FiniteGroup.from_permutations([[1, 2, 0, 3], [1, 0, 2, 3]]),
    "quaternions": FiniteGroup.from_table(
        # 1, -1, i, -i, j, -j, k, -k
        [
            [0, 1, 2, 3, 4, 5, 6, 7],
            [1, 0, 3, 2, 5, 4, 7, 6],
            [2, 3, 1, 0, 6, 7, 5, 4],
            [3, 2, 0, 1, 7, 6, 4, 5],
            [4, 5, 7, 6, 1, 0, 2, 3],
            [5, 4, 6, 7, 0, 1, 3, 2],
            [6, 7, 4, 5, 3, 2, 1, 0],
            [7, 6, 5, 4, 2, 3, 0, 1],
        ]
    ),
    "C4": C4((3, 3, 2)),
    "D4": D4((4, 4, 1)),
}
every_group = pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)


@every_group
def test_elements_act_from_the_left(group):
    x = np.random.default_rng(0).normal(size=(2, group.n_features)).astype(np.float32)
    orbit = np.asarray(group.act(x))
    assert orbit.shape == (group.order, *x.shape)
    np.testing.assert_array_equal(orbit[group.identity], x)
    for g in range(group.order):
        for h in range(group.order):
            np.testing.assert_array_equal(group.transform(orbit[h], g), orbit[group.table[g, h]])
        np.testing.assert_array_equal(group.transform(orbit[g], group.inverse[g]), x)


@every_group
def test_action_is_composition_with_the_inverse(group):
    f = np.random.default_rng(1).normal(size=(1, group.points, group.channels)).astype(np.float32)
    for g in range(group.order):
        moved = np.asarray(group.transform(f.reshape(1, -1), g)).reshape(f.shape)
        # (rho(g) f)(g x) = f(x)
        np.testing.assert_array_equal(moved[:, group.permutations[g]], f)


@every_group
def test_transform_takes_traced_indices(group):
    x = np.ones((1, group.n_features), np.float32).cumsum(-1)
    moved = jax.jit(group.transform)(x, group.order - 1)
    np.testing.assert_array_equal(moved, group.transform(x, group.order - 1))


def test_orders_and_weights():
    assert GROUPS["symmetric-4"].order == 24
    assert GROUPS["generated"].order == 6
    assert GROUPS["product"].order == 12
    assert GROUPS["product"].points == 6
    assert GROUPS["quaternions"].order == 8
    assert GROUPS["dihedral-5"].weights.sum() == pytest.approx(1.0)
    assert len(GROUPS["D4"].weights) == 8


def test_closed_lists_keep_their_order_and_generators_are_closed():
    perms = [[1, 2, 0], [0, 1, 2], [2, 0, 1]]
    np.testing.assert_array_equal(FiniteGroup.from_permutations(perms).permutations, perms)
    generated = FiniteGroup.from_permutations([[1, 2, 3, 0]]).permutations
    np.testing.assert_array_equal(generated, [[0, 1, 2, 3], [1, 2, 3, 0], [2, 3, 0, 1], [3, 0, 1, 2]])


@pytest.mark.parametrize("channels", [1, 3])
def test_planar_groups_rotate_and_reflect_images(channels):
    images = np.random.default_rng(2).normal(size=(2, 5, 5, channels)).astype(np.float32)
    flat = images.reshape(2, -1)
    for g, moved in enumerate(D4((5, 5, channels)).act(flat)):
        source = images if g < 4 else images[:, :, ::-1]
        expected = np.rot90(source, g % 4, axes=(1, 2))
        np.testing.assert_array_equal(moved, expected.reshape(2, -1))
        if g < 4:
            np.testing.assert_array_equal(C4((5, 5, channels)).transform(flat, g), moved)


def test_groups_are_compared_and_hashed_by_what_they_do():
    assert C4((3, 3, 1)) == C4((3, 3, 1))
    assert hash(C4((3, 3, 1))) == hash(C4((3, 3, 1)))
    assert C4((3, 3, 1)) != C4((3, 3, 2))
    assert C4((3, 3, 1)) != D4((3, 3, 1))
    assert FiniteGroup.cyclic(3) != "cyclic"


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: FiniteGroup.from_permutations([[0, 0, 1]]), ValueError, "permutations of 0, ..., 2 as rows"),
        (lambda: FiniteGroup.from_permutations([[0, 1], [0]]), ValueError, "rows of different lengths"),
        (lambda: FiniteGroup.from_permutations([]), ValueError, "non-empty matrix"),
        (lambda: FiniteGroup.from_permutations([[0.0, 1.0]]), TypeError, "must be integers"),
        (
            lambda: FiniteGroup.from_permutations([range(1, 10), [1, 0, *range(2, 9)]]),
            ValueError,
            "permutations of",
        ),
        (
            lambda: FiniteGroup.from_permutations([[*range(1, 9), 0], [1, 0, *range(2, 9)]]),
            ValueError,
            "at most 5040 elements",
        ),
        (
            lambda: FiniteGroup.from_permutations([[2**32, 1], [1, 2**32]]),
            ValueError,
            "`perms` must have non-negative entries",
        ),
        (
            lambda: FiniteGroup.cyclic(3).act(np.ones((2, 4))),
            ValueError,
            "x has 4 features, but the group",
        ),
        (lambda: FiniteGroup.from_table([[0, 1], [1, 2]]), ValueError, "permutations of 0, ..., 1"),
        (lambda: FiniteGroup.from_table([[0, 1, 2], [1, 2, 0]]), ValueError, "must be square"),
        (lambda: FiniteGroup.from_table([[1, 0], [1, 0]]), ValueError, "must have an identity"),
        (lambda: FiniteGroup([[0, 1], [1, 0]], [[0, 1], [1, 1]]), ValueError, "exactly one inverse"),
        (lambda: FiniteGroup([[0, 1], [1, 0]], [[0, 1], [1, 7]]), ValueError, "must have entries 0, ..., 1"),
        # A Latin square with identity (a loop) that is not associative.
        (
            lambda: FiniteGroup.from_table(
                [[0, 1, 2, 3, 4], [1, 0, 3, 4, 2], [2, 4, 0, 1, 3], [3, 2, 4, 0, 1], [4, 3, 1, 2, 0]]
            ),
            ValueError,
            "must be associative",
        ),
        (
            lambda: FiniteGroup([[0, 1, 2], [1, 2, 0], [1, 2, 0]], FiniteGroup.cyclic(3).table),
            ValueError,
            "must compose as `table` says",
        ),
        (lambda: FiniteGroup([[0, 1]], FiniteGroup.cyclic(3).table), ValueError, "one row for each of the 3"),
        (lambda: FiniteGroup.cyclic(0), ValueError, "`n` must be an integer >= 1, got 0"),
        (lambda: FiniteGroup.symmetric(8), ValueError, "`n` must be at most 7, got 8"),
        (lambda: FiniteGroup.cyclic(3, channels=0), ValueError, "`channels` must be an integer >= 1"),
        (lambda: FiniteGroup.product(FiniteGroup.cyclic(3), "C4"), TypeError, "`second` must be a FiniteGroup"),
        (
            lambda: C4((3, 4, 1)),
            ValueError,
            "must be square for rotations by 90 degrees",
        ),
        (lambda: D4((3, 3)), ValueError, "must be (height, width, channels), got (3, 3)"),
    ],
)
def test_bad_groups_are_refused(make, error, message):
    with pytest.raises(error, match=re.escape(message)):
        make()


def test_augment_lists_transforms_element_by_element():
    group = C4((2, 2, 1))
    x, y = np.arange(8.0, dtype=np.float32).reshape(2, 4), np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    inputs, labels = augment(x, y, group)
    assert inputs.shape == (8, 4)
    for g in range(4):
        np.testing.assert_array_equal(inputs[2 * g : 2 * g + 2], group.transform(x, g))
        np.testing.assert_array_equal(labels[2 * g : 2 * g + 2], y)
    assert augment(x, y[:, 0], group)[1].shape == (8,)


def test_augment_refuses_bad_input():
    x = np.ones((2, 4))
    with pytest.raises(ValueError, match="one row for each of the 2 inputs, got shape"):
        augment(x, np.ones(3), C4((2, 2, 1)))
    with pytest.raises(ValueError, match="X has 4 features"):
        augment(x, np.ones(2), C4((3, 3, 1)))
    with pytest.raises(TypeError, match="`group` must be a group"):
        augment(x, np.ones(2), "C4")
