"""Runs Psi4: `psi4 -k driver.py` in a folder with request.json. Never imports jaxal."""

# A type checker takes the module psi4 beside this file for the package.
# pyright: reportAttributeAccessIssue=false, reportMissingImports=false

import json
import os
import re


def molecule(request):
    """Psi4's molecule, neither moved nor turned."""
    import psi4

    return psi4.core.Molecule.from_arrays(
        geom=request["position"],
        elem=request["symbols"],
        units="Angstrom",
        molecular_charge=request["charge"],
        molecular_multiplicity=request["spin"] + 1,
        fix_com=True,
        fix_orientation=True,
        fix_symmetry="c1",
    )


def prepare(request):
    """Sets all options."""
    import psi4

    psi4.core.set_output_file("psi4.out", False)
    psi4.set_memory(request["memory"] * 1_000_000)
    psi4.set_options(request["options"])


def objection(request):
    """What Psi4 does not know, as "field: reason"; empty if nothing is."""
    import psi4

    # Names with a dispersion correction are among them, whether or not its program is there.
    method, plain = request["method"], request["method"].partition("-d3")[0]
    if method not in psi4.driver.procedures["gradient"]:
        return f"method: Psi4 has no gradient for {method!r}; give such as hf, pbe0 or mp2"
    if plain != method and not any(
        os.access(os.path.join(folder, "dftd3"), os.X_OK) for folder in os.environ.get("PATH", "").split(os.pathsep)
    ):
        return f"method: {method} needs the program dftd3; install it, or give {plain}"
    try:
        prepare(request)
    except Exception as error:
        match = re.search(r"Fatal Error: (.+?)(?:\\n|\n|$)", str(error))
        return f"options: Psi4 refuses them ({match[1] if match else error})"
    try:
        psi4.core.BasisSet.build(molecule(request), "ORBITAL", request["options"]["basis"])
    except Exception:
        elements = ", ".join(sorted(set(request["symbols"])))
        return f"basis: Psi4 has no {request['options']['basis']!r} for {elements}; give another"
    return ""


def calculate(request):
    """Energy in Hartree and gradient in Hartree/Bohr of one structure."""
    import psi4

    prepare(request)
    try:
        gradient, wavefunction = psi4.gradient(request["method"], molecule=molecule(request), return_wfn=True)
    except psi4.ConvergenceError:
        return {"error": f"the SCF did not converge in {request['options']['maxiter']} iterations"}
    return {"energy": float(wavefunction.energy()), "gradient": gradient.to_array().tolist()}


def main():
    """Answers request.json with answer.json."""
    with open("request.json", encoding="utf-8") as file:
        request = json.load(file)
    try:
        answer = {"objection": objection(request)} if request["action"] == "check" else calculate(request)
    except Exception as error:
        answer = {"error": " ".join(f"Psi4: {type(error).__name__}: {error}".split())}
    with open("answer.partial", "w", encoding="utf-8") as file:
        json.dump(answer, file)
    os.replace("answer.partial", "answer.json")


main()
