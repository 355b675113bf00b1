#!/usr/bin/env bash
# Installs the lowest versions that pyproject.toml admits, and checks that they work. Takes a folder to work in.
# PyTorch comes first, by pip, as the README says, so that it is the build that pip is set up for: uv would take CUDA's.
set -euo pipefail
cd "$(dirname "$0")/.."
torch=$(sed -n 's/^ *"torch>=\(.*\)",$/torch==\1/p' pyproject.toml)
python3 -m venv "$1/lowest"
. "$1/lowest/bin/activate"
pip install -q -c constraints.txt uv
pip install -q "$torch"
before=$(python -c "import torch; print(torch.__version__)")
uv pip install --resolution lowest-direct -e ".[test]"
test "$before" = "$(python -c "import torch; print(torch.__version__)")"  # uv has left it alone
python .ci/check_lowest.py
