#!/usr/bin/env bash
# Runs timm's own tests/test_models.py and tests/test_optim.py on our names, with the oldest timm that pyproject.toml
# allows and with the installed one. The tests come from timm's source distribution. Tests that download weights are
# left out. Arguments go to pytest.
#   bash scripts/ci/timm_suite.sh              all names: about two hours on two cores, 16 GB of memory
#   bash scripts/ci/timm_suite.sh --quick      one network of each family, three optimizers: minutes
set -euo pipefail
EXTRAS=test source "$(dirname "$0")/../setup_env.sh"
export HF_HUB_OFFLINE=1
jobs=1
if [ "${1:-}" = --quick ]; then
    export TIMM_SUITE_QUICK=1
    jobs=2
    shift
fi

oldest=$(sed -n 's/.*"timm>=\([0-9.]*\)".*/\1/p' pyproject.toml)
installed=$(python -c 'import importlib.metadata as m; print(m.version("timm"))')
for version in $oldest $installed; do
    suite=$PWD/.cache/timm-$version
    if [ ! -d "$suite" ]; then
        download=$(mktemp -d)
        python -m pip download --quiet --disable-pip-version-check --no-deps --no-binary timm --dest "$download" "timm==$version"
        tar -xzf "$download"/timm-*.tar.gz -C "$download"
        mkdir -p .cache
        mv "$download/timm-$version" "$suite"
        rm -r "$download"
    fi
    echo "== timm $version"
    # `python -m` puts this folder first on the path, so that `import timm` is this version.
    (cd "$suite" && PYTHONPATH="$OLDPWD/scripts/ci" python -m pytest -p timm_suite_plugin -q -n "$jobs" -W ignore \
        tests/test_models.py tests/test_optim.py "$@")
done
