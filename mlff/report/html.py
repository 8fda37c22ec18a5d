"""One HTML file about a model: errors, curves, certificate, worst structures, provenance. It needs no network."""

from __future__ import annotations

import base64
import hashlib
import json
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

from mlff import __version__
from mlff.basics.errors import ModelFileError
from mlff.basics.files import write_text
from mlff.certificate.certificate import Certificate
from mlff.potential.modelfile import CERTIFICATE
from mlff.potential.potential import Potential
from mlff.report import panels, sections
from mlff.report.markup import Markup, render, tag
from mlff.training import parity
from mlff.training.identity import MODEL
from mlff.training.metrics import Metrics
from mlff.training.parity import Parity

FILE = "report.html"  #: in a run directory
_PARTS = {
    "errors": "Errors",
    "learning": "Learning curves",
    "parity": "Predictions",
    "certificate": "Certificate",
    "distances": "Distances",
    "worst": "Worst structures",
    "provenance": "Provenance",
}


def write_report(
    potential: Potential, model: Path, out: Path, measured: dict[str, tuple[Metrics, Parity]] | None = None
) -> None:
    """Write what is known of a potential to the HTML file `out`; nothing is computed anew.

    Errors and certificate are those of its metadata. Of its run directory, where `model` (its file) lies in one, learning
    curves, predictions on the held-out sets and commands are taken. `measured`: further sets by name.

    Raises ModelFileError: metadata that make no sense; DataError: damaged files of the run; FileError.
    """
    run = model.parent if model.name == MODEL else None
    log, record = (run / "metrics.jsonl", run / "run.json") if run else (None, None)
    lines = panels.read_log(log) if log and log.is_file() else []
    stored = parity.read(run / parity.FILE, potential.fingerprint) if run else {}
    stored = {name: compared for name, (_, compared) in (measured or {}).items()} | stored
    size = model.stat().st_size if model.is_file() else None
    try:
        certificate = potential.metadata.get(CERTIFICATE)
        certificate = None if certificate is None else Certificate.from_dict(certificate)
        known = (potential.metadata.get("errors") or {}) | (certificate.errors if certificate else {})
        errors = {str(name): Metrics.from_dict(values) for name, values in known.items()}
        errors = {name: metrics for name, (metrics, _) in (measured or {}).items()} | errors
        runs = _runs(record)
        name = run.resolve().name if run and lines else model.stem
        body = [
            sections.header(name, potential, certificate, size, runs),
            tag("nav", *(tag("a", title, href=f"#{part}") for part, title in _PARTS.items())),
            sections.errors(errors),
            sections.learning_curves(lines),
            sections.parity_plots(stored, list(errors)),
            sections.certificate_lines(certificate),
            sections.distances(errors),
            sections.worst(stored),
            sections.provenance(potential, runs),
        ]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise ModelFileError(f"{model}: its metadata or the files beside it cannot be shown ({problem})") from None
    write_text(out, _page(f"{name}: force field", body))


def _runs(record: Path | None) -> list[dict]:
    """The starts in a run.json; [] without one or where it is damaged: it only tells what was."""
    try:
        entries = json.loads(record.read_text(encoding="utf-8")) if record else []
    except (OSError, ValueError, RecursionError):
        return []
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def _page(title: str, body: list[Markup]) -> str:
    folder = files("mlff.report")
    style, script = ((folder / name).read_text(encoding="utf-8") for name in ("report.css", "viewer.js"))
    code = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{code}'"
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            render(tag("title", title)),
            f"<style>\n{style}</style>\n</head>\n<body>\n<main>",
            *map(render, body),
            render(tag("footer", f"Written by mlff {__version__}, {made}.")),
            f"</main>\n<script>{script}</script>\n</body>\n</html>\n",
        ]
    )
