"""A potential as one safetensors file: tensors are the parameters, the header's `mlff` entry is JSON.

Nothing in a file is ever executed or resolved as a name, except the architecture through the fixed table of
`mlff.models.registry`. Files of all older formats are read; format 1 came with mlff 0.2.0.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
from flax import traverse_util
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialise

from mlff.basics.errors import ModelFileError
from mlff.basics.files import replacing
from mlff.models import registry
from mlff.models.common import Statistics
from mlff.models.parameters import parameter_shapes, range_shapes
from mlff.potential.domain import Environments

FORMAT_VERSION = 1
MIGRATIONS: dict[int, Callable[[dict], dict]] = {}  #: from a header of that version to one of the next
CERTIFICATE = "certificate"  #: where the certificate stands in the metadata
PRETRAINING = "pretraining"  #: there too: what a model was trained on without labels, see `Potential.pretrained`
UNITS = {"energy": "eV", "length": "Angstrom", "forces": "eV/Angstrom", "stress": "eV/Angstrom^3"}


def write(path: str | Path, potential) -> None:
    """Write a Potential, atomically. Raises DataError: no such directory."""
    from mlff import __version__

    header = {
        "format": "mlff potential",
        "format_version": FORMAT_VERSION,
        "mlff_version": __version__,
        "model": potential.config.model_dump(mode="json"),
        "elements": list(potential.elements),
        "baseline": {str(z): e for z, e in potential.baseline.items()},
        "statistics": potential.statistics._asdict(),
        "precision": potential.precision,
        "cutoff": potential.cutoff,
        "units": UNITS,
        "metadata": potential.metadata,
        "members": potential.members,
    }
    environments = {}
    if potential.environments is not None:
        header["environments"], environments = potential.environments.pack()
    leaves = traverse_util.flatten_dict(potential.params).items()
    tensors = {"/".join(name): np.ascontiguousarray(np.asarray(value)) for name, value in leaves}
    content = serialise(tensors | environments, metadata={"mlff": json.dumps(header, allow_nan=False)})
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def read(path: Path) -> dict[str, Any]:
    """The fields of a Potential by name.

    Raises ModelFileError: no such file, not a model, truncated, from a newer version, tensors missing, of the wrong shape
    or not finite.
    """
    header, tensors = _content(path)
    metadata = header.get("metadata", {})
    if not (isinstance(metadata, dict) and _is_json(metadata) and _is_certificate(metadata.get(CERTIFICATE))):
        raise ModelFileError(f"{path}: the header's metadata are not those of an mlff model")
    stored = {name: tensors.pop(name) for name in list(tensors) if name.startswith("environments/")}
    try:
        config = registry.options_of(header["model"])
        _check_size(path, config, tensors)
        scale, neighbors, *lists = (header["statistics"][name] for name in Statistics._fields)
        fields = {
            "config": config,
            "params": traverse_util.unflatten_dict({tuple(name.split("/")): value for name, value in tensors.items()}),
            "elements": tuple(int(z) for z in header["elements"]),
            "baseline": {int(z): float(e) for z, e in header["baseline"].items()},
            "statistics": Statistics(float(scale), float(neighbors), *(tuple(map(float, values)) for values in lists)),
            "precision": header["precision"],
            "metadata": metadata,
            "environments": Environments.unpack(header["environments"], stored) if "environments" in header else None,
            "members": header["members"],
        }
    except ModelFileError as error:
        raise ModelFileError(f"{path}: {error}") from None
    except pydantic.ValidationError as error:
        raise ModelFileError(f"{path}: the model section is not valid ({error.errors()[0]['msg']})") from None
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise ModelFileError(f"{path}: the header is not that of an mlff model ({problem})") from None
    _check_constants(path, fields)
    _check_tensors(path, fields, tensors)
    return fields


def _check_constants(path: Path, fields: dict[str, Any]) -> None:
    statistics = fields["statistics"]
    elements, inner = list(fields["elements"]), statistics.inner_cutoff
    constants = [*statistics[:2], *statistics.atom_energies, *inner, *fields["baseline"].values()]
    if not elements or elements != sorted(set(elements)) or not (1 <= elements[0] and elements[-1] <= 118):
        raise ModelFileError(f"{path}: the header's elements are not atomic numbers in ascending order")
    sizes = len(statistics.atom_energies) in (0, len(elements)) and len(inner) in (0, len(elements) ** 2)
    if set(elements) != set(fields["baseline"]) or not sizes:
        raise ModelFileError(f"{path}: the header's baseline or statistics are not those of its elements")
    if not np.isfinite(constants).all() or statistics.mean_neighbors <= 0 or min(inner, default=1.0) <= 0:
        raise ModelFileError(f"{path}: the header's baseline or statistics hold values that make no sense")
    if fields["precision"] not in ("float32", "float64"):
        raise ModelFileError(f"{path}: unknown precision {fields['precision']!r}")


def _is_json(entry: Any) -> bool:
    """Whether it can be written again: Python reads NaN and infinities, which JSON does not have."""
    try:
        json.dumps(entry, allow_nan=False)
    except ValueError:
        return False
    return True


def _is_certificate(entry: Any) -> bool:
    """Whether this can be read as a certificate, or says that there is none."""
    if entry is None:
        return True
    lines = entry.get("lines") if isinstance(entry, dict) else None
    return isinstance(lines, list) and all(
        isinstance(line, dict) and isinstance(line.get("name"), str) and isinstance(line.get("passed"), bool)
        for line in lines
    )


def _check_size(path: Path, config: Any, tensors: dict[str, np.ndarray]) -> None:
    """Refuse a model that promises more than its parameters are: building it could take any time and memory."""
    total = sum(tensor.size for tensor in tensors.values())
    for name, value in config.model_dump().items():
        most = len(tensors) if name == "layers" else total
        if type(value) is int and not name.startswith("l_") and name != "correlation" and value > most:
            raise ModelFileError(f"{path}: promises {value} {name}, more than its {total} parameters can be")


def _check_tensors(path: Path, fields: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    model = registry.build(fields["config"], fields["elements"], fields["statistics"])
    expected, ranges = parameter_shapes(model), range_shapes(model)
    if set(ranges) & set(tensors):  # a model that was not trained to its end has none
        expected |= ranges
    members = fields["members"]
    if type(members) is not int or members < 1:
        raise ModelFileError(f"{path}: the header promises {members!r} members")
    for name, shape in expected.items():
        shape = shape if members == 1 else (members, *shape)
        if name not in tensors:
            raise ModelFileError(f"{path}: parameter {name} is missing")
        if tensors[name].shape != shape:
            raise ModelFileError(f"{path}: parameter {name} has shape {tensors[name].shape}, expected {shape}")
        if tensors[name].dtype not in (np.float32, np.float64):
            raise ModelFileError(f"{path}: parameter {name} is of type {tensors[name].dtype}, expected float32 or float64")
        if not np.isfinite(tensors[name]).all():
            raise ModelFileError(f"{path}: parameter {name} holds values that are not finite")
        if name in ranges and not (tensors[name] > 0).all():
            raise ModelFileError(f"{path}: parameter {name} holds values that are not positive")
    if surplus := set(tensors) - set(expected):
        raise ModelFileError(f"{path}: unknown parameter {sorted(surplus)[0]}")


def _content(path: Path) -> tuple[dict, dict[str, np.ndarray]]:
    if not path.is_file():
        raise ModelFileError(f"{path}: no such model file" if not path.exists() else f"{path}: not a file")
    try:
        with safe_open(path, framework="numpy") as file:
            header = json.loads((file.metadata() or {})["mlff"])
            if header.get("format") != "mlff potential":
                raise KeyError
            if header.get("mlff_version") == "0.1.0":
                raise ModelFileError(f"{path}: written by a version before the first release (0.2.0); train it anew")
            version = header["format_version"]
            if version > FORMAT_VERSION:
                writer = f"format {version} by mlff {header.get('mlff_version')}"
                raise ModelFileError(f"{path}: written in {writer}, newer than this one; update mlff")
            for older in range(version, FORMAT_VERSION):
                header = MIGRATIONS[older](header)
            return header, {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise ModelFileError(f"{path}: not a safetensors file, or truncated ({error})") from None
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read ({error.strerror})") from None
    except (KeyError, ValueError, AttributeError, TypeError, RecursionError):  # RecursionError: JSON nested without end
        raise ModelFileError(f"{path}: a safetensors file, but not an mlff model") from None
