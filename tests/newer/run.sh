#!/usr/bin/env bash
# The NumPyro side alone on Python 3.12 or newer, with the ArviZ 1.x that is there; says so where
# this machine has no such Python.
# Usage: tests/newer/run.sh
set -euo pipefail
cd "$(dirname "$0")/../.."

is_newer() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; }
found=
for python in python3.14 python3.13 python3.12 python3 \
    "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.1[2-9]*/bin/python; do
    if is_newer "$python"; then found=$python; fi
done
if [ -z "$found" ]; then
    echo "no Python 3.12 or newer here: nothing was run"
    exit 0
fi

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"$found" -m venv "$scratch/venv"
"$scratch/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    -c constraints.txt -e '.[numpyro,compare,dev]'
echo "$("$scratch/venv/bin/python" --version), NumPyro alone:" \
    "$("$scratch/venv/bin/python" -m pip list 2>/dev/null | grep -iE '^(arviz|jax|numpyro) ' | tr -s '\n ' ' ')"
# What depends on the versions of JAX and ArviZ.
OMP_NUM_THREADS=1 "$scratch/venv/bin/pytest" -n 2 --dist loadfile -p no:cacheprovider \
    --backend numpyro tests/test_reach_in_numpyro.py tests/test_own_samples.py \
    tests/test_enumeration.py tests/test_inference_data.py \
    tests/test_compare.py::test_report tests/test_compare.py::test_continuous_latents
