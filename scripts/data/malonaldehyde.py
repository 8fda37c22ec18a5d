#!/usr/bin/env python3
"""Make the malonaldehyde reference data set (PBE0-D3(BJ)/def2-SVP with PySCF).

The enol form of malonaldehyde (C3H4O2, 9 atoms, intramolecular O-H...O hydrogen
bond) is sampled by Langevin dynamics with GFN2-xTB (tblite through ASE), and the
snapshots are labelled with density-fitted PBE0-D3(BJ)/def2-SVP energies and
forces.  Stages, each of them resumable:

  sample    GFN2-xTB trajectories                     -> WORK/sample/<id>.xyz
  label     isolated atoms, snapshots, transfer path  -> WORK/labels.jsonl
  assemble  extended XYZ files of what there is       -> OUT/*.xyz
  check     finite differences, plain PySCF, grids    -> WORK/checks.json

Units everywhere outside the quantum chemistry kernel: eV, Angstrom, eV/Angstrom.
Energies are total (all-electron) energies including the D3(BJ) term.

Set OMP_NUM_THREADS=1 for reproducible timings.  Nothing is written for an
electronic structure that did not converge.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.io import read, write
from records import append, atomic_write, console, load, progress

XC = "pbe0"
BASIS = "def2-svp"
AUXBASIS = "def2-universal-jkfit"
GRID_LEVEL = 3
HYBRID = 0.25  # exact exchange in PBE0
GRAD_TOL = 5e-6  # 2-norm of the occupied-virtual block of 4*F (hartree); PySCF's conv_tol_grad measure is 74 times smaller
PLAIN_GRAD_TOL = 1e-6  # conv_tol_grad where plain PySCF is used
ENERGY_TOL = 1e-10  # hartree, estimated remaining energy error
SYMBOLS = "OCCCOHHHH"  # O1 C1 C2 C3 O2 H(O) H(C1) H(C2) H(C3)
O1, C1, C2, C3, O2, HT, H1, H2, H3 = range(9)
MIRROR = [O2, C3, C2, C1, O1, HT, H3, H2, H1]  # exchange of the two halves

# id, set, temperature (K), seed, frames
TRAJECTORIES = [
    ("train-300K-0", "train", 300.0, 1101, 250),
    ("train-300K-1", "train", 300.0, 1102, 250),
    ("train-300K-2", "train", 300.0, 1103, 250),
    ("train-300K-3", "train", 300.0, 1104, 250),
    ("test-300K-0", "test_300K", 300.0, 2101, 200),
    ("test-300K-1", "test_300K", 300.0, 2102, 200),
    ("test-600K-0", "test_600K", 600.0, 3101, 200),
    ("test-600K-1", "test_600K", 600.0, 3102, 200),
]
ROUND = {"train": 100, "test_300K": 25, "test_600K": 25}
PATH_HALF = 7  # images from the minimum to the transition state, both included
ATOM_SPIN = {"H": 1, "C": 2, "O": 2}  # unpaired electrons


# --------------------------------------------------------------------------- reference labels


class Bank:
    """Density matrices of earlier structures, to start the next SCF from.

    Densities are kept in the symmetrically orthogonalised basis of a common
    molecular frame.  A guess is the kriging estimate (Gaussian kernel of the
    aligned positions, coefficients of sum 1) from the nearest stored densities.
    """

    def __init__(self, size: int = 400, length: float = 1.2, ridge: float = 1e-6):
        self.size, self.length, self.ridge = size, length, ridge  # length in Angstrom
        self.x: list[np.ndarray] = []
        self.p: list[np.ndarray] = []

    def add(self, x: np.ndarray, p: np.ndarray) -> None:
        """Store aligned positions x (Angstrom) and density p (orthogonal basis)."""
        self.x.append(x.ravel().copy())
        self.p.append(p)
        if len(self.x) > self.size:
            del self.x[0], self.p[0]

    def guess(self, x: np.ndarray, nocc: int) -> np.ndarray | None:
        """Orthonormal occupied orbitals (nao, nocc) in the orthogonal basis, or None."""
        if not self.x:
            return None
        a = np.asarray(self.x)
        d = np.linalg.norm(a - x.ravel(), axis=1)
        pick = np.argsort(d)[:300]
        a, n = a[pick], len(pick)
        m = np.ones((n + 1, n + 1))
        d2 = ((a[:, None] - a[None]) ** 2).sum(-1)
        m[:n, :n] = np.exp(-0.5 * d2 / self.length**2) + self.ridge * np.eye(n)
        m[n, n] = 0
        w = np.linalg.solve(m, np.r_[np.exp(-0.5 * (d[pick] / self.length) ** 2), 1.0])[:n]
        p = np.tensordot(w, np.asarray([self.p[k] for k in pick]), 1)
        return np.linalg.eigh(p)[1][:, -nocc:]


class NotConverged(RuntimeError):
    """The electronic structure did not converge."""


class XCGrid:
    """A PySCF integration grid with cached orbital values and derivatives (blocks of comp x points x nao)."""

    block = 2048

    def __init__(self, mol, level: int, store: dict, key: str, hessian: bool):
        from pyscf import dft

        grids = dft.Grids(mol)
        grids.level = level
        grids.verbose = 0
        grids.build(sort_grids=False)
        c, w = grids.coords, grids.weights
        # drop points that carry no density: upper bound of the density from atomic tails
        atoms, z = mol.atom_coords(), mol.atom_charges()
        tail = np.zeros(len(w))
        for r, q in zip(atoms, z):
            tail += q * np.exp(-1.7 * np.sqrt(((c - r) ** 2).sum(1)))
        keep = np.abs(w) * tail > 1e-10
        self.coords, self.weights = np.ascontiguousarray(c[keep]), np.ascontiguousarray(w[keep])
        self.mol, self.nao, n = mol, mol.nao, int(keep.sum())
        comp, name = (10, "GTOval_sph_deriv2") if hessian else (4, "GTOval_sph_deriv1")
        buf = store.get(key)
        if buf is None or buf.size < comp * n * self.nao:
            buf = store[key] = np.empty(int(1.1 * comp * n * self.nao))
        self.blocks, off = [], 0
        for i in range(0, n, self.block):
            cc = self.coords[i : i + self.block]
            m = comp * len(cc) * self.nao
            self.blocks.append(mol.eval_gto(name, cc, comp=comp, out=buf[off : off + m]))
            off += m

    def potential(self, ni, mo: np.ndarray) -> tuple[float, float, np.ndarray, np.ndarray]:
        """XC energy, electrons, XC matrix, weighted potential; mo = occupied orbitals * sqrt(2)."""
        from pyscf.dft.numint import _scale_ao

        mo = np.asfortranarray(mo)
        rho, p = np.empty((4, len(self.weights))), 0
        for b in self.blocks:
            n = b.shape[1]
            t = [(b[c] @ mo) for c in range(4)]
            rho[0, p : p + n] = np.einsum("gi,gi->g", t[0], t[0])
            for c in (1, 2, 3):
                rho[c, p : p + n] = 2 * np.einsum("gi,gi->g", t[0], t[c])
            p += n
        exc, vxc = ni.eval_xc_eff(XC, rho, deriv=1, xctype="GGA")[:2]
        wv = vxc * self.weights
        half = wv.copy()
        half[0] *= 0.5
        v, p = np.zeros((self.nao, self.nao)), 0
        for b in self.blocks:
            n = b.shape[1]
            v += b[0].T @ _scale_ao(b[:4], half[:, p : p + n])
            p += n
        return float(exc * rho[0] @ self.weights), float(rho[0] @ self.weights), v + v.T, wv

    def gradient(self, wv: np.ndarray, dm: np.ndarray) -> np.ndarray:
        """XC part of the nuclear gradient (natm, 3), hartree/bohr, fixed grid."""
        from pyscf.dft.numint import _scale_ao

        hess = ((4, 5, 6), (5, 7, 8), (6, 8, 9))
        g, p = np.zeros((3, self.nao)), 0
        for r in self.blocks:
            n = r.shape[1]
            w = wv[:, p : p + n]
            p += n
            x0 = dm @ r[0].T  # (nao, n)
            y = dm @ _scale_ao(r[:4], w).T
            z = [w[k + 1] * x0 for k in range(3)]
            for a in range(3):
                g[a] += np.einsum("mg,mg->m", r[a + 1].T, y)
                for k in range(3):
                    g[a] += np.einsum("mg,mg->m", r[hess[a][k]].T, z[k])
        sl = self.mol.aoslice_by_atom()
        return np.array([-2 * g[:, p0:p1].sum(1) for _, _, p0, p1 in sl])


class Fitting:
    """Density-fitted Coulomb and exchange matrices and their nuclear gradient (in core)."""

    def __init__(self, mol):
        from pyscf import df

        self.mol, self.aux = mol, df.addons.make_auxmol(mol, AUXBASIS)
        from scipy.linalg import cholesky, solve_triangular

        self.solve = solve_triangular
        self.low = cholesky(self.aux.intor("int2c2e", hermi=1), lower=True)
        j3c = df.incore.aux_e2(mol, self.aux, "int3c2e", aosym="s2ij")  # (pairs, naux)
        self.packed = solve_triangular(self.low, j3c.T, lower=True, check_finite=False)
        from pyscf import lib

        self.full = lib.unpack_tril(self.packed)  # (naux, nao, nao)
        n = mol.nao
        i, j = np.tril_indices(n)
        self.tri, self.twice = (i, j), np.where(i == j, 1.0, 2.0)

    def jk(self, c: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Density, J and K for doubly occupied orbitals c (nao, nocc)."""
        n = self.mol.nao
        dm = 2 * c @ c.T
        vj = np.zeros((n, n))
        vj[self.tri] = (self.packed @ (dm[self.tri] * self.twice)) @ self.packed
        vj = np.where(np.tri(n, dtype=bool), vj, vj.T)
        half = (self.full.reshape(-1, n) @ c).reshape(-1, n, c.shape[1])  # P, i, a
        t = half.transpose(1, 0, 2).reshape(n, -1)
        return dm, vj, 2 * t @ t.T

    def gradient(self, c: np.ndarray) -> np.ndarray:
        """Gradient of E_J + HYBRID * E_K (natm, 3), hartree/bohr, at fixed c.

        (ij|P) derivatives with respect to the auxiliary centres follow from those
        with respect to the orbital centres by translation.
        """
        from pyscf import df

        mol, aux, n, no = self.mol, self.aux, self.mol.nao, c.shape[1]
        dm = 2 * c @ c.T
        fit = self.solve(self.low, self.packed @ (dm[self.tri] * self.twice), lower=True, trans=1)
        half = (self.full.reshape(-1, n) @ c).reshape(-1, n, no)
        ab = np.einsum("Pib,ia->Pab", half, c, optimize=True)
        b = self.solve(self.low, ab.reshape(len(fit), -1), lower=True, trans=1)
        gam2 = -0.5 * np.outer(fit, fit) + HYBRID * (b @ b.T)
        tmp = b.reshape(-1, no) @ c.T  # (P a), j
        gam = -2 * HYBRID * np.matmul(c, tmp.reshape(len(fit), no, n))
        gam += fit[:, None, None] * dm  # P, i, j
        ip = df.incore.aux_e2(mol, aux, "int3c2e_ip1", aosym="s1", comp=3)  # x, i, j, P
        g = np.empty((3, n, len(fit)))
        gt = gam.transpose(1, 2, 0)
        for x in range(3):
            g[x] = np.einsum("ijP,ijP->iP", ip[x], gt)
        ip2 = aux.intor("int2c2e_ip1", comp=3)
        h = np.einsum("xPQ,PQ->xP", ip2, gam2)
        out = np.empty((mol.natm, 3))
        orb, ax = mol.aoslice_by_atom(), aux.aoslice_by_atom()
        for k in range(mol.natm):
            p0, p1, q0, q1 = *orb[k, 2:], *ax[k, 2:]
            out[k] = -2 * g[:, p0:p1].sum((1, 2)) + 2 * g[:, :, q0:q1].sum((1, 2)) - 2 * h[:, q0:q1].sum(1)
        return out


class Labeller:
    """PBE0-D3(BJ)/def2-SVP energy (eV) and forces (eV/Angstrom) of malonaldehyde."""

    def __init__(self, reference: np.ndarray):
        self.reference = reference - reference[:5].mean(0)  # Angstrom, the common frame
        self.bank, self.store, self.info = Bank(), {}, {}

    def frame(self, pos: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rotation r and positions (Angstrom) moved to the common frame: x = (pos - c) @ r."""
        c = pos[:5].mean(0)
        u, _, vt = np.linalg.svd((pos - c)[:5].T @ self.reference[:5])
        d = np.sign(np.linalg.det(u @ vt))
        r = u @ np.diag([1, 1, d]) @ vt
        return r, (pos - c) @ r

    @staticmethod
    def molecule(x: np.ndarray):
        """PySCF molecule from positions in Angstrom (converted with ASE's bohr)."""
        from pyscf import gto

        return gto.M(atom=list(zip(SYMBOLS, x / units.Bohr)), unit="B", basis=BASIS, verbose=0)

    def scf_fast(self, mol, x: np.ndarray):
        """SCF with a corrected coarse grid.

        The Kohn-Sham equations are solved with the XC potential of a coarse grid
        plus a constant correction V_fine[D'] - V_coarse[D'], updated until the
        orbital gradient of the full (level 3) Fock matrix at the same density is
        below GRAD_TOL.  The stationary point is that of the level-3 functional.
        """
        from pyscf import dft, scf

        nocc = mol.nelectron // 2
        s = mol.intor_symmetric("int1e_ovlp")
        h = scf.hf.get_hcore(mol)
        e, u = np.linalg.eigh(s)
        s_half, x_half = (u * e**0.5) @ u.T, (u * e**-0.5) @ u.T
        mf = dft.RKS(mol, xc=XC).density_fit(auxbasis=AUXBASIS)
        mf.verbose = 0
        ni = mf._numint
        fit = Fitting(mol)
        coarse = XCGrid(mol, 0, self.store, "coarse", hessian=False)
        fine = XCGrid(mol, GRID_LEVEL, self.store, "fine", hessian=True)
        shift_o, tol_inner = np.zeros_like(s), 2e-3  # V_fine - V_coarse in the orthogonal basis
        start = self.bank.guess(x, nocc)
        if start is not None:
            q, tol_inner = start, (np.inf if len(self.bank.x) > 60 else 2e-3)
        else:
            p = s_half @ mf.get_init_guess(mol, "minao") @ s_half / 2
            q = np.linalg.eigh(p)[1][:, -nocc:]

        history = []
        cycles, nfine = 0, 0
        fock, dens = [], []  # DIIS history (coarse Fock without the shift, density), orthogonal basis
        for _outer in range(12):
            for _ in range(60):
                c = x_half @ q
                dm, vj, vk = fit.jk(c)
                _, _, v_c, _ = coarse.potential(ni, c * 2**0.5)
                fo = x_half @ (h + vj - 0.5 * HYBRID * vk + v_c) @ x_half
                g = (fo + shift_o) @ q
                g = 4 * (g - q @ (q.T @ g))
                cycles += 1
                if np.linalg.norm(g) < tol_inner:
                    break
                fock, dens = [*fock, fo][-9:], [*dens, q @ q.T][-9:]
                f_all = np.asarray(fock) + shift_o
                err = np.asarray([f @ p - p @ f for f, p in zip(f_all, dens)]).reshape(len(dens), -1)
                n = len(err)
                b = np.ones((n + 1, n + 1))
                b[:n, :n] = err @ err.T / (err[-1] @ err[-1])
                b[n, n] = 0
                coef = np.linalg.lstsq(b, np.r_[np.zeros(n), 1.0], rcond=1e-14)[0][:n]
                q = np.linalg.eigh(np.einsum("k,kij->ij", coef, f_all))[1][:, :nocc]
            else:
                raise NotConverged("coarse SCF")
            exc, nel, v, wv = fine.potential(ni, c * 2**0.5)
            nfine += 1
            f_fine = h + vj - 0.5 * HYBRID * vk + v
            fo = x_half @ f_fine @ x_half @ q
            gnorm = float(np.linalg.norm(4 * (fo - q @ (q.T @ fo))))
            etot = float(np.vdot(h, dm) + 0.5 * np.vdot(vj - 0.5 * HYBRID * vk, dm) + exc + mol.energy_nuc())
            history.append((cycles, gnorm))
            if gnorm < GRAD_TOL:
                break
            shift_o = x_half @ (v - v_c) @ x_half
            tol_inner = max(3e-7, 1e-3 * gnorm)
        else:
            raise NotConverged("fine SCF")
        eo, rot = np.linalg.eigh(q.T @ fo)
        mo = np.zeros((mol.nao, mol.nao))
        # virtual orbitals from the final Fock matrix, projected (only needed for the gap)
        virt = np.linalg.svd(q, full_matrices=True)[0][:, nocc:]
        ev, rv = np.linalg.eigh(virt.T @ (x_half @ f_fine @ x_half) @ virt)
        mo[:, :nocc], mo[:, nocc:] = x_half @ q @ rot, x_half @ virt @ rv
        gap = ev[0] - eo[-1]
        if gap < 0.02 or gnorm**2 / (8 * gap) > ENERGY_TOL or abs(nel - mol.nelectron) > 2e-3:
            raise NotConverged(f"gap {gap:.3f}, electrons {nel:.6f}")
        mf.mo_coeff, mf.mo_energy = mo, np.r_[eo, ev]
        mf.mo_occ = np.r_[np.full(nocc, 2.0), np.zeros(mol.nao - nocc)]
        mf.e_tot, mf.converged = etot, True
        self.info = {
            "cycles": cycles,
            "fine": nfine,
            "gnorm": gnorm,
            "electrons": nel,
            "gap": float(gap),
            "history": history,
        }
        return mf, dm, fine, wv, fit, q @ q.T

    @staticmethod
    def gradient_fast(mf, dm, fine: XCGrid, wv, fit: Fitting) -> np.ndarray:
        """Nuclear gradient (natm, 3), hartree/bohr: PySCF's one-electron part, our J, K and XC parts."""
        from pyscf import lib

        gr = mf.nuc_grad_method()
        gr.verbose, gr.grid_response, gr.auxbasis_response = 0, False, False
        zero = np.zeros((3, *dm.shape))
        gr.get_veff = lambda mol=None, dm=None: lib.tag_array(zero, aux=0, exc1_grid=None)
        de = gr.grad_elec(mf.mo_energy, mf.mo_coeff, mf.mo_occ)
        occ = np.ascontiguousarray(mf.mo_coeff[:, mf.mo_occ > 0])
        return de + gr.grad_nuc() + fine.gradient(wv, dm) + fit.gradient(occ)

    @staticmethod
    def plain(mol, level: int = GRID_LEVEL, strategy: str = "diis", grid_response: bool = False):
        """Unaccelerated PySCF: total energy (hartree) and gradient (hartree/bohr)."""
        from pyscf import dft

        mf = dft.RKS(mol, xc=XC).density_fit(auxbasis=AUXBASIS)
        mf.verbose, mf.conv_tol, mf.conv_tol_grad, mf.max_cycle = 0, ENERGY_TOL, PLAIN_GRAD_TOL, 150
        mf.grids.level = level
        if strategy == "shift":
            mf.level_shift, mf.damp = 0.3, 0.2
        if strategy == "newton":
            mf = mf.newton()
        mf.kernel()
        if not mf.converged:
            raise NotConverged(strategy)
        gr = mf.nuc_grad_method()
        gr.verbose, gr.grid_response = 0, grid_response
        return mf.e_tot, gr.kernel()

    @staticmethod
    def d3(numbers: np.ndarray, pos: np.ndarray) -> tuple[float, np.ndarray]:
        """D3(BJ) energy (eV) and gradient (eV/Angstrom), positions in Angstrom."""
        from dftd3.interface import DispersionModel, RationalDampingParam

        res = DispersionModel(numbers, pos / units.Bohr).get_dispersion(RationalDampingParam(method=XC), grad=True)
        return float(res["energy"]) * units.Hartree, res["gradient"] * units.Hartree / units.Bohr

    def __call__(self, pos: np.ndarray) -> tuple[float, np.ndarray]:
        """Energy (eV) and forces (eV/Angstrom, net force removed) at pos (Angstrom)."""
        r, x = self.frame(np.asarray(pos, float))
        mol = self.molecule(x)
        start = time.perf_counter()
        try:
            mf, dm, fine, wv, fit, p = self.scf_fast(mol, x)
            grad = self.gradient_fast(mf, dm, fine, wv, fit)
            energy, self.info["solver"] = mf.e_tot, "fast"
            self.bank.add(x, p)
        except (NotConverged, np.linalg.LinAlgError):
            for strategy in ("diis", "shift", "newton"):
                try:
                    energy, grad = self.plain(mol, strategy=strategy)
                    self.info = {"solver": strategy}
                    break
                except NotConverged:
                    continue
            else:
                raise NotConverged("all strategies") from None
        e3, g3 = self.d3(mol.atom_charges(), x)
        f = -(grad * units.Hartree / units.Bohr + g3)
        net = f.sum(0)
        f = (f - net / len(f)) @ r.T
        self.info |= {"net_force": float(np.linalg.norm(net)), "d3": e3, "seconds": time.perf_counter() - start}
        return energy * units.Hartree + e3, f


def isolated_atom(symbol: str) -> dict:
    """Spin-polarised ground state of a free atom (UKS, same functional, basis, grid)."""
    from pyscf import dft, gto

    mol = gto.M(atom=[(symbol, (0, 0, 0))], basis=BASIS, spin=ATOM_SPIN[symbol], verbose=0)
    best = None
    for guess in ("minao", "atom", "hcore"):
        for strategy in ("diis", "newton"):
            mf = dft.UKS(mol, xc=XC).density_fit(auxbasis=AUXBASIS)
            mf.verbose, mf.conv_tol, mf.conv_tol_grad, mf.max_cycle = 0, ENERGY_TOL, PLAIN_GRAD_TOL, 200
            mf.grids.level, mf.init_guess = GRID_LEVEL, guess
            mf = mf.newton() if strategy == "newton" else mf
            mf.kernel()
            if not mf.converged:
                continue
            mf.mo_coeff = mf.stability()[0]
            mf.kernel(mf.make_rdm1(mf.mo_coeff, mf.mo_occ))
            if mf.converged and (best is None or mf.e_tot < best.e_tot - 1e-9):
                best = mf
    if best is None:
        raise NotConverged(symbol)
    ss = float(best.spin_square()[0])
    e3 = Labeller.d3(mol.atom_charges(), np.zeros((1, 3)))[0]
    return {"symbol": symbol, "energy": best.e_tot * units.Hartree + e3, "s2": ss, "d3": e3}


# --------------------------------------------------------------------------- sampling


def xtb_minimum() -> Atoms:
    """The GFN2-xTB minimum of the chelated enol (Angstrom)."""
    from ase.optimize import BFGS
    from tblite.ase import TBLite

    at = Atoms(
        SYMBOLS,
        positions=[
            (-1.303, -1.016, 0),
            (-1.228, 0.207, 0),
            (0.005, 0.941, 0),
            (1.186, 0.272, 0),
            (1.296, -1.034, 0),
            (0.371, -1.411, 0),
            (-2.148, 0.814, 0),
            (-0.018, 2.015, 0),
            (2.139, 0.791, 0),
        ],
    )
    at.calc = TBLite(method="GFN2-xTB", verbosity=0)
    BFGS(at, logfile=None).run(fmax=1e-4, steps=500)
    at.calc = None
    return at


def intact(pos: np.ndarray) -> bool:
    """True if every bond of the chelated or open enol is in place (limits in Angstrom)."""
    d = lambda i, j: np.linalg.norm(pos[i] - pos[j])  # noqa: E731
    heavy = all(d(i, j) < 1.8 for i, j in ((O1, C1), (C1, C2), (C2, C3), (C3, O2)))
    return heavy and all(d(i, j) < 1.5 for i, j in ((C1, H1), (C2, H2), (C3, H3))) and min(d(O1, HT), d(O2, HT)) < 1.4


def sample(work: Path, stride_fs: float, equilibrate_ps: float) -> None:
    """Run the missing GFN2-xTB Langevin trajectories (0.5 fs, friction 0.01/fs)."""
    from ase.md.langevin import Langevin
    from ase.md.velocitydistribution import thermalize_momenta
    from tblite.ase import TBLite

    (work / "sample").mkdir(parents=True, exist_ok=True)
    start = xtb_minimum()
    if not (work / "xtb_minimum.xyz").exists():
        write(work / "xtb_minimum.xyz", start, format="extxyz")
    every = round(stride_fs / 0.5)
    with progress() as bar:
        # short trajectories first, so that labelling can begin on all sets
        for name, kind, temperature, seed, frames in TRAJECTORIES:
            out = work / "sample" / f"{name}.xyz"
            if out.exists():
                continue
            task = bar.add_task(name, total=frames)
            at, rejected, kept = start.copy(), 0, []
            rng = np.random.default_rng(seed)
            thermalize_momenta(at, temperature_K=2 * temperature, rng=rng)
            at.calc = TBLite(method="GFN2-xTB", verbosity=0)
            md = Langevin(at, 0.5 * units.fs, temperature_K=temperature, friction=0.01 / units.fs, rng=rng)
            md.run(round(equilibrate_ps * 2000))
            while len(kept) < frames:
                md.run(every)
                pos = at.get_positions()
                pos -= at.get_center_of_mass()
                if not intact(pos):
                    rejected += 1
                    if rejected > frames:
                        raise RuntimeError(f"{name}: the molecule fell apart")
                    continue
                snap = Atoms(SYMBOLS, positions=pos)
                snap.info = {"trajectory": name, "frame": len(kept), "temperature": temperature, "rejected": rejected}
                kept.append(snap)
                bar.advance(task)
            tmp = out.with_suffix(".tmp")
            write(tmp, kept, format="extxyz")
            os.replace(tmp, out)


# --------------------------------------------------------------------------- labels on disk


def jobs(work: Path) -> list[tuple[str, str, Atoms]]:
    """(key, set, structure) in labelling order: batches of train and test sets in turn."""
    queue: dict[str, list] = {k: [] for k in ROUND}
    for kind in ROUND:
        names = [t for t in TRAJECTORIES if t[1] == kind and (work / "sample" / f"{t[0]}.xyz").exists()]
        trajs = [(t[0], read(work / "sample" / f"{t[0]}.xyz", index=":")) for t in names]
        for i in range(max((len(f) for _, f in trajs), default=0)):
            queue[kind] += [(f"{n}/{i}", kind, f[i]) for n, f in trajs if i < len(f)]
    out = []
    while any(queue.values()):  # (finished labels are skipped, so a restart may change the batches)
        for kind, n in ROUND.items():
            out += queue[kind][:n]
            queue[kind] = queue[kind][n:]
    return out


def label(work: Path, limit: int | None, path_after: int) -> None:
    """Label isolated atoms, then snapshots; the path after path_after snapshots or at the end."""
    file = work / "labels.jsonl"
    done = {r["key"] for r in load(file)}
    for symbol in ATOM_SPIN:
        if f"atom/{symbol}" not in done:
            append(file, {"key": f"atom/{symbol}", "set": "isolated_atoms", **isolated_atom(symbol)})
    lab = Labeller(read(work / "xtb_minimum.xyz").positions)
    todo = [j for j in jobs(work) if j[0] not in done]
    done_snapshots = sum("/" in k and not k.startswith(("atom", "path")) for k in done)
    made = 0
    with progress() as bar:
        task = bar.add_task("labels", total=done_snapshots + len(todo), completed=done_snapshots)
        for key, kind, at in todo:
            if limit is not None and made >= limit:
                return
            if done_snapshots + made >= path_after:
                relaxed_path(work, lab)
            try:
                e, f = lab(at.positions)
                rec = {
                    "key": key,
                    "set": kind,
                    "positions": at.positions.tolist(),
                    "energy": e,
                    "forces": f.tolist(),
                    "trajectory": at.info["trajectory"],
                    "frame": int(at.info["frame"]),
                    "temperature": float(at.info["temperature"]),
                    "diag": lab.info,
                }
            except NotConverged as err:
                rec = {"key": key, "set": "dropped", "reason": str(err)}
            append(file, rec)
            made += 1
            bar.advance(task)
    if limit is None:
        relaxed_path(work, lab)


# --------------------------------------------------------------------------- proton-transfer path


def transfer(pos: np.ndarray) -> float:
    """q = r(O1-H) - r(O2-H) in Angstrom."""
    return float(np.linalg.norm(pos[HT] - pos[O1]) - np.linalg.norm(pos[HT] - pos[O2]))


def xtb_hessian(pos: np.ndarray) -> np.ndarray:
    """GFN2-xTB Hessian (eV/Angstrom^2) by central differences; only preconditions relaxations."""
    from tblite.ase import TBLite

    at = Atoms(SYMBOLS, positions=pos)
    at.calc = TBLite(method="GFN2-xTB", verbosity=0)
    h, step = np.zeros((27, 27)), 0.005
    for i in range(27):
        f = []
        for s in (step, -step):
            p = pos.copy().ravel()
            p[i] += s
            at.positions = p.reshape(-1, 3)
            f.append(at.get_forces().ravel())
        h[i] = -(f[0] - f[1]) / (2 * step)
    return 0.5 * (h + h.T)


def relax(lab: Labeller, pos: np.ndarray, q: float | None, fmax: float = 5e-3, steps: int = 60):
    """Planar relaxation at fixed q (Angstrom; None: free) with the DFT itself.

    Quasi-Newton with BFGS updates on the subspace orthogonal to grad q, the
    constraint restored after each step.  Returns positions, energy, forces and
    the largest force component orthogonal to the constraint (eV/Angstrom).
    """
    pos = pos - pos.mean(0)
    h = xtb_hessian(pos)
    last = None

    def grad_q(x):
        g = np.zeros((9, 3))
        for o, s in ((O1, 1), (O2, -1)):
            d = (x[HT] - x[o]) / np.linalg.norm(x[HT] - x[o])
            g[HT] += s * d
            g[o] -= s * d
        return g.ravel()

    def restore(x):
        for _ in range(50 if q is not None else 0):
            g, dq = grad_q(x), q - transfer(x)
            if abs(dq) < 1e-10:
                break
            x = (x.ravel() + g * dq / (g @ g)).reshape(9, 3)
        return x

    pos = restore(pos)
    for _ in range(steps):
        e, f = lab(pos)
        f = f.copy()
        f[:, 2] = 0.0  # planar by symmetry
        f = f.ravel()
        basis = np.zeros((27, 0))
        keep = [i for i in range(27) if i % 3 != 2]
        rigid = np.zeros((27, 3))
        rigid[0::3, 0] = rigid[1::3, 1] = 1
        rigid[0::3, 2], rigid[1::3, 2] = -pos[:, 1], pos[:, 0]
        rows = [rigid]
        if q is not None:
            rows.append(grad_q(pos)[:, None])
        a = np.concatenate(rows, 1)
        u, sv, _ = np.linalg.svd(a[keep], full_matrices=True)
        basis = np.zeros((27, 18 - a.shape[1]))
        basis[keep] = u[:, a.shape[1] :]
        fp = basis.T @ f
        resid = basis @ fp
        worst = float(np.abs(resid).max())
        if last is not None:
            s, y = pos.ravel() - last[0], last[1] - f
            if q is not None:  # curvature of the constraint: compare projected forces
                y = basis @ (basis.T @ y)
                s = basis @ (basis.T @ s)
            if s @ y > 1e-6:
                h = h + np.outer(y, y) / (y @ s) - np.outer(h @ s, h @ s) / (s @ h @ s)
        if worst < fmax:
            return pos, e, f, worst
        w, v = np.linalg.eigh(basis.T @ h @ basis)
        w = np.maximum(np.abs(w), 1.5)
        step = basis @ (v @ ((v.T @ fp) / w))
        step *= min(1.0, 0.12 / np.abs(step).max())
        last = (pos.ravel().copy(), f.copy())
        pos = (pos.ravel() + step).reshape(9, 3)
        pos = restore(pos)
    raise NotConverged("relaxation")


def relaxed_path(work: Path, lab: Labeller) -> None:
    """Relax the minimum, the symmetric transition state and the images between (resumable)."""
    file = work / "labels.jsonl"
    have = {r["key"]: r for r in load(file) if r["key"].startswith("path/")}
    if len(have) == PATH_HALF:
        return
    start = lab.reference.copy()
    if transfer(start) > 0:  # proton on O1: q < 0
        start = start[MIRROR] * [-1, 1, 1]

    def store(i, q, res):
        pos, e, _, worst = res
        e, f = lab(pos)
        have[f"path/{i}"] = rec = {
            "key": f"path/{i}",
            "set": "path",
            "positions": pos.tolist(),
            "energy": e,
            "forces": f.tolist(),
            "q": transfer(pos),
            "residual": worst,
            "diag": lab.info,
        }
        append(file, rec)
        console.print(
            f"path image {i}: q = {rec['q']:.4f} A, E - E_min = {e - have['path/0']['energy']:.5f} eV, "
            f"residual {worst:.4f} eV/A"
        )

    if "path/0" not in have:
        store(0, None, relax(lab, start, None, fmax=2e-3))
    qmin = have["path/0"]["q"]
    pos = np.asarray(have["path/0"]["positions"])
    previous = None
    for i in range(1, PATH_HALF):
        if f"path/{i}" not in have:
            q = qmin * (1 - i / (PATH_HALF - 1))
            guess = pos if previous is None else 2 * pos - previous
            if i == PATH_HALF - 1:  # transition state: start from the symmetrised guess
                guess = symmetrise(guess)
            g = guess.copy()
            store(i, q, relax(lab, g, q))
        new = np.asarray(have[f"path/{i}"]["positions"])
        u, _, vt = np.linalg.svd((new - new.mean(0)).T @ (pos - pos.mean(0)))
        previous, pos = pos - pos.mean(0), (new - new.mean(0)) @ (u @ vt)


def symmetrise(pos: np.ndarray) -> np.ndarray:
    """Average of a planar structure and its mirror image (exchange of the two halves)."""
    a = pos - pos.mean(0)
    b = a[MIRROR] * [-1, 1, 1]
    u, _, vt = np.linalg.svd(b.T @ a)
    return 0.5 * (a + b @ (u @ vt))


# --------------------------------------------------------------------------- assembling


def extxyz(symbols, pos, energy: float, forces, info: dict) -> str:
    """One frame of extended XYZ: energy to 1e-8 eV, forces to 1e-8 eV/Angstrom."""
    extra = " ".join(f"{k}={v!r}" if not isinstance(v, str) else f"{k}={v}" for k, v in info.items())
    lines = [str(len(symbols)), f'Properties=species:S:1:pos:R:3:forces:R:3 energy={energy:.8f} {extra} pbc="F F F"']
    for s, r, f in zip(symbols, pos, forces):
        lines.append(f"{s:<2}" + "".join(f"{v:15.8f}" for v in r) + "".join(f"{v + 0.0:15.8f}" for v in f))
    return "\n".join(lines) + "\n"


def assemble(work: Path, out: Path) -> None:
    """Write OUT/{train,test_300K,test_600K,path,isolated_atoms}.xyz from the labels there are."""
    records = load(work / "labels.jsonl")
    by: dict[str, dict[str, dict]] = {}
    for r in records:
        by.setdefault(r["set"], {})[r["key"]] = r
    order = {t[0]: i for i, t in enumerate(TRAJECTORIES)}
    for kind in ROUND:
        recs = sorted(by.get(kind, {}).values(), key=lambda r: (r["frame"], order[r["trajectory"]]))
        if recs:
            atomic_write(
                out / f"{kind}.xyz",
                "".join(
                    extxyz(
                        SYMBOLS,
                        r["positions"],
                        r["energy"],
                        r["forces"],
                        {
                            "config_type": f"malonaldehyde_{r['temperature']:.0f}K",
                            "trajectory": r["trajectory"],
                            "frame": r["frame"],
                            "temperature": r["temperature"],
                        },
                    )
                    for r in recs
                ),
            )
        console.print(f"{kind}: {len(recs)}")
    atoms = by.get("isolated_atoms", {})
    if atoms:
        atomic_write(
            out / "isolated_atoms.xyz",
            "".join(
                extxyz(
                    [r["symbol"]],
                    [(0, 0, 0)],
                    r["energy"],
                    [(0, 0, 0)],
                    {"config_type": "IsolatedAtom", "multiplicity": ATOM_SPIN[r["symbol"]] + 1},
                )
                for r in atoms.values()
            ),
        )
    path = sorted(by.get("path", {}).values(), key=lambda r: int(r["key"].split("/")[1]))
    if path:
        images = [(np.asarray(r["positions"]), r["energy"], np.asarray(r["forces"]), r["q"]) for r in path]
        if len(path) == PATH_HALF:
            images += [(p[MIRROR] * [-1, 1, 1], e, f[MIRROR] * [-1, 1, 1], -q) for p, e, f, q in images[-2::-1]]
        frames, ref = [], images[0][0] - images[0][0].mean(0)
        for i, (p, e, f, q) in enumerate(images):
            c = p - p.mean(0)
            u, _, vt = np.linalg.svd(c.T @ ref)
            r = u @ np.diag([1, 1, np.sign(np.linalg.det(u @ vt))]) @ vt
            ref = c @ r
            frames.append(
                extxyz(SYMBOLS, ref, e, f @ r, {"config_type": "proton_transfer", "image": i, "q": round(q, 6) + 0.0})
            )
        atomic_write(out / "path.xyz", "".join(frames))
    console.print(f"path: {len(path)} of {PATH_HALF} unique, atoms: {len(atoms)}, dropped: {len(by.get('dropped', {}))}")
    for f in sorted(out.glob("*.xyz")):
        console.print(f"{hashlib.sha256(f.read_bytes()).hexdigest()}  {f.name}  {f.stat().st_size / 1e6:.2f} MB")


# --------------------------------------------------------------------------- checks


def check(work: Path, out: Path, count: int) -> None:
    """Finite differences of the energy, plain PySCF and a finer grid, on labelled test structures."""
    lab = Labeller(read(work / "xtb_minimum.xyz").positions)
    recs = [r for r in load(work / "labels.jsonl") if r["set"] in ROUND]
    rng = np.random.default_rng(7)
    pick = [recs[i] for i in rng.choice(len(recs), count, replace=False)]
    for other in ("test_600K",):
        hot = [r for r in recs if r["set"] == other]
        pick[-1] = max(hot, key=lambda r: np.abs(r["forces"]).max()) if hot else pick[-1]
    res = {"finite_difference": [], "plain": [], "grid5": []}
    step = 0.005
    for n, r in enumerate(pick):
        pos, f = np.asarray(r["positions"]), np.asarray(r["forces"])
        lab(pos)
        for _ in range(2):
            d = rng.normal(size=(9, 3))
            d -= d.mean(0)
            d /= np.linalg.norm(d)
            e = [lab(pos + k * step * d)[0] for k in (1, -1, 2, -2)]
            num = -(8 * (e[0] - e[1]) - (e[2] - e[3])) / (12 * step)
            res["finite_difference"].append({"key": r["key"], "analytic": float((f * d).sum()), "numeric": num})
        rot, x = lab.frame(pos)
        mol = lab.molecule(x)
        e3, g3 = lab.d3(mol.atom_charges(), x)
        for name, level in (("plain", GRID_LEVEL), ("grid5", 5)):
            e, g = lab.plain(mol, level=level)
            ff = -(g * units.Hartree / units.Bohr + g3)
            ff = (ff - ff.mean(0)) @ rot.T
            res[name].append(
                {
                    "key": r["key"],
                    "de": e * units.Hartree + e3 - r["energy"],
                    "df_max": float(np.abs(ff - f).max()),
                    "df_rms": float(((ff - f) ** 2).mean() ** 0.5),
                }
            )
        console.print(
            f"{n + 1}/{count}",
            r["key"],
            [round(1e3 * (a["analytic"] - a["numeric"]), 3) for a in res["finite_difference"][-2:]],
            "meV/A;",
            res["plain"][-1],
            res["grid5"][-1],
        )
    atomic_write(work / "checks.json", json.dumps(res, indent=1))


def main(argv=None) -> int:
    """Command line."""
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--work", type=Path, default=Path("build/data/malonaldehyde"), help="work directory (resumable)")
    ap.add_argument("--out", type=Path, default=Path("data/malonaldehyde"), help="where the .xyz files go")
    ap.add_argument("--sample", action="store_true", help="only run the missing GFN2-xTB trajectories")
    ap.add_argument("--label", action="store_true", help="only label (needs sampled trajectories)")
    ap.add_argument("--assemble", action="store_true", help="only write the .xyz files of the labels there are")
    ap.add_argument("--check", type=int, metavar="N", help="only check N random labels")
    ap.add_argument("--limit", type=int, help="stop after this many new labels")
    ap.add_argument("--path-after", type=int, default=10**9, help="relax the path after this many snapshots")
    ap.add_argument("--stride", type=float, default=60.0, help="fs between samples (at least 50)")
    ap.add_argument("--equilibrate", type=float, default=3.0, help="ps before the first sample")
    a = ap.parse_args(argv)
    a.work.mkdir(parents=True, exist_ok=True)
    every = not (a.sample or a.label or a.assemble or a.check)
    if a.sample or every:
        sample(a.work, a.stride, a.equilibrate)
    if a.label or every:
        label(a.work, a.limit, a.path_after)
    if a.assemble or every:
        assemble(a.work, a.out)
    if a.check:
        check(a.work, a.out, a.check)
    return 0


if __name__ == "__main__":
    sys.exit(main())
