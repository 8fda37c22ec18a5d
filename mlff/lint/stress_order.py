"""In which order do the six numbers of a stress stand: what energies or forces say, group by group."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from mlff.basics.units import VOIGT, from_six
from mlff.data.structure import Structure
from mlff.lint.close_pairs import SHEAR_ORDERS, Pairs, find_pairs, reordered
from mlff.lint.comparison import Comparison, robust_slope
from mlff.lint.pair_fit import Fitted, fit_pairs

GOOD_FIT = 0.8  #: a pair potential is trusted whose forces correlate so well with those of the data
_FEWEST = 8  # pairs of cells, or cells
_NEEDED = 0.9, 0.8  # correlation that an order must have: with energy differences, with a fitted pair potential


class _Tried(NamedTuple):
    """How well each order of the shear components fits those of one group; numbers of SHEAR_ORDERS."""

    read: int | None  #: the order in which they were read; None: left out, because nobody says
    fits: int | None  #: the one that fits: the one read, unless another is much better
    correlations: np.ndarray  #: (6,), without sign
    number: int
    method: str


def compare_orders(structures, pairs: Pairs, fitted: Fitted | None, scale: float) -> Comparison | None:
    """Do the shear components stand in the order in which they were read? All together and, where there are, group by group."""
    names = [group_of(s) or "" for s in structures]
    read = {
        name: _read_as([s for s, its in zip(structures, names, strict=True) if its == name]) for name in sorted(set(names))
    }
    as_read = all(order == 0 for order in read.values())
    if not as_read:  # from here on as if all six numbers stood in ASE's order
        structures = [s if s.raw_voigt is None else replace(s, stress=from_six(s.raw_voigt)) for s in structures]
        pairs, fitted = find_pairs(structures), fit_pairs(structures)
    names = np.array(names)
    where = {id(s): k for k, s in enumerate(structures)}
    found = {}
    for name, order in read.items():
        inside = pairs.where((names[pairs.first.astype(int)] == name) & (names[pairs.second.astype(int)] == name))
        part = fitted and fitted.where([names[where[id(s)]] == name for s in fitted.structures])
        found[name] = _try_orders(inside, part, scale, order)
    there = {name for name, s in zip(names, structures, strict=True) if s.stress is not None}
    silent = [name for name, tried in found.items() if tried is None and name in there]
    unread = all(read[name] is None for name in there)
    found = {name: tried for name, tried in found.items() if tried is not None}
    together = _try_orders(pairs, fitted, scale, 0) if as_read else None
    if together is not None and (len(found) < 2 or all(tried.fits in (0, None) for tried in found.values())):
        found, silent = {"": together}, []
    return _judge_orders(found, silent, unread, structures) if found or unread else None


def _judge_orders(found: dict[str, _Tried], silent: list[str], unread: bool, structures) -> Comparison:
    """`silent`: groups whose data do not tell; `unread`: no stress was read for want of an order."""
    labels = "order of the stress components"
    said = []
    for name, tried in found.items():
        texts = [] if tried.read is None else [f"{tried.correlations[tried.read]:.2f} as they were read"]
        if tried.fits is None:
            texts.append("no order fits well")
        elif tried.fits != tried.read:
            texts.append(f"{tried.correlations[tried.fits]:.2f} as {_order_name(SHEAR_ORDERS[tried.fits])}")
        said.append((f"{name}: " if name else "") + ", ".join(texts))
    what = f"the shear components correlate with what they should be by {'; '.join(said)}" if said else ""
    if silent:
        what += f"{'; ' if said else ''}of {', '.join(filter(None, silent)) or 'them'} nothing can be told"
    figures = {
        "correlation": round(float(min((t.correlations[t.read or 0] for t in found.values()), default=0.0)), 4),
        "number": sum(tried.number for tried in found.values()),
    }
    method = " and ".join(sorted({tried.method for tried in found.values()}))
    right = {name: SHEAR_ORDERS[tried.fits] for name, tried in found.items() if tried.fits is not None}
    if any(tried.fits not in (None, tried.read) for tried in found.values() if tried.read is not None):
        return Comparison(labels, method, "contradiction", what, "stress-order", _order_advice(right, structures), **figures)
    if unread or any(tried.read is None for tried in found.values()):
        what = f"stresses of six numbers are left out, because nobody says in which order they stand; {what}"
        return Comparison(labels, method, "doubtful", what, "stress-unordered", _order_advice(right, structures), **figures)
    if all(tried.fits is not None for tried in found.values()):
        return Comparison(labels, method, "consistent", "the order in which they were read fits", **figures)
    return Comparison(labels, method, "untested", "no order of the shear components fits well", **figures)


def _order_advice(right: dict[str, tuple], structures) -> str:
    """What to say of units.stress_order, by group if there are any."""
    if all(s.raw_voigt is None for s in structures):
        there = "; ".join(f"{_order_name(order)}{' in ' + name if name else ''}" for name, order in right.items())
        return f"the file has {there}: write the stress as 3x3 numbers, or six in a known order (units.stress_order)"
    if not right:
        return "say units.stress_order"
    named = {" ".join(parts): name for name, parts in VOIGT.items()}
    if set(right) == {""}:
        order = _order_name(right[""])
        return f"the file has {order}: units.stress_order: {named.get(order, 'none of the known, write 3x3 numbers')}"
    by_group = ", ".join(f"{name}: {named.get(_order_name(order), 'unknown')}" for name, order in right.items())
    group = "" if any(s.group for s in structures) else " with keys.group: config_type"
    return f"units.stress_order: {{{by_group}}}{group}"


def _try_orders(pairs: Pairs, fitted: Fitted | None, scale: float, read: int | None) -> _Tried | None:
    """Of one group; None without enough data."""
    sheared = pairs.where((pairs.strain > 1e-4) & np.isfinite(pairs.swapped_work[:, 0]))
    normal = np.einsum("pii->p", sheared.stress_work)
    shear = np.abs(sheared.swapped_work - normal[:, None]).max(axis=1, initial=0)
    sheared = sheared.where(shear > 0.1 * np.abs(normal))
    rest = sheared.energy - scale * np.nan_to_num(sheared.force_work)
    candidates = []
    near = np.argsort(strain_key(sheared))[: max(len(sheared) // 2, _FEWEST)]
    if len(near) >= _FEWEST:
        tried = [robust_slope(sheared.swapped_work[near, k], rest[near])[1] for k in range(len(SHEAR_ORDERS))]
        candidates.append(("energy differences of sheared cells", tried, len(near), _NEEDED[0]))
    labelled, expected = shear_stresses(fitted)
    if len(labelled) >= _FEWEST:
        tried = [robust_slope(labelled[:, order].ravel(), expected.ravel())[1] for order in SHEAR_ORDERS]
        method = "shear stresses against those of a pair potential fitted to the forces"
        candidates.append((method, tried, 3 * len(labelled), _NEEDED[1]))
    if not candidates:
        return None
    method, tried, number, needed = max(candidates, key=lambda item: max(map(abs, item[1])))
    tried = np.abs(tried)
    best, second = np.argsort(-tried)[:2]
    other = tried[second if read is None or best == read else read]
    far_better = tried[best] - other >= 0.3 or (tried[best] > 0.97 and 1 - other > 8 * (1 - tried[best]))
    if best != read and tried[best] >= needed and far_better:
        fits = int(best)
    else:
        fits = read if read is not None and tried[read] >= _NEEDED[1] else None
    return _Tried(read, fits, tried, number, method)


def _read_as(structures) -> int | None:
    """The order in which the six numbers of a group were read; 0 (ASE's) where there are none."""
    six = [s for s in structures if s.raw_voigt is not None]
    if any(s.stress is None for s in six):
        return None
    for k, order in enumerate(SHEAR_ORDERS):
        if all(np.allclose(reordered(from_six(s.raw_voigt), order), s.stress, rtol=1e-9, atol=1e-12) for s in six):
            return k
    return 0


def group_of(structure: Structure) -> str | None:
    """The group of keys.group, or else the config_type."""
    name = structure.group or structure.info.get("config_type", structure.info.get("Config_type"))
    return None if name is None else str(name)


def strain_key(pairs: Pairs) -> np.ndarray:
    """Small for pairs that tell of stresses: strains of some per cent, and atoms that move little beside."""
    return pairs.distance / (3 * pairs.strain) + 0.3 * np.abs(np.log(pairs.strain / 0.03))


def _order_name(order) -> str:
    """What the file has behind xx yy zz when its k-th shear label is to be taken from number order[k]."""
    names = ["", "", ""]
    for name, source in zip(("yz", "xz", "xy"), order, strict=True):
        names[source] = name
    return "xx yy zz " + " ".join(names)


def shear_stresses(fitted: Fitted | None) -> tuple[np.ndarray, np.ndarray]:
    """(m, 3) labelled and fitted yz, xz, xy times volume, eV, of structures with a stress."""
    if fitted is None or fitted.correlation < GOOD_FIT:
        return np.zeros((0, 3)), np.zeros((0, 3))
    there = [k for k, s in enumerate(fitted.structures) if s.stress is not None]
    labelled = np.array([fitted.structures[k].stress * fitted.structures[k].volume for k in there]).reshape(-1, 3, 3)
    rows, columns = (1, 0, 0), (2, 2, 1)
    return labelled[:, rows, columns], fitted.virials[there][:, rows, columns]
