#!/usr/bin/env bash
# Profile this machine's GPU, run the demo on it, and write its accuracy table: one call, some 8 minutes.
# The profile lands in profiles/, the table in docs/accuracy.md, the demo's table and picture in out/demo-cuda.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}

folder=$("$python" -c '
from latmorph.device.registry import open_backend
print("profiles/" + open_backend("cuda").fingerprint().slug)')
"$python" -m latmorph.cli profile --device cuda --output "$folder"
"$python" -m latmorph.cli demo --device cuda --output out/demo-cuda
for batch in 1 32; do
  "$python" -m tools.accuracy --set zoo --device cuda --profile "$folder" --batch "$batch"
done
