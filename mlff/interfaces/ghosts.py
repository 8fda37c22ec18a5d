"""Sums over the copies of an atom: what processes say of their ghosts is added to the atom that one of them owns.

By the ids of the atoms, through MPI. Ids have no order in space, so each id has a process that knows its owner (id modulo
the number of processes); it is asked once after atoms have moved to other processes, not in each step.
"""

from __future__ import annotations

import numpy as np

from mlff.basics.errors import StructureError


class GhostSum:
    """Where the ghosts of this process belong, until the engine gives other ghosts."""

    def __init__(self, comm, ids: np.ndarray, owned: int):
        """`comm`: of mpi4py, all of whose processes make one at the same time; ids (n,), those of owned atoms first.

        Raises StructureError: an id that two atoms have, or that no process owns.
        """
        self._comm, self._owned = comm, owned
        own, ghosts = ids[:owned].astype(np.int64), ids[owned:].astype(np.int64)
        wanted, which = np.unique(ghosts, return_inverse=True)
        owners = self._owners(own, wanted)
        by_owner = np.argsort(owners, kind="stable")
        place = np.empty(len(wanted), np.int64)
        place[by_owner] = np.arange(len(wanted))
        self._order = np.argsort(place[which], kind="stable")  # ghosts by owner and id
        self._starts = np.searchsorted(place[which][self._order], np.arange(len(wanted)))
        sent = np.bincount(owners, minlength=comm.size)
        asked, received = _exchange(comm, wanted[by_owner], sent)
        by_id = np.argsort(own)
        targets = by_id[np.searchsorted(own[by_id], asked)]
        self._parts = _slices(sent)
        self._targets = {rank: targets[part] for rank, part in _slices(received).items()}

    def sum(self, values: np.ndarray) -> np.ndarray:
        """(owned, F) of values (n, F): those of each owned atom and all its ghosts, of this and other processes, added up."""
        width = values.shape[1]
        total = values[: self._owned].copy()
        ghosts = values[self._owned :][self._order]
        out = np.add.reduceat(ghosts, self._starts, axis=0) if len(ghosts) else np.zeros((0, width))
        comm, here = self._comm, self._comm.rank
        buffers = {rank: np.empty((len(to), width)) for rank, to in self._targets.items() if rank != here}
        requests = [comm.Irecv(buffer, source=rank) for rank, buffer in buffers.items()]
        requests += [comm.Isend(out[part], dest=rank) for rank, part in self._parts.items() if rank != here]
        for request in requests:
            request.Wait()
        if here in self._parts:
            buffers[here] = out[self._parts[here]]
        for rank in sorted(buffers):  # always in this order: sums repeat bit by bit
            total[self._targets[rank]] += buffers[rank]  # of one process an atom has one row
        return total

    def _owners(self, own: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """The process that owns each of these ids, by asking those that know."""
        size = self._comm.size
        by_place = np.argsort(own % size, kind="stable")
        known, counts = _exchange(self._comm, own[by_place], np.bincount(own % size, minlength=size))
        ranks = np.repeat(np.arange(size), counts)
        order = np.argsort(known, kind="stable")
        known, ranks = known[order], ranks[order]
        if len(twice := np.flatnonzero(known[1:] == known[:-1])):
            raise StructureError(
                f"two atoms have the id {known[twice[0]]}; atoms need ids of their own (atom_modify id yes)"
            )
        by_place = np.argsort(wanted % size, kind="stable")
        sent = np.bincount(wanted % size, minlength=size)
        asked, counts = _exchange(self._comm, wanted[by_place], sent)
        place = np.minimum(np.searchsorted(known, asked), max(len(known) - 1, 0))
        if len(asked) and (not len(known) or (known[place] != asked).any()):
            missing = asked[0] if not len(known) else asked[known[place] != asked][0]
            raise StructureError(f"no process owns the atom with id {missing}, whose copies there are: atoms were lost")
        answers, _ = _exchange(self._comm, ranks[place] if len(asked) else asked, counts)
        owners = np.empty(len(wanted), np.int64)
        owners[by_place] = answers
        return owners


def _exchange(comm, values: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers for each process, sorted by process, so many for each, to what comes from each, and how many."""
    counts, received = counts.astype(np.int64), np.empty(comm.size, np.int64)
    comm.Alltoall(counts, received)
    out = np.empty(received.sum(), np.int64)
    comm.Alltoallv([np.ascontiguousarray(values, np.int64), counts], [out, received])
    return out, received


def _slices(counts: np.ndarray) -> dict[int, slice]:
    """Of arrays sorted by process the part of each that has any."""
    ends = np.cumsum(counts)
    return {rank: slice(end - count, end) for rank, (end, count) in enumerate(zip(ends, counts, strict=True)) if count}
