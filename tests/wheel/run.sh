#!/usr/bin/env bash
# Builds the wheel and uses it in clean environments that have only Pyro or only NumPyro, from a
# folder that is not the checkout.
# Usage: tests/wheel/run.sh PYTHON   (an interpreter with the package `build`)
set -euo pipefail
cd "$(dirname "$0")/../.."
python=$1

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# By way of the source distribution, so that it is tested too and no build/ is left behind.
"$python" -m build --outdir "$scratch/dist" . >"$scratch/build.log" 2>&1 || {
    cat "$scratch/build.log"
    exit 1
}
wheel=$(echo "$scratch"/dist/*.whl)
cp constraints.txt tests/wheel/check_*.py "$scratch"

check() {
    local ppl=$1
    "$python" -m venv "$scratch/$ppl"
    "$scratch/$ppl/bin/python" -m pip install --quiet --disable-pip-version-check \
        -c "$scratch/constraints.txt" "${wheel}[$ppl]"
    # -I: neither the current folder, nor the script's, nor PYTHONPATH is searched.
    cd "$scratch"
    "$ppl/bin/python" -I -W error "check_$ppl.py"
    echo "$(basename "$wheel")[$ppl] in a clean environment: done"
}

# Side by side: most of the time is pip's, on one core.
check pyro &
pyro=$!
check numpyro &
numpyro=$!
failed=0
wait $pyro || failed=1
wait $numpyro || failed=1
exit $failed
