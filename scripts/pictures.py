#!/usr/bin/env python3
"""The pictures of README and documentation, drawn into docs/images: the theory's from the code, the first from a trained model.

    .venv/bin/python scripts/pictures.py [RUN]

RUN is the directory of a model trained on data/malonaldehyde (as ./scripts/quickstart leaves it); without it the picture that
needs a model stays as it is.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import ase.io
import matplotlib.pyplot as plt
import numpy as np
from ase.data import covalent_radii
from ase.data.colors import jmol_colors
from PIL import Image

from mlff import Potential
from mlff.models import radial
from mlff.models.angular import spherical_harmonics
from mlff.models.saturation import saturated

ROOT = Path(__file__).parents[1]
DATA, IMAGES = ROOT / "data" / "malonaldehyde", ROOT / "docs" / "images"
BLUE, RED, GREY = "#3f51b5", "#d9534f", "#8a8f98"
STYLE = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10, "legend.frameon": False}


def save(figure, name: str) -> None:
    """A small PNG file of 128 colours; the same picture is the same file."""
    file = IMAGES / f"{name}.png"
    figure.savefig(file, dpi=110, metadata={"Software": None})
    plt.close(figure)
    with Image.open(file) as image:
        image.convert("RGB").quantize(128).save(file, optimize=True)
    print(f"{file}: {file.stat().st_size / 1000:.0f} kB")


def overview(potential: Potential) -> None:
    """What comes in, how well it is learned, and what is had from it."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10, 3.1), layout="constrained")
    molecule(left, ase.io.read(DATA / "train.xyz", index=3))
    for temperature, color in (("600K", RED), ("300K", BLUE)):
        frames = ase.io.read(DATA / f"test_{temperature}.xyz", index=":")
        forces = np.concatenate([frame.get_forces() for frame in frames])
        predicted = np.concatenate([result.forces for result in potential.predict(frames)])
        error = 1000 * np.sqrt(np.mean((predicted - forces) ** 2))
        middle.plot(forces.ravel(), predicted.ravel(), ".", ms=1.5, color=color, rasterized=True)
        middle.plot([], [], "o", ms=4, color=color, label=f"{temperature[:-1]} K: {error:.1f} meV/Å")
        print(f"{temperature}: {error:.2f} meV/Å, {len(frames)} structures")
    middle.set(title="2  Errors on structures kept aside", xlabel="reference force, eV/Å", ylabel="predicted force, eV/Å")
    middle.legend(handletextpad=0.1)
    path = ase.io.read(DATA / "path.xyz", index=":")
    where = [frame.info["q"] for frame in path]
    for energies, style, label in (
        ([frame.get_potential_energy() for frame in path], "o", "reference"),
        ([result.energy for result in potential.predict(path)], "-", "mlff"),
    ):
        right.plot(
            where,
            np.subtract(energies, energies[0]) * 1000,
            style,
            color=BLUE if style == "-" else "black",
            ms=4,
            label=label,
        )
    right.set(title="3  A proton changes its oxygen", xlabel="transfer coordinate, Å", ylabel="energy, meV")
    right.legend()
    save(figure, "overview")


def molecule(axes, atoms) -> None:
    """Atoms, bonds and forces in the plane of the molecule."""
    centered = atoms.positions - atoms.positions.mean(axis=0)
    plane = np.linalg.svd(centered)[2][:2].T
    xy, forces = centered @ plane, atoms.get_forces() @ plane
    radii = covalent_radii[atoms.numbers]
    for i, j in zip(*np.nonzero(np.triu(atoms.get_all_distances() < 1.25 * np.add.outer(radii, radii), 1)), strict=True):
        axes.plot(*xy[[i, j]].T, color=GREY, lw=3, zorder=1)
    axes.scatter(*xy.T, s=500 * radii, c=jmol_colors[atoms.numbers], edgecolors="black", linewidths=0.7, zorder=2)
    axes.quiver(*xy.T, *forces.T, color=RED, angles="xy", scale_units="xy", scale=3, width=0.009, zorder=3)
    axes.set(title="1  Reference energies and forces", aspect="equal")
    axes.margins(0.25)
    axes.axis("off")


def radial_functions() -> None:
    """The first radial functions of a C-C pair, and the two factors common to all."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.8), layout="constrained")
    cutoff, bond = 5.0, 2 * covalent_radii[6]
    r = np.linspace(0.6, cutoff, 400, dtype=np.float32)
    t = radial.bond_coordinate(r, bond)
    fading = np.asarray(radial.envelope(r, cutoff, 4) * t / radial.bond_coordinate(np.float32(1.5), 1.0))
    for n, function in enumerate(np.asarray(radial.chebyshev_basis(t, 6)).T):
        left.plot(r, function * fading, color=plt.cm.viridis(n / 6), label=f"{n}")
    left.set(title="first six radial functions", xlabel="distance C-C, Å", ylim=(-1.6, 5))
    left.legend(title="n", ncols=2)
    right.plot(r, t, color=BLUE, label="coordinate t")
    for power, style in ((4, "-"), (6, "--")):
        right.plot(r, radial.envelope(r, cutoff, power), style, color=RED, label=f"envelope {power}")
    right.axvline(bond, color=GREY, lw=0.8)
    right.annotate("bond", (bond + 0.05, 0.03), color=GREY)
    right.set(title="coordinate and envelope", xlabel="distance C-C, Å")
    right.legend()
    save(figure, "radial")


def saturation() -> None:
    """The norm of a density before and after."""
    figure, axes = plt.subplots(figsize=(4.2, 2.8), layout="constrained")
    x = np.linspace(0, 4, 400, dtype=np.float32)
    norm = np.asarray(saturated([x[None, :, None]], np.ones((len(x), 1), np.float32))[0]).ravel()
    axes.axvspan(0, 1, color=BLUE, alpha=0.1, lw=0)
    axes.annotate("training data", (0.1, 3.6), color=BLUE)
    axes.plot(x, x, "--", color=GREY, label="as it is")
    axes.plot(x, norm, color=BLUE, label="saturated")
    axes.set(xlabel="norm, in units of the largest of the data", ylabel="norm that the model uses", ylim=(0, 4))
    axes.legend(loc="center right")
    save(figure, "saturation")


def sphere() -> None:
    """A density of three neighbours, degrees up to 3, its square and its cube, on a map of the sphere."""
    longitude, latitude = np.meshgrid(np.linspace(-np.pi, np.pi, 241), np.linspace(-np.pi / 2, np.pi / 2, 121))

    def harmonics(longitude, latitude):
        points = [np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)]
        return np.concatenate(spherical_harmonics(3, np.stack(points, axis=-1)))

    neighbors = np.radians([[-100, 20], [10, 35], [80, -40]]).T
    density = np.einsum("ln,lxy->xy", harmonics(*neighbors), harmonics(longitude, latitude))
    figure, panels = plt.subplots(1, 3, figsize=(9, 2), subplot_kw={"projection": "mollweide"}, layout="constrained")
    for power, axes in enumerate(panels, 1):
        values = density**power
        top = np.abs(values).max()
        axes.pcolormesh(longitude, latitude, values, cmap="RdBu_r", vmin=-top, vmax=top, shading="gouraud", rasterized=True)
        axes.plot(*neighbors, "k.", ms=4)
        axes.set(title=["density", "its square", "its cube"][power - 1], xticks=[], yticks=[])
    save(figure, "sphere")


def vanishing_gradients() -> None:
    """What the page of that name computes."""
    page = (ROOT / "docs" / "theory" / "vanishing_gradients.md").read_text(encoding="utf-8")
    names: dict = {}
    exec(page.partition("```python\n")[2].partition("```")[0], names)
    figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
    for (name, norms), color in zip(names["found"].items(), (RED, BLUE, "#3a9d5d"), strict=True):
        axes.plot(np.arange(1, len(norms) + 1), norms, "o-", ms=3, color=color, label=name)
    axes.plot(np.arange(1, 21), 0.25 ** (20.0 - np.arange(1, 21)), ":", color=GREY, label="a quarter a layer")
    axes.set(
        yscale="log", xlabel="layer, 20 is the last", ylabel="norm of the gradient, last = 1", xticks=[1, 5, 10, 15, 20]
    )
    axes.legend()
    save(figure, "vanishing_gradients")


def icon() -> None:
    """Two atoms and their bond, for the browser's tab."""
    figure = plt.figure(figsize=(0.6, 0.6))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.plot([0.25, 0.75], [0.3, 0.7], color=GREY, lw=6)
    axes.scatter([0.25, 0.75], [0.3, 0.7], s=[500, 300], c=[BLUE, RED])
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.axis("off")
    figure.savefig(IMAGES / "icon.png", dpi=110, transparent=True, metadata={"Software": None})
    plt.close(figure)


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    with plt.rc_context(STYLE):
        if sys.argv[1:]:
            overview(Potential.load(Path(sys.argv[1]) / "model.safetensors"))
        for draw in (radial_functions, saturation, sphere, vanishing_gradients, icon):
            draw()


if __name__ == "__main__":
    main()
