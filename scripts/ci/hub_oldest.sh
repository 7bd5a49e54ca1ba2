#!/usr/bin/env bash
# Runs the tests of publishing with the oldest huggingface_hub that pyproject.toml allows; other tests use the newest.
# Arguments go to pytest.
#   bash scripts/ci/hub_oldest.sh
set -euo pipefail
EXTRAS=test source "$(dirname "$0")/../setup_env.sh"
oldest=$(sed -n 's/.*"huggingface-hub>=\([0-9.]*\)".*/\1/p' pyproject.toml)
client=$PWD/.cache/huggingface_hub-$oldest
if [ ! -d "$client" ]; then
    partial=$(mktemp -d)
    python -m pip install --quiet --disable-pip-version-check --target "$partial" "huggingface_hub==$oldest.*"
    mkdir -p .cache
    mv "$partial" "$client"
fi
PYTHONPATH=$client python -c "import huggingface_hub; print('huggingface_hub', huggingface_hub.__version__)"
PYTHONPATH=$client exec python -m pytest tests/publish/test_push.py tests/publish/test_publish.py "$@"
