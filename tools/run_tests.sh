#!/usr/bin/env bash
# Every check: style, import rules, tests. Arguments go to pytest: tools/run_tests.sh -m slow, -k scfae, ...
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/setup_env.sh
# The test processes share the cores; torch must not start as many threads in each of them.
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

ruff check .
lint-imports --no-logo
python -m pytest -q -n 2 --dist worksteal -m 'not slow' "$@"

if [ "$#" = 0 ] && python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    MMFUSION_GPU_TESTS=1 python -m pytest -q tests/test_cuda.py tests/test_cuda_necks.py
fi
