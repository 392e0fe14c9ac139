#!/usr/bin/env bash
# The pages in a real Chromium, end to end.
#   tests/browser/run.sh                 the binary $SEDGE_BIN, or target/debug/sedge
#   MOCK_ONLY=1 tests/browser/run.sh     only what needs no binary
# Pictures are left in tests/browser/shots/.
set -euo pipefail
if [ -n "${SEDGE_BIN:-}" ]; then export SEDGE_BIN="$(realpath "$SEDGE_BIN")"; fi
cd "$(dirname "$0")"

chromium="${CHROMIUM:-/usr/bin/chromium}"
if [ ! -x "$chromium" ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium >/dev/null
    else
        echo "browser test: no $chromium; install Debian's chromium, or set CHROMIUM" >&2
        exit 1
    fi
fi
if ! command -v npm >/dev/null || [ "$(node -p 'parseInt(process.versions.node)')" -lt 20 ]; then
    echo "browser test: needs Node.js 20 or later, with npm" >&2
    exit 1
fi
export CHROMIUM="$chromium"
npm ci --no-progress --loglevel=error

log=$(mktemp)
server=
stop() {
    [ -z "$server" ] || { kill "$server" && wait "$server"; } 2>/dev/null || true
    rm -f "$log"
}
trap stop EXIT

if [ -z "${MOCK_ONLY:-}" ]; then
    sedge="${SEDGE_BIN:-../../target/debug/sedge}"
    [ -x "$sedge" ] || { echo "browser test: no $sedge; cargo build first, or set SEDGE_BIN" >&2; exit 1; }
    "$sedge" serve --port 0 -m seedling --vision net=mobilenet-v3-small,size=64 >"$log" 2>&1 &
    server=$!
    for _ in $(seq 300); do
        SEDGE_URL=$(grep -oE 'http://127\.0\.0\.1:[0-9]+' "$log" | head -n 1 || true)
        [ -n "$SEDGE_URL" ] && break
        kill -0 "$server" 2>/dev/null || { cat "$log" >&2; exit 1; }
        sleep 0.2
    done
    [ -n "$SEDGE_URL" ] || { echo "browser test: the server printed no address" >&2; cat "$log" >&2; exit 1; }
    export SEDGE_URL
fi

node --test --test-concurrency=1 --test-timeout=180000 chat.test.mjs vision.test.mjs || { [ -z "$server" ] || tail -n 40 "$log" >&2; exit 1; }
