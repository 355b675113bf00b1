#!/usr/bin/env bash
# Builds wheel and sdist, installs the wheel far from this checkout and runs the quick start from it, in short, and some tests
# from the sdist. Takes a folder to work in, and an environment with the extra `test` that is active.
set -euo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
work=$(cd "$1" && pwd)
python -m build --outdir "$work/dist" "$top"
twine check --strict "$work"/dist/*

# tests from the sdist, by the active environment, which has what tests need
mkdir "$work/sdist" "$work/elsewhere"
tar -xzf "$work"/dist/*.tar.gz -C "$work/sdist" --strip-components=1
cd "$work/sdist"
python -c "import skmft; assert skmft.__file__.startswith('$work/sdist/'), skmft.__file__"
python -m pytest -q -m "not slow" tests/test_method_corruption.py tests/test_method_typicality.py tests/test_house.py

# the quick start from the wheel, in an environment that has nothing but the wheel and what it asks for
cp -r "$top/examples" "$work/elsewhere"
cd "$work/elsewhere"
python3 -m venv venv
. venv/bin/activate
pip install -q -c "$top/constraints.txt" "skmft[demo] @ file://$(echo "$work"/dist/*.whl)"
pip check
python - <<'END'
import importlib, pkgutil, skmft
assert "site-packages" in skmft.__file__, skmft.__file__
names = [module.name for module in pkgutil.walk_packages(skmft.__path__, "skmft.")]
for name in names:
    importlib.import_module(name)
print(f"skmft {skmft.__version__} at {skmft.__file__}: {len(names)} modules import")
END
python examples/quickstart.py --shots 4 --test 40
test -s quickstart.png
