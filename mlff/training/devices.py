"""The devices that share each step of a training: data parallelism.

Every device has the parameters and a part of the batch. Sums of errors are taken over all parts before they become a loss,
so the loss, and with it the gradient, is that of the batch on one device, however atoms and padding are distributed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal
from weakref import WeakKeyDictionary

import jax
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mlff.basics.errors import ConfigError
from mlff.config.options import Training
from mlff.data.batching import Batches, Sizes, usual_batch
from mlff.data.division import Division
from mlff.graph import Graph, Labels
from mlff.training.processes import Group

_AXIS = "batch"


class Devices:
    """One device (without `chosen`, JAX's default), or several, of this process and of others."""

    def __init__(self, chosen: list[jax.Device] | None = None, group: Group | None = None):
        self.group = Group(0, 1) if group is None else group
        self.count = 1 if chosen is None else len(chosen)
        self._mesh = None if chosen is None else Mesh(np.array(chosen), (_AXIS,))
        self._local = [] if chosen is None else [i for i, d in enumerate(chosen) if d.process_index == jax.process_index()]
        self._divisions: WeakKeyDictionary[Batches, Division] = WeakKeyDictionary()

    def check(self, training: Training, atoms: Sequence[int]) -> None:
        """Raise ConfigError where a step has no structure, or not equally many, for each device; `atoms`: in each."""
        count = self.count
        if count == 1:
            return
        size, given = training.batch_size, "training.batch_size"
        if size is None and training.max_atoms is not None:
            fitting = int(training.max_atoms / np.mean(atoms))
            if fitting < count:
                raise ConfigError(
                    f"training.max_atoms: {training.max_atoms} atoms are {fitting} structures of the mean size, fewer than the "
                    f"{count} devices; take {int(np.ceil(count * np.mean(atoms)))} or more, or fewer training.devices"
                )
        elif (size or usual_batch(atoms)) % count:
            size, said = size or usual_batch(atoms), "" if size else " by default"
            raise ConfigError(
                f"{given}: {size} structures{said} do not divide over {count} devices; write a multiple of {count}, e.g. "
                f"{given}: {-(-size // count) * count}, or other training.devices"
            )
        if len(atoms) < count:
            raise ConfigError(f"training.devices: {count}: there are {len(atoms)} training structures; take fewer devices")

    def place(self, batches: Batches, sizes: Sizes, indices: list[int]) -> tuple[Sizes, Graph, Labels]:
        """A batch of a plan on the devices, and the padded shape that each of them has."""
        if self._mesh is None:
            return sizes, *jax.device_put(batches.build(sizes, indices))
        if batches not in self._divisions:
            self._divisions[batches] = Division(batches, self.count)
        sizes, parts = self._divisions[batches].parts(sizes, indices)
        mine = [batches.build(sizes, parts[number]) for number in self._local]
        return sizes, *jax.tree.map(self._joined, *mine)

    def _joined(self, *parts: np.ndarray) -> jax.Array:
        shape = (self.count * len(parts[0]), *parts[0].shape[1:])
        sharding = NamedSharding(self._mesh, PartitionSpec(_AXIS))
        return jax.make_array_from_process_local_data(sharding, np.concatenate(parts), shape)

    def summed(self, function: Callable[[Any, Graph, Labels], Any]) -> Callable[[Any, Graph, Labels], Any]:
        """The same function of parameters and a batch, where its results add up over the parts of a batch.

        Parameters and results travel as one vector each: two sums over devices for a step, instead of one for every array.
        """
        if self._mesh is None:
            return function
        part, whole = PartitionSpec(_AXIS), PartitionSpec()

        def summed(params: Any, graph: Graph, labels: Labels) -> Any:
            vector, params_of = ravel_pytree(params)

            def total(vector: Any, graph: Graph, labels: Labels) -> Any:
                results, results_of = ravel_pytree(function(params_of(vector), graph, labels))
                return results_of(jax.lax.psum(results, _AXIS))

            # without the check of types, which knows nothing of functions with derivatives of their own
            specs = {"in_specs": (whole, part, part), "out_specs": whole, "check_vma": False}
            return jax.shard_map(total, mesh=self._mesh, **specs)(vector, graph, labels)

        return summed

    def replicated(self, tree: Any) -> Any:
        """Arrays, the same in all processes, on every device."""
        if self._mesh is None:
            return tree
        return jax.device_put(jax.device_get(tree), NamedSharding(self._mesh, PartitionSpec()))

    def gathered(self, tree: Any) -> Any:
        """What `replicated` gave, on one device of this process."""
        return tree if self._mesh is None else jax.device_put(jax.device_get(tree), jax.local_devices()[0])


def find_devices(wanted: int | Literal["auto"], group: Group) -> Devices:
    """The devices of `training.devices`, the same number in each process. Raises ConfigError: there are not so many."""
    if wanted == 1:
        return Devices(None, group)
    there = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    if wanted == "auto":
        wanted = len(there)
    own = [[device for device in there if device.process_index == process] for process in range(group.count)]
    each, rest = divmod(wanted, group.count)
    if rest:
        raise ConfigError(f"training.devices: {wanted} do not divide over {group.count} processes; take a multiple, or auto")
    for process, mine in enumerate(own):
        if each > len(mine):
            where = f"process {process} has" if group.count > 1 else "there are"
            advice = (
                " (on a CPU the environment variable JAX_NUM_CPU_DEVICES makes more)" if mine[0].platform == "cpu" else ""
            )
            raise ConfigError(
                f"training.devices: {wanted}: {where} {len(mine)} of the {each} that it takes{advice}; write fewer, or auto"
            )
    chosen = [device for mine in own for device in mine[:each]]
    return Devices(None if len(chosen) == 1 else chosen, group)
