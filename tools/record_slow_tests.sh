#!/usr/bin/env bash
# Run the tests marked slow and zoo, and record what they gave in docs/slow-tests.md.
# Needs the zoos: make test-slow installs them first.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}

result=$("$python" -m pytest -m "slow or zoo" -q --tb=line -rA -p no:cacheprovider 2>&1)
status=$?
machine=$("$python" -c '
import torch
from latmorph.device.fingerprint import cpu_features, cpu_name
print(f"{cpu_name()}, {chr(32).join(cpu_features())}, torch {torch.__version__}")')
{
    echo "# The tests marked slow and zoo"
    echo
    echo "Written by \`tools/record_slow_tests.sh\`. $machine, $(date -u +%Y-%m-%d)."
    echo
    echo '```'
    echo "$result" | grep -E '^(PASSED|FAILED|ERROR|SKIPPED) ' | sort
    echo "$result" | tail -n 1
    echo '```'
} >docs/slow-tests.md
exit $status
