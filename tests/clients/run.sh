#!/usr/bin/env bash
# Drives the real binary with clients that people use: the openai package, an agent framework and
# curl. The binary is $SEDGE_BIN, or the newest build in target/. Further arguments go to pytest.
set -euo pipefail
if [ -n "${SEDGE_BIN:-}" ]; then export SEDGE_BIN="$(realpath "$SEDGE_BIN")"; fi
cd "$(dirname "$0")"

venv="${SEDGE_CLIENTS_VENV:-$PWD/.venv}"
if ! cmp -s requirements.txt "$venv/installed.txt"; then
    # Some systems' Python makes environments only with a package of theirs, or with virtualenv.
    python3 -m venv "$venv" 2>/dev/null || python3 -m virtualenv -q "$venv"
    "$venv/bin/pip" install -q --disable-pip-version-check -r requirements.txt
    cp requirements.txt "$venv/installed.txt"
fi
exec "$venv/bin/python" -m pytest -q -p no:cacheprovider "$@" .
