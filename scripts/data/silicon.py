#!/usr/bin/env python3
"""Make the periodic silicon reference data set (PBE, Quantum ESPRESSO).

Structures: thermally displaced and strained 8-atom diamond cells, 16- and
32-atom cells, 63-atom vacancies, displaced 64-atom cells, liquid-like snapshots
(melted with the Stillinger-Weber potential) and the relaxed lattice.  Labels: total
energy (the smearing free energy, eV), forces (eV/Angstrom) and stress
(eV/Angstrom^3, ASE's sign: positive = tension).  Stages, resumable:

  label     every structure with pw.x                -> WORK/labels.jsonl
  assemble  extended XYZ files of what there is      -> OUT/{train,test}.xyz
  check     forces and stress against energies, cut-off -> WORK/checks.json

Needs pw.x and the pseudopotential of Debian's packages quantum-espresso and
quantum-espresso-data.  Nothing is written for an SCF that did not converge.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.build import bulk
from ase.io import read
from records import append, atomic_write, console, load, progress

PSEUDO = "Si.pbe-rrkj.UPF"
PSEUDO_DIR = "/usr/share/espresso/pseudo"  # where Debian's quantum-espresso-data puts it
ECUT = 20.0  # Ry; the density cut-off is 4 times this
DEGAUSS = 0.01  # Ry, Gaussian smearing
CONV = 1e-9  # Ry
NK = 4  # shifted Monkhorst-Pack divisions along one conventional lattice vector
SYMMETRIC = ("lattice", "hydrostatic_8", "uniaxial_8", "shear_8")  # undisplaced: pw.x may use symmetry
RY, BOHR = units.Ry, units.Bohr
SEED = 20260


# --------------------------------------------------------------------------- Quantum ESPRESSO


class NotConverged(RuntimeError):
    """pw.x did not converge or did not finish."""


def kgrid(at: Atoms, nk: int = NK, a0: float = 5.47) -> tuple[int, int, int]:
    """Divisions of constant density: nk per conventional lattice vector (unstrained length)."""
    return tuple(max(1, int(np.ceil(nk * a0 / length - 0.15))) for length in at.cell.lengths())


def pw_input(at: Atoms, out: str, ecut: float, k, mixing: float, degauss: float, nosym: bool) -> str:
    """Input text of a pw.x SCF (positions and cell in Angstrom)."""
    bands = int(np.ceil(2.16 * len(at))) + 1
    rows = lambda a: "\n".join(" ".join(f"{x:.12f}" for x in v) for v in a)  # noqa: E731
    pos = "\n".join("Si " + " ".join(f"{x:.12f}" for x in p) for p in at.positions)
    return f"""&control
 calculation='scf', prefix='si', outdir='{out}', pseudo_dir='{os.environ.get("ESPRESSO_PSEUDO", PSEUDO_DIR)}',
 tprnfor=.true., tstress=.true., disk_io='none'
/
&system
 ibrav=0, nat={len(at)}, ntyp=1, ecutwfc={ecut}, ecutrho={4 * ecut}, occupations='smearing',
 smearing='gaussian', degauss={degauss}, nbnd={bands}, nosym={".true." if nosym else ".false."}
/
&electrons
 conv_thr={CONV * len(at) / 8:.2e}, mixing_beta={mixing}, electron_maxstep=80, diago_david_ndim=2
/
ATOMIC_SPECIES
Si 28.085 {PSEUDO}
K_POINTS automatic
{k[0]} {k[1]} {k[2]} 1 1 1
CELL_PARAMETERS angstrom
{rows(at.cell)}
ATOMIC_POSITIONS angstrom
{pos}
"""


def parse(text: str, n: int) -> dict:
    """Energy (eV), forces (eV/A), stress (eV/A^3, tension positive) of a pw.x output."""
    if "convergence has been achieved" not in text or "JOB DONE" not in text:
        raise NotConverged("no convergence")
    energy = float(re.findall(r"^!\s+total energy\s+=\s+(\S+) Ry", text, re.M)[-1]) * RY
    block = text.split("Forces acting on atoms")[1].split("Total force")[0]
    forces = [
        [float(x) for x in m] for m in re.findall(r"atom\s+\d+ type\s+\d+\s+force =\s+(\S+)\s+(\S+)\s+(\S+)", block)[:n]
    ]
    lines = text.split("total   stress")[1].splitlines()[1:4]
    stress = -np.array([[float(x) for x in line.split()[:3]] for line in lines]) * RY / BOHR**3
    return {"energy": energy, "forces": (np.array(forces) * RY / BOHR).tolist(), "stress": stress.tolist()}


def compute(at: Atoms, ecut: float = ECUT, nk: int = NK, degauss: float = DEGAUSS, nosym: bool = True) -> dict:
    """Label one structure; retries with gentler mixing, raises NotConverged.

    nosym=False only for undisplaced lattices (same k-point set, fewer of them computed).
    """
    for mixing in (0.7, 0.3, 0.1):
        tmp = tempfile.mkdtemp(prefix="si-pw-")
        start = time.perf_counter()
        try:
            text = pw_input(at, tmp, ecut, kgrid(at, nk), mixing, degauss, nosym)
            run = subprocess.run(
                [os.environ.get("PW", "pw.x")],
                input=text,
                capture_output=True,
                text=True,
                cwd=tmp,
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
            res = parse(run.stdout, len(at))
            cpu = re.search(r"PWSCF\s+:\s+(.*?) CPU", run.stdout)
            return res | {
                "seconds": time.perf_counter() - start,
                "cpu": cpu[1].strip() if cpu else "",
                "mixing": mixing,
                "iterations": int(re.search(r"achieved in\s+(\d+) iterations", run.stdout)[1]),
            }
        except (NotConverged, IndexError):
            continue
        finally:
            shutil.rmtree(tmp, ignore_errors=True)
    raise NotConverged("all mixings")


# --------------------------------------------------------------------------- structures


def cell(rep, a: float) -> Atoms:
    """Diamond supercell of conventional cells."""
    return bulk("Si", "diamond", a=a, cubic=True) * rep


def strained(at: Atoms, strain: np.ndarray) -> Atoms:
    """Apply x -> x (1 + strain) to cell and positions."""
    at = at.copy()
    at.set_cell(at.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    return at


def displaced(at: Atoms, sigma: float, rng) -> Atoms:
    """Gaussian displacements of sigma Angstrom per component, centre kept."""
    at = at.copy()
    d = rng.normal(size=at.positions.shape) * sigma
    at.positions += d - d.mean(0)
    return at


def stillinger_weber(pos: np.ndarray, lattice: np.ndarray) -> tuple[float, np.ndarray]:
    """Stillinger-Weber silicon: energy (eV) and forces (eV/A); orthorhombic cell lengths in Angstrom."""
    eps, sig, cut = 2.1683, 2.0951, 1.8 * 2.0951
    big_a, big_b, lam, gam = 7.049556277, 0.6022245584, 21.0, 1.2
    n = len(pos)
    shifts = np.array(list(np.ndindex(3, 3, 3))) - 1
    d = (pos[None, :, None] + shifts * lattice) - pos[:, None, None]  # i, j, image
    r2 = (d**2).sum(-1)
    i, j, s = np.nonzero((r2 < (cut - 1e-3) ** 2) & (r2 > 1e-6))
    v = d[i, j, s]
    r = np.sqrt(r2[i, j, s])
    ex = np.exp(sig / (r - cut))
    pair = big_a * eps * (big_b * (sig / r) ** 4 - 1) * ex
    dpair = big_a * eps * (-4 * big_b * (sig / r) ** 4 / r) * ex - pair * sig / (r - cut) ** 2
    energy = 0.5 * pair.sum()
    fv = (0.5 * dpair / r)[:, None] * v  # dE/dv of each directed pair
    start = np.searchsorted(i, np.arange(n + 1))
    g = np.exp(gam * sig / (r - cut))
    dg = -g * gam * sig / (r - cut) ** 2
    for k in range(n):
        sl = slice(start[k], start[k + 1])
        u = v[sl] / r[sl, None]
        c = u @ u.T
        t = c + 1 / 3
        np.fill_diagonal(t, 0.0)
        w = lam * eps * t**2
        energy += 0.5 * g[sl] @ w @ g[sl]
        radial = dg[sl] * (w @ g[sl])
        dc = lam * eps * 2 * t * np.outer(g[sl], g[sl])  # dE/dcos, each unordered pair seen twice
        ang = (dc @ u - (dc * c).sum(1)[:, None] * u) / r[sl, None]
        fv[sl] += radial[:, None] * u + ang
    f = np.zeros((n, 3))
    np.add.at(f, i, fv)
    np.add.at(f, j, -fv)
    return float(energy), f


def melt(rep, a: float, seed: int, hot: float, cold: float, n: int) -> list[Atoms]:
    """n snapshots, 0.5 ps apart, of a Stillinger-Weber melt in a fixed cell (temperatures in K)."""
    rng = np.random.default_rng(seed)
    at = cell(rep, a)
    mass, lattice, pos = 28.085, at.cell.lengths(), at.positions.copy()
    dt, friction = 2.0 * units.fs, 0.02 / units.fs
    vel = rng.normal(size=pos.shape) * np.sqrt(units.kB * 2 * hot / mass)
    force, out = stillinger_weber(pos, lattice)[1], []
    for step in range(2000 + 250 * n):  # BAOAB
        kt = units.kB * (hot if step < 1200 else cold)
        vel += 0.5 * dt * force / mass
        pos = pos + 0.5 * dt * vel
        damp = np.exp(-friction * dt)
        vel = damp * vel + np.sqrt((1 - damp**2) * kt / mass) * rng.normal(size=pos.shape)
        pos = pos + 0.5 * dt * vel
        force = stillinger_weber(pos, lattice)[1]
        vel += 0.5 * dt * force / mass
        if step >= 2000 and (step - 2000) % 250 == 249:
            snap = Atoms(f"Si{len(pos)}", positions=pos, cell=at.cell, pbc=True)
            snap.wrap()
            out.append(snap)
    return out


def structures(a: float, work: Path) -> list[tuple[str, str, Atoms]]:
    """Every structure as (key, kind, atoms); a = relaxed lattice constant (Angstrom).

    The melts are kept in WORK/melts.json, so that they are made once.
    """
    file = work / "melts.json"
    if not file.exists():
        runs = {
            "liquid_16": ((2, 1, 1), 4500, 2400, 9),
            "liquid_32": ((2, 2, 1), 4500, 2200, 5),
            "liquid_64": ((2, 2, 2), 4500, 2000, 2),
        }
        melts = {
            k: [(m.cell.tolist(), m.positions.tolist()) for m in melt(rep, a * 0.985, SEED + i, hot, cold, n)]
            for i, (k, (rep, hot, cold, n)) in enumerate(runs.items(), 1)
        }
        atomic_write(file, json.dumps(melts))
    melts = {
        k: [Atoms(f"Si{len(p)}", positions=p, cell=c, pbc=True) for c, p in v]
        for k, v in json.loads(file.read_text()).items()
    }

    rng = np.random.default_rng(SEED)
    c8 = cell((1, 1, 1), a)
    out: list[tuple[str, str, Atoms]] = [("lattice/0", "lattice", c8.copy())]

    def add(kind, at):
        out.append((f"{kind}/{sum(k == kind for _, k, _ in out)}", kind, at))

    for e in (-0.08, -0.07, -0.06, -0.05, -0.04, -0.03, -0.02, -0.01, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08):
        add("hydrostatic_8", strained(c8, np.eye(3) * e))
    for i in range(12):  # symmetric strains without displacements
        e = np.zeros((3, 3))
        e[i % 3, i % 3] = (-0.08, -0.05, -0.025, 0.025, 0.05, 0.08)[i // 2]
        add("uniaxial_8", strained(c8, e))
    for i in range(12):
        e, p = np.zeros((3, 3)), ((0, 1), (0, 2), (1, 2))[i % 3]
        e[p] = e[p[::-1]] = (-0.055, -0.04, -0.02, 0.015, 0.03, 0.06)[i // 2]
        add("shear_8", strained(c8, e))
    for sigma, n in ((0.02, 7), (0.05, 10), (0.1, 12), (0.16, 7)):
        for _ in range(n):
            add("displaced_8", displaced(c8, sigma, rng))
    for i in range(14):  # isotropic strain with displacements
        e = np.eye(3) * rng.uniform(-0.08, 0.08)
        add("hydrostatic_displaced_8", displaced(strained(c8, e), (0.03, 0.07, 0.1)[i % 3], rng))
    for _ in range(18):  # general strain with displacements
        e = rng.uniform(-0.06, 0.06, (3, 3))
        add("strained_8", displaced(strained(c8, 0.5 * (e + e.T)), rng.uniform(0.02, 0.1), rng))
    for i in range(14):
        e = rng.uniform(-0.03, 0.03, (3, 3))
        add("displaced_16", displaced(strained(cell((2, 1, 1), a), 0.5 * (e + e.T)), (0.04, 0.07, 0.1, 0.14)[i % 4], rng))
    for i in range(8):
        e = rng.uniform(-0.02, 0.02, (3, 3))
        add("displaced_32", displaced(strained(cell((2, 2, 1), a), 0.5 * (e + e.T)), (0.04, 0.07, 0.1)[i % 3], rng))
    for kind in ("liquid_16", "liquid_32"):
        for at in melts[kind]:
            add(kind, at)
    c64 = cell((2, 2, 2), a)
    for i in range(7):
        add("displaced_64", displaced(c64, (0.05, 0.08, 0.11)[i % 3], rng))
    for i in range(3):
        at = displaced(c64, 0.05, rng)
        del at[int(rng.integers(64))]
        add("vacancy_63", at)
    for at in melts["liquid_64"]:
        add("liquid_64", at)
    for i in range(6):  # towards melting
        add("displaced_8", displaced(c8, 0.12 + 0.02 * i, rng))
    for _ in range(6):
        e = rng.uniform(-0.06, 0.06, (3, 3))
        add("strained_8", displaced(strained(c8, 0.5 * (e + e.T)), rng.uniform(0.1, 0.18), rng))
    return out


def split(todo: list[tuple[str, str, Atoms]]) -> dict[str, str]:
    """key -> 'train' or 'test': every fifth of a kind is test, at least one of each kind of 3 or more."""
    by: dict[str, list[str]] = {}
    for key, kind, _ in todo:
        by.setdefault(kind, []).append(key)
    rng = np.random.default_rng(SEED + 99)
    where = {}
    for keys in by.values():
        n = 0 if len(keys) < 3 else max(1, round(len(keys) / 5))
        test = set(rng.choice(keys, n, replace=False)) if n else set()
        where |= {k: "test" if k in test else "train" for k in keys}
    return where


def published(out: Path) -> list[dict]:
    """Records of the files made before: what they hold is not computed again."""
    records = []
    for file in sorted(out.glob("*.xyz")):
        for at in read(file, ":"):
            labels = {name: np.asarray(at.calc.results[name]).tolist() for name in ("energy", "forces")}
            stress = at.get_stress(voigt=False).tolist()
            key = f"{at.info['config_type']}/{at.info['name'].rsplit('-', 1)[1]}"
            geometry = {"cell": at.cell.tolist(), "positions": at.positions.tolist()}
            records.append({"key": key, "kind": at.info["config_type"], **geometry, **labels, "stress": stress})
    return records


def current(recs: list[dict], todo) -> dict[str, dict]:
    """key -> record, only for records whose geometry is that of the structure of that name."""
    geometry = {key: at for key, _, at in todo}
    same = lambda r, at: (
        len(at) == len(r["positions"])
        and np.allclose(at.positions, r["positions"], atol=1e-7)
        and np.allclose(  # noqa: E731
            at.cell.array, r["cell"], atol=1e-9
        )
    )
    return {r["key"]: r for r in recs if r["key"] in geometry and same(r, geometry[r["key"]])}


def order(todo, sizes: bool) -> list:
    """Interleave the kinds so that a partial result is useful; small cells first if sizes."""
    seen: dict[str, int] = {}
    total = {k: sum(kind == k for _, kind, _ in todo) for _, k, _ in todo}
    ranked = []
    for i, (key, kind, at) in enumerate(todo):
        frac = seen[kind] = seen.get(kind, 0) + 1
        ranked.append((0 if len(at) < 30 or not sizes else 1, frac / total[kind], i, (key, kind, at)))
    return [r[-1] for r in sorted(ranked, key=lambda r: r[:3])]


# --------------------------------------------------------------------------- files


def lattice_constant(work: Path) -> float:
    """Relaxed PBE lattice constant (Angstrom) from a fit to seven volumes; resumable."""
    file = work / "lattice.jsonl"
    done = {r["a"]: r["energy"] for r in load(file)}
    for a in (5.32, 5.37, 5.42, 5.47, 5.52, 5.57, 5.62):
        if a not in done:
            done[a] = (r := compute(cell((1, 1, 1), a), nosym=False))["energy"]
            append(file, {"a": a, **r})
    x = np.array(sorted(done))
    p = np.polyfit(x**-2.0, [done[v] for v in x], 3)  # Birch-Murnaghan form
    roots = np.roots(np.polyder(p))
    best = [r.real**-0.5 for r in roots if abs(r.imag) < 1e-9 and r.real > 0 and np.polyval(np.polyder(p, 2), r.real) > 0]
    return round(min(best, key=lambda v: abs(v - 5.47)), 4)


def bulk_modulus(work: Path) -> float:
    """Bulk modulus (GPa) of the same fit."""
    done = {r["a"]: r["energy"] for r in load(work / "lattice.jsonl")}
    x = np.array(sorted(done))
    p = np.polyfit(x**-2.0, [done[v] for v in x], 3)
    a, h = lattice_constant(work), 1e-3
    e = lambda s: np.polyval(p, s**-2.0)  # noqa: E731
    d2 = (e(a + h) - 2 * e(a) + e(a - h)) / h**2  # d2E/da2 ; V = a^3
    return float(d2 / (9 * a) / units.GPa)


def label(work: Path, out: Path, limit: int | None, reverse: bool, large: str, only: str) -> None:
    """Label what is missing.  Several processes may share WORK with different --large/--reverse."""
    a = lattice_constant(work)
    console.print(f"lattice constant {a} A, bulk modulus {bulk_modulus(work):.1f} GPa")
    file, made = work / "labels.jsonl", 0
    every = structures(a, work)
    todo = order(every, large == "last")
    if large == "skip":
        todo = [t for t in todo if len(t[2]) < 30]
    if large == "only":
        todo = [t for t in todo if len(t[2]) >= 30]
    todo = [t for t in todo if re.search(only, t[0])]
    todo = todo[::-1] if reverse else todo
    known = published(out)
    claims = work / "claims"
    claims.mkdir(exist_ok=True)
    with progress() as bar:
        task = bar.add_task("silicon", total=len(todo))
        for key, kind, at in todo:
            if limit is not None and made >= limit:
                return
            claim = claims / key.replace("/", "-")
            if key not in current(known + load(file), every) and free(claim):
                claim.write_text(str(os.getpid()))
                rec = {"key": key, "kind": kind, "cell": at.cell.tolist(), "positions": at.positions.tolist()}
                try:
                    rec |= compute(at, nosym=kind not in SYMMETRIC)
                except NotConverged as err:
                    rec |= {"dropped": str(err)}
                append(file, rec)
                claim.unlink(missing_ok=True)
                made += 1
            bar.advance(task)


def free(claim: Path) -> bool:
    """True unless another living process works on this structure."""
    try:
        os.kill(int(claim.read_text()), 0)
    except (FileNotFoundError, ValueError, ProcessLookupError):
        return True
    return False


def extxyz(rec: dict) -> str:
    """One frame of extended XYZ (energy 1e-8 eV, forces 1e-8 eV/A, stress 1e-10 eV/A^3)."""
    flat = lambda m, d: " ".join(f"{x + 0.0:.{d}f}" for x in np.asarray(m).ravel())  # noqa: E731
    n = len(rec["positions"])
    lines = [
        str(n),
        f'Lattice="{flat(rec["cell"], 8)}" Properties=species:S:1:pos:R:3:forces:R:3 '
        f'energy={rec["energy"]:.8f} stress="{flat(rec["stress"], 10)}" config_type={rec["kind"]} '
        f'name={rec["key"].replace("/", "-")} pbc="T T T"',
    ]
    for p, f in zip(rec["positions"], rec["forces"]):
        lines.append("Si" + "".join(f"{v:15.8f}" for v in p) + "".join(f"{v + 0.0:15.8f}" for v in f))
    return "\n".join(lines) + "\n"


def assemble(work: Path, out: Path) -> None:
    """Write the .xyz files from the labels there are and print counts, ranges and sha256."""
    todo = structures(lattice_constant(work), work)
    recs = current(published(out) + load(work / "labels.jsonl"), todo)
    where = split(todo)
    for name in ("train", "test"):
        mine = [recs[k] for k, _, _ in todo if k in recs and "energy" in recs[k] and where[k] == name]
        if not mine:
            continue
        atomic_write(out / f"{name}.xyz", "".join(extxyz(r) for r in mine))
        kinds: dict[str, int] = {}
        for r in mine:
            kinds[r["kind"]] = kinds.get(r["kind"], 0) + 1
        e = [r["energy"] / len(r["positions"]) for r in mine]
        f = np.concatenate([np.asarray(r["forces"]).ravel() for r in mine])
        s = np.array([r["stress"] for r in mine]) / units.GPa
        console.print(
            f"{name}: {len(mine)} {kinds}\n  E/atom {min(e):.4f}..{max(e):.4f} eV, F rms {np.sqrt((f**2).mean()):.3f}, "
            f"max {np.abs(f).max():.3f} eV/A, stress diag {s[:, range(3), range(3)].min():.2f}.."
            f"{s[:, range(3), range(3)].max():.2f} GPa"
        )
    console.print(
        "dropped:",
        sum("dropped" in r for r in recs.values()),
        "of",
        len(todo),
        "structures; seconds:",
        round(sum(r.get("seconds", 0) for r in recs.values())),
    )
    for f in sorted(out.glob("*.xyz")):
        print(f"{hashlib.sha256(f.read_bytes()).hexdigest()}  {f.name}  {f.stat().st_size / 1e6:.3f} MB")


def check(work: Path) -> None:
    """Forces and stress against energy differences; a higher cut-off; one structure."""
    rng = np.random.default_rng(5)
    a = lattice_constant(work)
    at = displaced(
        strained(cell((1, 1, 1), a), np.array([[0.02, 0.01, 0], [0.01, -0.01, 0.015], [0, 0.015, 0.01]])), 0.08, rng
    )
    ref = compute(at)
    f, s, res = np.asarray(ref["forces"]), np.asarray(ref["stress"]), {}
    d = rng.normal(size=f.shape)
    d /= np.linalg.norm(d)
    e = []
    for h in (0.02, -0.02):
        x = at.copy()
        x.positions += h * d
        e.append(compute(x)["energy"])
    res["force"] = {"analytic": float((f * d).sum()), "numeric": -(e[0] - e[1]) / 0.04}
    res["net_force"] = float(np.linalg.norm(f.sum(0)))
    for name, eps in {
        "volume": np.eye(3) / 3,
        "xx": np.diag([1.0, 0, 0]),
        "xy": np.array([[0, 0.5, 0], [0.5, 0, 0], [0, 0, 0]]),
    }.items():
        e = [compute(strained(at, h * eps))["energy"] for h in (0.005, -0.005)]
        res[f"stress_{name}"] = {"analytic": float((s * eps).sum()), "numeric": (e[0] - e[1]) / 0.01 / at.get_volume()}
    for name, kw in {"ecut28": {"ecut": 28.0}}.items():
        r = compute(at, **kw)
        df, ds = np.asarray(r["forces"]) - f, (np.asarray(r["stress"]) - s) / units.GPa
        res[name] = {
            "de_per_atom": (r["energy"] - ref["energy"]) / len(at),
            "df_rms": float((df**2).mean() ** 0.5),
            "df_max": float(np.abs(df).max()),
            "ds_max_GPa": float(np.abs(ds).max()),
        }
    res["force_rms"] = float((f**2).mean() ** 0.5)
    console.print(res)
    atomic_write(work / "checks.json", json.dumps(res, indent=1))


def main(argv=None) -> int:
    """Command line."""
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--work", type=Path, default=Path("build/data/silicon"), help="work directory (resumable)")
    ap.add_argument("--out", type=Path, default=Path("data/silicon"), help="where the .xyz files go")
    ap.add_argument("--label", action="store_true", help="only label")
    ap.add_argument("--assemble", action="store_true", help="only write the .xyz files of the labels there are")
    ap.add_argument("--check", action="store_true", help="only run the checks")
    ap.add_argument("--limit", type=int, help="stop after this many new labels")
    ap.add_argument("--reverse", action="store_true", help="work from the end of the list")
    ap.add_argument(
        "--large",
        choices=("mixed", "last", "skip", "only"),
        default="mixed",
        help="what to do with cells of 30 atoms or more",
    )
    ap.add_argument("--only", default="", metavar="REGEX", help="label only structures whose name (kind/number) matches")
    a = ap.parse_args(argv)
    a.work.mkdir(parents=True, exist_ok=True)
    every = not (a.label or a.assemble or a.check)
    if a.label or every:
        label(a.work, a.out, a.limit, a.reverse, a.large, a.only)
    if a.assemble or every:
        assemble(a.work, a.out)
    if a.check:
        check(a.work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
