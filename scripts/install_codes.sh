#!/usr/bin/env bash
# Installs what the slow tests of labelers start: CP2K, ABINIT and Psi4 from Debian, and GPAW, built from source into
# an environment of its own. Needs root, Debian and the network. The argument is the folder of that environment; the
# last line says how the tests find it.
set -euo pipefail
folder=$(realpath -m "${1:-.venv-gpaw}")
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT

export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -qq -y --no-install-recommends \
    cp2k cp2k-data abinit abinit-data psi4 \
    gpaw-data g++ python3-dev python3-venv libxc-dev libopenblas-dev

# One process, no MPI: the labels of a batch are the parallel work.
cat >"$build/siteconfig.py" <<'END'
mpi = False
compiler = 'g++'
fftw = False
scalapack = False
libraries = ['xc', 'openblas']
END
python3 -m venv "$folder"
GPAW_CONFIG="$build/siteconfig.py" "$folder/bin/python" -m pip install -q gpaw
"$folder/bin/python" -c 'import gpaw; print("GPAW", gpaw.__version__)'
echo "export JAXAL_GPAW_PYTHON=$folder/bin/python"
