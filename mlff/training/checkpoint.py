"""Checkpoints of a run: arrays and a small record, written in the background, committed whole or not at all.

The arrays travel as one vector per type (a save of a thousand small arrays would take seconds), the record as JSON with
the layout of the vectors and their checksum. No pickles.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging as absl_logging

from mlff.basics.errors import FileError, MLFFError, ModelFileError
from mlff.basics.files import cannot_write


class Checkpoints:
    """The newest few checkpoints of one run directory.

    `save` returns within milliseconds; `close` (or leaving the `with` block) waits until the last one is on disk. What
    goes wrong on the way there is a FileError of the next `save` or of `close`; the ones before are still whole.
    Raises ModelFileError: the directory is damaged.
    """

    def __init__(self, directory: str | Path, keep: int = 2):
        import orbax.checkpoint as orbax  # takes seconds to import: only who trains pays for it

        _quiet()
        self.directory = Path(directory).absolute()
        self._orbax = orbax
        try:
            options = orbax.CheckpointManagerOptions(max_to_keep=keep)
            self._manager = orbax.CheckpointManager(self.directory, options=options)
        except OSError as error:
            raise cannot_write(self.directory, error) from error
        except Exception as error:  # Orbax raises whatever the damage of a folder suggests
            reason = " ".join(str(error).split())[:120]
            raise ModelFileError(
                f"{directory}: the checkpoints cannot be listed ({reason}); delete the damaged one"
            ) from None

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind, *_) -> None:
        try:
            self.close()
        except FileError:
            if kind is None:  # else the first error is the one to tell
                raise

    @property
    def numbers(self) -> list[int]:
        """Numbers of the checkpoints there are, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, number: int, tree: Any, record: dict) -> None:
        """Keep `tree` (a pytree of arrays) and `record` (JSON) as checkpoint `number`; one that exists is replaced."""
        vectors, layout = _pack(tree)
        content = {"record": record, "layout": layout, "digest": _digest(vectors, record)}
        args = self._orbax.args
        items = args.Composite(arrays=args.StandardSave(vectors), record=args.JsonSave(content))
        with self._writing():
            self._manager.wait_until_finished()
            if number in self._manager.all_steps():
                self._manager.delete(number)
            self._manager.save(number, args=items, force=True)

    def restore(self, template: Any) -> tuple[Any, dict] | None:
        """The newest checkpoint that is whole, shaped like `template`: (tree of numpy arrays, record). None: there is none.

        A damaged one is passed over with a warning and removed once an older one is found whole. Raises ModelFileError
        when all are damaged, or when one is whole but of another model.
        """
        numbers, damaged = self.numbers, []
        for number in reversed(numbers):
            try:
                vectors, content = self._read(number, template)
            except ModelFileError:
                raise
            except Exception as error:  # Orbax and TensorStore raise whatever the damage suggests
                reason = " ".join(str(error).split())[:120]
                _log.warning("%s: checkpoint %d is damaged and passed over (%s)", self.directory, number, reason)
                damaged.append(number)
                continue
            tree = _unpack(vectors, template)
            for other in damaged:
                self._manager.delete(other)
            return tree, content["record"]
        if numbers:
            raise ModelFileError(f"{self.directory}: no checkpoint is whole ({len(numbers)} damaged); delete it to restart")
        return None

    def record(self) -> dict | None:
        """The record of the newest checkpoint whose record can be read; None if there is none."""
        args = self._orbax.args
        for number in reversed(self.numbers):
            try:
                found = self._manager.restore(number, args=args.Composite(record=args.JsonRestore()))["record"]["record"]
            except Exception:
                continue
            if isinstance(found, dict):
                return found
        return None

    def close(self) -> None:
        with self._writing():
            try:
                self._manager.wait_until_finished()
            finally:
                self._manager.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except MLFFError:
            raise
        except Exception as error:  # Orbax and TensorStore wrap what the system says
            raise cannot_write(self.directory, error) from error

    def _read(self, number: int, template: Any) -> tuple[dict[str, np.ndarray], dict]:
        """Arrays and content of a checkpoint. What its layout promises is not allocated before it is that of `template`."""
        args = self._orbax.args
        content = self._manager.restore(number, args=args.Composite(record=args.JsonRestore()))["record"]
        _check_layout(content["layout"], template, f"{self.directory}: checkpoint {number}")
        shapes: dict[str, int] = {}
        for _, dtype, shape in _layout(template):
            shapes[dtype] = shapes.get(dtype, 0) + int(np.prod(shape))
        empty = {dtype: np.zeros(size, dtype) for dtype, size in shapes.items()}
        vectors = self._manager.restore(number, args=args.Composite(arrays=args.StandardRestore(empty)))["arrays"]
        if not isinstance(content["record"], dict) or _digest(vectors, content["record"]) != content["digest"]:
            raise ValueError("its checksum does not match")
        return vectors, content


_log = logging.getLogger("mlff")


def _quiet() -> None:
    absl_logging.set_verbosity(absl_logging.FATAL)  # errors come as exceptions too, and are told once
    absl_logging.set_stderrthreshold(absl_logging.FATAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)


def _pack(tree: Any) -> tuple[dict[str, np.ndarray], list]:
    """One vector per type, and the layout: [path, type, shape] of each array in order."""
    parts: dict[str, list[np.ndarray]] = {}
    layout = []
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(tree))
    for path, leaf in leaves:
        array = np.asarray(leaf)
        parts.setdefault(array.dtype.name, []).append(array.ravel())
        layout.append([jax.tree_util.keystr(path), array.dtype.name, list(array.shape)])
    return {dtype: np.concatenate(arrays) for dtype, arrays in parts.items()}, layout


def _layout(tree: Any) -> list:
    """[path, type, shape] of each array in order."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [[jax.tree_util.keystr(path), np.dtype(leaf.dtype).name, list(leaf.shape)] for path, leaf in leaves]


def _check_layout(layout: list, template: Any, source: str) -> None:
    """Raise ModelFileError if the layout is that of another tree, ValueError or TypeError if it is none."""
    expected = _layout(template)
    if expected == layout:
        return
    for name, dtype, shape in layout:
        if not (isinstance(name, str) and isinstance(dtype, str) and all(type(n) is int for n in shape)):
            raise ValueError("its layout is none")
    other = next((f"{b[0]} {b[1]}{b[2]}" for a, b in zip(expected, layout, strict=False) if a != b), "number of arrays")
    raise ModelFileError(f"{source} belongs to another model or optimiser ({other}); choose another --out")


def _unpack(vectors: dict[str, np.ndarray], template: Any) -> Any:
    structure = jax.tree_util.tree_structure(template)
    position = dict.fromkeys(vectors, 0)
    arrays = []
    for _, dtype, shape in _layout(template):
        start = position[dtype]
        position[dtype] = stop = start + int(np.prod(shape))
        arrays.append(np.asarray(vectors[dtype])[start:stop].reshape(shape))
    return jax.tree_util.tree_unflatten(structure, arrays)


def _digest(vectors: dict[str, np.ndarray], record: dict) -> str:
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode())
    for dtype in sorted(vectors):
        digest.update(dtype.encode())
        digest.update(np.ascontiguousarray(vectors[dtype]).tobytes())
    return digest.hexdigest()
