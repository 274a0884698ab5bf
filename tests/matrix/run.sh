#!/usr/bin/env bash
# Tests one Python with one set of versions, in a new environment that is removed at the end.
# Usage: tests/matrix/run.sh PYTHON CONSTRAINTS [pyro|numpyro|both] [TEST...]
# Without side and tests, it runs the whole suite of both sides. With one side, it installs only that
# PPL. With named tests, it does not install the packages of the paper's models. With RECORD=1 in the
# environment, a whole suite that passes writes its row to record.json, which the site shows.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=$1 constraints=$2 side=${3:-both}
tests=("${@:4}")

extras=$side
if [ "$side" = both ]; then extras=pyro,numpyro; fi
if [ ${#tests[@]} -eq 0 ]; then extras+=,models; fi

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"$python" -m venv "$scratch/venv"
"$scratch/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    -c "$constraints" -e ".[$extras,compare,test]"
echo "$("$scratch/venv/bin/python" --version), $constraints, $side:" \
    "$("$scratch/venv/bin/python" -m pip list 2>/dev/null |
        grep -iE '^(arviz|jax|numpy|numpyro|pyro-ppl|torch) ' | tr -s '\n ' ' ')"
OMP_NUM_THREADS=1 "$scratch/venv/bin/pytest" -n 2 --dist loadfile -p no:cacheprovider \
    --backend "$side" --junitxml="$scratch/report.xml" "${tests[@]}"
if [ "${RECORD:-}" = 1 ] && [ "$side" = both ] && [ ${#tests[@]} -eq 0 ]; then
    "$scratch/venv/bin/python" tests/matrix/record.py "$constraints" "$scratch/report.xml"
fi
