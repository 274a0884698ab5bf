#!/usr/bin/env bash
# Builds sdist and wheel, and tests both in clean environments, from a folder outside of the
# checkout: the wheel with only Pyro, the sdist with only NumPyro.
# Usage: tests/wheel/run.sh PYTHON   (an interpreter with the packages `build` and `twine`)
set -euo pipefail
cd "$(dirname "$0")/../.."
python=$1

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# Builds the wheel from the source distribution, which is thus tested too; this leaves no build/.
"$python" -m build --outdir "$scratch/dist" . >"$scratch/build.log" 2>&1 || {
    cat "$scratch/build.log"
    exit 1
}
"$python" -m twine check --strict "$scratch"/dist/*
wheel=$(echo "$scratch"/dist/*.whl)
sdist=$(echo "$scratch"/dist/*.tar.gz)
cp constraints.txt tests/wheel/check_*.py "$scratch"

check() {
    local ppl=$1 package=$2
    "$python" -m venv "$scratch/$ppl"
    "$scratch/$ppl/bin/python" -m pip install --quiet --disable-pip-version-check \
        -c "$scratch/constraints.txt" "${package}[$ppl]"
    # -I: neither the current folder, nor the script's, nor PYTHONPATH is searched.
    cd "$scratch"
    "$ppl/bin/python" -I -W error "check_$ppl.py"
    echo "$(basename "$package")[$ppl] in a clean environment: done"
}

# In parallel: most of the time is pip's, on one core.
check pyro "$wheel" &
pyro=$!
check numpyro "$sdist" &
numpyro=$!
failed=0
wait $pyro || failed=1
wait $numpyro || failed=1
exit $failed
