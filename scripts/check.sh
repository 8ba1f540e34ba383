#!/usr/bin/env bash
# All that must hold: README's test line, the tests of reference methods once more where no outside program is in
# reach, ruff, pyright, and the tests on Python 3.12 where there is one.
# Environments stay in .venv and .venv312. `--one-python` leaves 3.12 out.
set -euo pipefail
cd "$(dirname "$0")/.."
log=$(mktemp)
bare=$(mktemp -d)
trap 'rm -rf "$log" "$bare"' EXIT

# The line between <!-- tests --> and the end of its code block, exactly as README has it.
tests=$(sed -n '/^<!-- tests -->$/,/^```$/p' README.md | grep '^python3 ')

# Runs a test line; a failure of any of its commands ends the script.
run() {
    echo "+ $1"
    bash -euo pipefail -c "$1" 2>&1 | tee "$log"
    closing="${closing:-}$2: $(grep -E '(passed|failed|error).* in ' "$log" | tail -n 1)"$'\n'
}

python312() {
    local candidate
    for candidate in python3.12 "$HOME"/.pyenv/versions/3.12*/bin/python3.12; do
        if "$candidate" -c '' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
}

run "$tests" "$(python3 --version)"

# PATH is the environment and basic commands; the data that Debian's packages bring lie nowhere.
for name in bash sh awk basename cat chmod cp cut date dirname echo env expr false find getconf grep head hostname id \
    kill ln ls mkdir mktemp mv nohup nproc printf ps pwd readlink realpath rm rmdir sed seq sleep sort stat tail tee \
    test timeout touch tr true uname wc xargs
do
    program=$(type -P "$name") && ln -s "$program" "$bare/$name"
done
hide="env -u JAXAL_GPAW_PYTHON -u CP2K_DATA_DIR -u PSIPATH -u PSIDATADIR PATH=$PWD/.venv/bin:$bare JAXAL_TEST_SHARE=$bare"
outside=$({ ls tests/label/test_label*.py && grep -rlE --include='test_*.py' 'label_programs|shutil\.which|slurm_one_node' tests; } | sort -u | tr '\n' ' ')
run "$hide .venv/bin/python -m pytest -n 2 $outside" "without outside programs"

.venv/bin/pip install -q -c constraints.txt -e ".[dev]"
.venv/bin/ruff check .
.venv/bin/ruff format --check .
# pyright runs on Node.js: without one here it would have to be downloaded
if command -v node >/dev/null; then
    .venv/bin/pyright --pythonpath .venv/bin/python
else
    echo "no Node.js here: types are not checked"
fi

if [ "${1:-}" != --one-python ]; then
    other=$(python312)
    if [ -n "$other" ]; then
        line=${tests//.venv/.venv312}
        run "${line/#python3 /$other }" "$("$other" --version)"
    else
        echo "no Python 3.12 here: tests ran on $(python3 --version) only"
    fi
fi

printf '%s' "$closing"
