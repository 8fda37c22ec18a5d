#!/usr/bin/env python3
"""The house in numbers, read from the imports: folders of mlff/, arrows between them, levels, circles.

    .venv/bin/python scripts/house.py

An arrow leads from a folder (or a module at the top) to another that it imports. A level is how many steps of arrows lie
below. `tests/test_floors.py` holds the rules; this prints what there is.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.test_floors import MODULES, folder, imported_modules


def circles(arrows: dict[str, set[str]]) -> list[str]:
    """What is left when everything whose imports are settled has been taken away."""
    left = dict(arrows)
    while free := [name for name, others in left.items() if not others & left.keys() - {name}]:
        for name in free:
            del left[name]
    return sorted(left)


def main() -> None:
    modules = {name: imported_modules(file) - {name} for name, file in MODULES.items() if name != "__init__"}
    arrows: dict[str, set[str]] = defaultdict(set)
    lines: Counter[str] = Counter()
    for name, others in modules.items():
        arrows[folder(name)] |= {folder(other) for other in others} - {folder(name)}
        lines[folder(name)] += len(MODULES[name].read_text(encoding="utf-8").splitlines())

    def level(name: str) -> int:
        return 1 + max(map(level, arrows[name]), default=0)

    table = Table("folder", "level", "modules", "lines", "imports", title="mlff/")
    for name in sorted(arrows, key=lambda name: (level(name), name), reverse=True):
        count = sum(folder(module) == name for module in modules)
        table.add_row(name, str(level(name)), str(count), f"{lines[name]:,}", ", ".join(sorted(arrows[name])))
    Console(width=140).print(table)
    between = sum(map(len, arrows.values()))
    print(f"{len(arrows)} boxes, {max(map(level, arrows))} levels, {between} arrows between them")
    print(
        f"{len(modules)} modules, {sum(map(len, modules.values()))} imports, in circles: {', '.join(circles(modules)) or 'none'}"
    )


if __name__ == "__main__":
    main()
