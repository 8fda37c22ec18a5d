"""Vibrations, phonons, elastic constants, equations of state and reaction paths as text and PNG plots."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ase.utils.forcecurve import fit_images
from matplotlib.figure import Figure
from rich.table import Table

from mlff.basics.units import KJ_PER_MOL
from mlff.properties.compression import Compression
from mlff.properties.elasticity import Elasticity
from mlff.properties.path import ReactionPath
from mlff.properties.phonons import Phonons
from mlff.properties.vibrations import Vibrations
from mlff.report.panels import BLUE, GREY, ORANGE, clean
from mlff.report.plots import save

_WIDTH = 10.0  #: cm⁻¹, half width at half maximum of a line of the drawn density of modes
_AXES = ("xx", "yy", "zz", "yz", "xz", "xy")


def vibrations(found: Vibrations, temperature: float, thermal: dict[str, float]) -> Table:
    """Wavenumbers, zero-point energy and free energy."""
    table = _table(f"vibrations ({found.kind})")
    numbers = [f"{abs(w):.1f}{'i' if w < 0 else ''}" for w in found.wavenumbers]
    table.add_row("wavenumbers", f"{', '.join(numbers) or 'none'} cm⁻¹")
    table.add_row("imaginary", f"{len(found.imaginary)}")
    table.add_row("translations, rotations", f"{found.rest:.2f} cm⁻¹ before they are projected out")
    table.add_row("energy", f"{found.energy:.6f} eV, largest force {found.forces_max:.2g} eV/Å")
    table.add_row("zero-point energy", f"{found.zero_point:.4f} eV")
    names = {
        "internal_energy_ev": ("internal energy U", "eV"),
        "enthalpy_ev": ("enthalpy H", "eV"),
        "entropy_ev_per_k": ("entropy S", "meV/K"),
        "helmholtz_ev": ("free energy F = U - TS", "eV"),
        "gibbs_ev": ("free energy G = H - TS", "eV"),
    }
    gas = ", ideal gas at 1 bar, singlet" if "gibbs_ev" in thermal else ", vibrations only"
    for key, value in thermal.items():
        name, unit = names[key]
        table.add_row(
            name, f"{1e3 * value:.4f} {unit}" if unit == "meV/K" else f"{value:.6f} {unit} at {temperature:g} K{gas}"
        )
    return table


def vibrations_plot(found: Vibrations, path: Path, title: str) -> None:
    """The wavenumbers as lines and, broadened by 10 cm⁻¹, as a density."""
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    real, imaginary = found.wavenumbers[found.wavenumbers >= 0], found.imaginary
    grid = np.linspace(min(0.0, found.wavenumbers.min(initial=0.0)) - 50, found.wavenumbers.max(initial=100.0) * 1.05, 2000)
    axes.plot(
        grid, sum((1 / (1 + ((grid - w) / _WIDTH) ** 2) for w in found.wavenumbers), np.zeros_like(grid)), color=BLUE, lw=1
    )
    axes.vlines(real, 0, 1, color=GREY, lw=0.8)
    axes.vlines(imaginary, 0, 1, color=ORANGE, lw=1.2, label="imaginary")
    if len(imaginary):
        axes.legend(frameon=False)
    axes.set(xlabel="wavenumber (cm⁻¹)", ylabel="density of modes (arbitrary)", ylim=(0, None))
    clean(axes)
    save(figure, path, title)


def phonons(found: Phonons) -> Table:
    """Supercell, range of frequencies and thermal properties."""
    table = _table("phonons")
    sizes = f"{' x '.join(map(str, found.supercell))}, {found.supercell_atoms} atoms"
    table.add_row("supercell", f"{sizes}, {found.displacements} displacements in one batch")
    table.add_row("primitive cell", f"{found.primitive_atoms} atoms")
    table.add_row("frequencies", f"{_rounded(found.lowest, 3):.3f} to {found.bands.max():.3f} THz (negative: imaginary)")
    special = {name: found.bands[np.argmin(np.abs(found.path - at))] for at, name in found.ticks}
    for name, values in special.items():
        table.add_row(
            f"at {name}",
            ", ".join(f"{_rounded(value, 2):.2f}" for value in values[:12]) + " THz" + (" ..." if len(values) > 12 else ""),
        )
    table.add_row("zero-point energy", f"{found.zero_point:.4f} eV per primitive cell")
    for at, energy, entropy, heat in zip(
        found.temperature, found.free_energy, found.entropy, found.heat_capacity, strict=True
    ):
        table.add_row(f"{at:g} K", f"F {energy:.4f} eV, S {entropy:.2f} J/K/mol, Cv {heat:.2f} J/K/mol of primitive cells")
    return table


def phonons_plot(found: Phonons, path: Path, title: str) -> None:
    """Bands along the path and the density of states beside them."""
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    bands, density = figure.subplots(1, 2, sharey=True, width_ratios=[3, 1])
    breaks = np.flatnonzero(np.diff(found.path) < 1e-9) + 1
    for part in np.split(np.arange(len(found.path)), breaks):
        bands.plot(found.path[part], found.bands[part], color=BLUE, lw=1)
    names: dict[float, str] = {}
    for at, name in found.ticks:
        names[round(at, 6)] = f"{names[round(at, 6)]}|{name}" if names.get(round(at, 6), name) != name else name
    bands.set_xticks(list(names), list(names.values()))
    bands.axhline(0, color=GREY, lw=0.8)
    bands.set(
        ylabel="frequency (THz)",
        xlim=(found.path[0], found.path[-1]),
        ylim=(1.03 * min(0.0, found.lowest), 1.03 * found.bands.max()),
    )
    density.plot(found.density, found.frequency, color=BLUE, lw=1)
    density.set(xlabel="density (1/THz)", xlim=(0, None))
    for axes in (bands, density):
        clean(axes)
    save(figure, path, title)


def elasticity(found: Elasticity) -> Table:
    """Elastic constants and moduli."""
    table = _table("elastic constants, GPa (order xx yy zz yz xz xy)")
    for name, row in zip(_AXES, found.constants, strict=True):
        table.add_row(name, " ".join(f"{_rounded(value, 2):8.2f}" for value in row))
    if found.cubic is not None:
        table.add_row("cubic", "C11 {:.2f}, C12 {:.2f}, C44 {:.2f} GPa".format(*found.cubic))
    change = np.abs(found.clamped - found.constants)
    table.add_row(
        "atoms", f"relaxed at every strain; held in the strained cell a constant is up to {change.max():.2f} GPa larger"
    )
    if found.cubic is not None and change.max() > 0.005:
        table.add_row("clamped C44", f"{np.diag(found.clamped)[3:].mean():.2f} GPa")
    for name, values in (("bulk modulus", found.bulk), ("shear modulus", found.shear)):
        table.add_row(name, "Voigt {:.2f}, Reuss {:.2f}, Hill {:.2f} GPa".format(*values))
    table.add_row("Young, Poisson", f"{found.young:.2f} GPa, {found.poisson:.3f} (Hill)")
    table.add_row("stability", f"eigenvalues {found.eigenvalues[0]:.2f} to {found.eigenvalues[-1]:.2f} GPa")
    table.add_row("asymmetry", f"{found.asymmetry:.2g} GPa")
    table.add_row(
        "residual stress", " ".join(f"{_rounded(value, 3):.3f}" for value in found.stress) + " GPa (positive: tension)"
    )
    return table


def elasticity_plot(found: Elasticity, path: Path, title: str) -> None:
    """The constants as a coloured table."""
    figure = Figure(figsize=(5, 4.4), layout="constrained")
    axes = figure.subplots()
    largest = np.abs(found.constants).max()
    image = axes.imshow(found.constants, cmap="RdBu_r", vmin=-largest, vmax=largest)
    for (i, j), value in np.ndenumerate(found.constants):
        color = "white" if abs(value) > 0.6 * largest else "black"
        axes.text(j, i, f"{_rounded(value, 1):.1f}", ha="center", va="center", fontsize=8, color=color)
    axes.set_xticks(range(6), _AXES)
    axes.set_yticks(range(6), _AXES)
    figure.colorbar(image, label="elastic constant (GPa)")
    save(figure, path, title)


def compression(found: Compression) -> Table:
    """Equilibrium volume and bulk modulus."""
    table = _table("equation of state (Birch-Murnaghan, third order)")
    low, high = found.volumes[[0, -1]]
    table.add_row("volumes", f"{len(found.volumes)} from {low:.3f} to {high:.3f} Å³, in one batch")
    table.add_row("V0", f"{found.volume:.4f} Å³, {found.volume / found.atoms:.4f} Å³/atom")
    table.add_row("E0", f"{found.energy:.6f} eV")
    table.add_row("B0", f"{found.bulk:.2f} GPa")
    table.add_row("B0'", f"{found.derivative:.2f}")
    table.add_row("misfit", f"{found.misfit:.3g} meV/atom, root mean square")
    table.add_row("largest force", f"{found.forces_max:.2g} eV/Å: atoms are scaled with the cell, not relaxed")
    return table


def compression_plot(found: Compression, path: Path, title: str) -> None:
    """Energies per atom and the curve through them."""
    figure = Figure(figsize=(5.5, 4), layout="constrained")
    axes = figure.subplots()
    grid = np.linspace(found.volumes[0], found.volumes[-1], 200)
    axes.plot(grid / found.atoms, 1e3 * (found.curve(grid) - found.energy) / found.atoms, color=BLUE, lw=1.2)
    axes.plot(found.volumes / found.atoms, 1e3 * (found.energies - found.energy) / found.atoms, "o", color=ORANGE, ms=5)
    axes.axvline(found.volume / found.atoms, color=GREY, lw=0.8, ls=":")
    axes.set(xlabel="volume (Å³/atom)", ylabel="energy above the minimum (meV/atom)")
    clean(axes)
    save(figure, path, title)


def reaction_path(found: ReactionPath) -> Table:
    """Barriers and the energies of the images."""
    table = _table("minimum-energy path")
    for name, value in (
        ("barrier forward", found.barrier),
        ("barrier backward", found.barrier_back),
        ("END - START", found.energies[-1]),
    ):
        table.add_row(name, f"{value:.4f} eV, {value / KJ_PER_MOL:.2f} kJ/mol")
    table.add_row("highest image", f"{found.highest} of 0 to {len(found.images) - 1}, climbing")
    table.add_row("energies", ", ".join(f"{value:.4f}" for value in found.energies) + " eV")
    table.add_row("length", f"{found.distances[-1]:.3f} Å")
    table.add_row("steps", f"{found.steps}, largest force on the band {found.forces_max:.2g} eV/Å")
    return table


def reaction_path_plot(found: ReactionPath, path: Path, title: str) -> None:
    """Energies of the images and the curve that their forces give between them."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    curve = fit_images(found.images)
    axes.plot(curve.fit_path, curve.fit_energies, color=BLUE, lw=1.2)
    axes.plot(curve.path, curve.energies, "o", color=ORANGE, ms=5)
    axes.set(xlabel="path (Å)", ylabel="energy (eV)")
    clean(axes)
    save(figure, path, title)


def _rounded(value: float, digits: int) -> float:
    """Without the sign of a zero."""
    return round(float(value), digits) + 0.0


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    return table
