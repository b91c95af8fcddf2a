"""The trees of the phantom's lungs: arteries, veins, bronchi with walls, and the trachea.

Branches fill the lungs evenly; their radii follow from the twigs behind them by Murray's law. Axes are those of
`anatomy`. How dense and wide the trees are was set beside real lungs (`experiments.checks.phantom_vessels`).
"""

from __future__ import annotations

import numpy as np
from scipy import spatial

from auxseg.datasets.phantom import tubes

_POWER = 2.75  # of the radii at a branching: near Murray's 3, as measured in lungs
_TWIG_MM = 0.55  # radius of the last branches
_WIDEST_MM = 8.0
_NUM_LIMBS = 300  # targets that are joined one after the other; the rest in rounds
_ROUNDS = 3
_NUM_ARTERIES, _NUM_VEINS = 2200, 1600  # of a lung


def create_vessels(rng, patient, points, depths):
    """Returns the vessels of both lungs as `Capsules`, and the bronchi beside the larger arteries.

    Args:
        rng: generator.
        patient: whose.
        points, depths: from `contents.sample_lung`; the twigs end there.
    """
    arteries, veins = [], []
    for side in (-1, 1):
        own = np.flatnonzero((np.sign(points[:, 0]) == side) & (depths > 2.5))
        if not len(own):
            continue
        chosen = rng.permutation(own)[: _NUM_ARTERIES + _NUM_VEINS]
        num_arteries = len(chosen) * _NUM_ARTERIES // (_NUM_ARTERIES + _NUM_VEINS)
        level = 0.55 if side < 0 else 0.565
        hilum = np.array([side * rng.uniform(33, 38), 10.0, level * patient.height_mm])
        arteries.append(_grow_tree(rng, hilum, points[chosen[:num_arteries]]))
        drains = hilum + np.array([-side * 8.0, -8.0, -0.06 * patient.height_mm])
        veins.append(_grow_tree(rng, drains, points[chosen[num_arteries:]]))
    arteries = tubes.join(arteries)
    return tubes.join([arteries, *veins]), _accompany(arteries)


def _grow_tree(rng, root_mm, targets_mm):
    """Returns a tree of tapering tubes from the root to every target.

    The limbs, targets all over the lung, are joined one by one, nearest first; the other targets follow in rounds, each
    joined to what has grown before.
    """
    limbs = targets_mm[:_NUM_LIMBS]
    tree = _Tree(root_mm, 1 + 40 * len(limbs) + 12 * len(targets_mm))
    for target in limbs[np.argsort(np.linalg.norm(limbs - root_mm, axis=1))]:
        tree.join(rng, target)
    for targets in np.array_split(targets_mm[_NUM_LIMBS:], _ROUNDS):
        tree.join_all(targets)
    return _with_radii(rng, tree.nodes[: tree.count], tree.parents[: tree.count])


class _Tree:
    """Nodes of a growing tree: places, what they hang on, heading and way back to the root."""

    def __init__(self, root_mm, capacity):
        self.nodes, self.heading = np.empty((capacity, 3)), np.zeros((capacity, 3))
        self.way, self.parents = np.empty(capacity), np.full(capacity, -1)
        self.nodes[0], self.way[0], self.count = root_mm, 0.0, 1

    def join(self, rng, target):
        """Joins a target [3] by a bent limb, to the node with the least `_cost`."""
        parent = int(np.argmin(self._cost(target, slice(0, self.count))))
        places = np.atleast_2d(tubes.bend(rng, self.nodes[parent], target))
        self._add(places, np.concatenate([[parent], np.arange(self.count, self.count + len(places) - 1)]))

    def join_all(self, targets):
        """Joins targets [N, 3] by straight twigs, each to one of the nodes about it."""
        near = spatial.KDTree(self.nodes[: self.count]).query(targets, k=min(8, self.count))[1]
        near = near.reshape(len(targets), -1)
        best = np.argmin(self._cost(targets[:, None], near), axis=1)
        self._add(targets, near[np.arange(len(targets)), best])

    def _cost(self, target, some):
        """Returns how far a target is from the nodes `some`: the new stretch, less ahead of a branch, and the way back."""
        offset = target - self.nodes[some]
        stretch = np.sqrt(np.einsum("...j,...j->...", offset, offset))
        ahead = np.einsum("...j,...j->...", offset, self.heading[some])
        return 1.6 * stretch - 0.6 * ahead + 0.28 * self.way[some]

    def _add(self, places, parents):
        """Adds nodes [N, 3] that hang on others; a node may hang on the one before it."""
        new = slice(self.count, self.count + len(places))
        self.nodes[new], self.parents[new] = places, parents
        step = places - self.nodes[parents]
        length = np.maximum(np.sqrt(np.einsum("ij,ij->i", step, step)), 1e-6)
        self.heading[new] = step / length[:, None]
        in_line = parents[-1] >= self.count
        self.way[new] = self.way[parents[0]] + np.cumsum(length) if in_line else self.way[parents] + length
        self.count += len(places)


def _with_radii(rng, nodes, parents):
    """Returns the tree as `Capsules`: the cubes of the radii add up where branches meet."""
    flow = np.zeros(len(nodes))
    is_twig = np.ones(len(nodes), bool)
    is_twig[parents[1:]] = False
    flow[is_twig] = (_TWIG_MM * rng.uniform(0.7, 1.25, is_twig.sum())) ** _POWER
    flow, back = flow.tolist(), parents.tolist()
    for node in range(len(nodes) - 1, 0, -1):
        flow[back[node]] += flow[node]
    radius = np.minimum(np.array(flow) ** (1.0 / _POWER), _WIDEST_MM)
    end = np.where(is_twig, 0.7 * radius, radius)[1:]
    return tubes.Capsules(nodes[parents[1:]], nodes[1:], radius[1:], end)


def _accompany(arteries):
    """Returns bronchi that run beside the larger arteries, towards the middle and the front."""
    wide = arteries.start_radius_mm > 0.95
    radius = 0.72 * arteries.start_radius_mm[wide]
    side = -np.sign(arteries.start_mm[wide, :1])
    aside = (arteries.start_radius_mm[wide] + radius + 0.8)[:, None] * np.concatenate(
        [0.8 * side, np.full_like(side, -0.6), np.zeros_like(side)], axis=1
    )
    return tubes.Capsules(arteries.start_mm[wide] + aside, arteries.end_mm[wide] + aside, radius, radius)


def bronchial_walls(bronchi):
    """Returns the outer surface of bronchi as `Capsules`: walls of 0.5 mm and more."""
    return bronchi.widened(np.minimum(0.35 + 0.25 * bronchi.start_radius_mm, 1.3))


def create_airway(rng, patient):
    """Returns the trachea and the two main bronchi with their first branches as `Capsules`."""
    height, bore = patient.height_mm, rng.uniform(7.5, 9.8)
    carina = np.array([rng.normal(0, 1.5) + patient.shift_mm, 10.0, 0.655 * height])
    inlet = np.array([rng.normal(0, 3.0) + 0.4 * patient.shift_mm, -2.0, 1.0 * height])
    top = np.array([0.0, -12.0, 1.6 * height])
    shift = np.array([patient.shift_mm, 0.0, 0.0])
    right = shift + [-37.0, 9.0, carina[2] - rng.uniform(24, 30)]
    left = shift + [40.0, 11.0, carina[2] - rng.uniform(30, 38)]
    rows = [
        (top, inlet, bore, bore),
        (inlet, carina, bore, bore),
        (carina, right, 0.82 * bore, 0.66 * bore),
        (carina, left, 0.76 * bore, 0.6 * bore),
        (right, right + [-6.0, 8.0, -24.0], 0.55 * bore, 0.42 * bore),
        (left, left + [5.0, 9.0, -22.0], 0.5 * bore, 0.4 * bore),
    ]
    return tubes.from_rows(rows)
