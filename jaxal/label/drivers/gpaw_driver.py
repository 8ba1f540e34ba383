"""Runs GPAW in an environment of its own: `python driver.py` in a folder with request.json. Never imports jaxal.

`python driver.py version PATH` prints the version and a digest of the PAW datasets that will be used.
"""

# A type checker takes the module gpaw beside this file for the package.
# pyright: reportAttributeAccessIssue=false, reportMissingImports=false

import contextlib
import hashlib
import json
import os
import re
import sys


def prepared(setups):
    """The package, with its datasets looked for in `setups` first."""
    if setups:
        os.environ["GPAW_SETUP_PATH"] = setups
    import gpaw

    return gpaw


def version(setups):
    """Version of GPAW and a digest of the datasets, whose numbers differ from release to release."""
    gpaw = prepared(setups)
    digest = hashlib.sha256()
    for folder in map(str, gpaw.setup_paths):
        for name in sorted(os.listdir(folder) if os.path.isdir(folder) else []):
            path = os.path.join(folder, name)
            if re.match(r"[A-Z][a-z]?\.", name) and os.path.isfile(path):
                with open(path, "rb") as file:
                    digest.update(name.encode() + hashlib.sha256(file.read()).digest())
    return f"GPAW {gpaw.__version__} datasets {digest.hexdigest()[:16]}"


def objection(request):
    """What is missing, as "field: reason"; empty if nothing is."""
    prepared(request["setups"])
    from gpaw.setup_data import search_for_file
    from gpaw.xc import XC

    try:
        kind = XC(request["xc"]).get_setup_name()
    except Exception as error:
        return f"xc: GPAW does not know {request['xc']!r} ({error}); give such as PBE"
    for symbol in sorted(set(request["symbols"])):
        try:
            search_for_file(f"{symbol}.{kind}")
        except (FileNotFoundError, RuntimeError):
            return f"setups: there is no PAW dataset {symbol}.{kind}; give the folder (Debian: /usr/share/gpaw-setups)"
        try:
            if request["mode"] == "lcao":
                search_for_file(f"{symbol}.{request['basis']}.basis")
        except (FileNotFoundError, RuntimeError):
            return f"basis: there is no {symbol}.{request['basis']}.basis; give another, such as dzp"
    return ""


def calculate(request):
    """Energy (eV), forces (eV/Å) and, where it is wanted and there is one, the stress (eV/Å^3) of one structure."""
    gpaw = prepared(request["setups"])
    from ase import Atoms

    unpaired, periodic = request["spin"], request["periodic"]
    atoms = Atoms(request["symbols"], request["position"], cell=request["cell"], pbc=periodic)
    more = dict(request["parameters"])
    occupations = dict(request["occupations"])
    if unpaired:
        atoms.set_initial_magnetic_moments([unpaired / len(atoms)] * len(atoms))
        occupations["fixmagmom"] = True
        more["spinpol"] = True
    if request["mode"] == "pw":
        more["mode"] = {"name": "pw", "ecut": request["ecut"]}
    else:
        more |= {"mode": request["mode"], "h": request["h"]}
        more |= {"basis": request["basis"]} if request["mode"] == "lcao" else {}
    try:
        atoms.calc = gpaw.GPAW(
            xc=request["xc"],
            charge=request["charge"],
            kpts={"size": request["mesh"], "gamma": True},
            symmetry="off",
            occupations=occupations,
            convergence=request["convergence"],
            maxiter=request["max_iterations"],
            txt="gpaw.txt",
            **more,
        )
        energy = atoms.get_potential_energy(force_consistent=True)
        answer = {"energy": float(energy), "force": atoms.get_forces().tolist()}
        if request["stress"]:
            with contextlib.suppress(NotImplementedError):  # not with every solver of the electrostatics of a slab
                answer["stress"] = atoms.get_stress(voigt=False).tolist()
    except gpaw.KohnShamConvergenceError:
        return {"error": f"the SCF did not converge in {request['max_iterations']} iterations"}
    return answer


def main():
    """Answers request.json with answer.json."""
    with open("request.json", encoding="utf-8") as file:
        request = json.load(file)
    try:
        answer = {"objection": objection(request)} if request["action"] == "check" else calculate(request)
    except Exception as error:
        answer = {"error": " ".join(f"GPAW: {type(error).__name__}: {error}".split())}
    from ase.parallel import world

    if world.rank == 0:
        with open("answer.partial", "w", encoding="utf-8") as file:
            json.dump(answer, file)
        os.replace("answer.partial", "answer.json")


if __name__ == "__main__":
    if sys.argv[1:2] == ["version"]:
        print(version(sys.argv[2]))
    else:
        main()
