"""What was found by design, as tables for the terminal: structures, the condition of a run, the composition of a mixture."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from mlff.design.composition_outcome import CompositionOutcome
from mlff.design.condition_outcome import ConditionOutcome
from mlff.design.outcome import Outcome


def structures(outcome: Outcome) -> Table:
    """What was wanted, and the structures that were found."""
    title = f"structures up to {outcome.energy_limit:.3g} eV above the minimum ({outcome.evaluations:,} evaluations)"
    table = Table(title=title, title_justify="left")
    for heading in (
        "",
        "energy, eV",
        *(f"{goal.name}, {goal.unit}" for goal in outcome.goals),
        "distance from data",
        "starts",
    ):
        table.add_column(escape(heading), justify="right" if heading else "left")
    table.add_row("wanted", "", *(f"{_row(goal.wanted)} ± {goal.error:.2g}" for goal in outcome.goals), "", "")
    table.add_row("minimum", "0", *(_row(goal.at_minimum) for goal in outcome.goals), "", "")
    for number, one in enumerate(outcome.candidates, 1):
        name = f"frame {number}, {'reached' if one.reached else 'not reached'}"
        distance = "-" if one.distance is None else f"{one.distance:.2f}"
        table.add_row(name, f"{one.energy:.4f}", *(_row(values) for values in one.values), distance, str(len(one.starts)))
    return table


def condition(outcome: ConditionOutcome) -> Table:
    """The runs on the way to a condition."""
    table = Table(title=f"mean pressure {outcome.target:g} ± {outcome.error:.2g} {outcome.unit}", title_justify="left")
    for heading in ("run", f"{outcome.free}, {outcome.free_unit}", f"mean pressure, {outcome.unit}", "its error", "slope"):
        table.add_column(escape(heading), justify="right")
    for number, run in enumerate(outcome.runs, 1):
        error = "-" if run.error is None else f"{run.error:.2g}"
        table.add_row(str(number), f"{run.condition:.6g}", f"{run.mean:.5g}", error, f"{run.slope:.3g}")
    return table


def composition(outcome: CompositionOutcome) -> Table:
    """The compositions that were looked at, and the shares that were found."""
    first, second = outcome.pair
    title = f"{outcome.name} {outcome.target:g} ± {outcome.error:.2g} {outcome.unit} ({outcome.decorations} decorations)"
    table = Table(title=title, title_justify="left")
    headings = (
        "",
        f"share of {second} in {first}",
        f"{second} on {outcome.sites} sites",
        f"{outcome.name}, {outcome.unit}",
        "its error",
    )
    for heading in headings:
        table.add_column(escape(heading), justify="right" if heading else "left")
    for one in outcome.mixtures:
        table.add_row("", f"{one.share:.4f}", str(one.count), f"{one.mean:.5g}", f"{one.error:.2g}")
    table.add_section()
    for found in outcome.solutions:
        between = f"{found.lower.count} to {found.upper.count}"
        table.add_row("found", f"{found.share:.4f} ± {found.error:.2g}", between, f"{outcome.target:.5g}", "")
    return table


def _row(values: list[float]) -> str:
    return " ".join(f"{value:.5g}" for value in values)
