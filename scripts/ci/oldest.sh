#!/usr/bin/env bash
# Runs tests with the oldest torch, timm and huggingface_hub that pyproject.toml allows; other tests use the newest.
# Arguments go to pytest.
#   bash scripts/ci/oldest.sh
set -euo pipefail
EXTRAS=test source "$(dirname "$0")/../setup_env.sh"
packages=()
for name in torch timm huggingface-hub; do
    packages+=("$name==$(sed -n "s/.*\"$name>=\([0-9.]*\)\".*/\1/p" pyproject.toml).*")
done
folder=$PWD/.cache/oldest
if [ "$(cat "$folder/packages" 2>/dev/null)" != "${packages[*]}" ]; then
    rm -rf "$folder"
    echo "Installing ${packages[*]} into $folder (minutes, mostly torch) ..."
    python -m pip install --quiet --disable-pip-version-check --target "$folder" "${packages[@]}" torchvision
    echo "${packages[*]}" >"$folder/packages"
fi
export PYTHONPATH=$folder
python -c "import torch, timm, huggingface_hub as hub; print('torch', torch.__version__, 'timm', timm.__version__, 'huggingface_hub', hub.__version__)"
# Without the tests of Triton, whose old versions do not work with the newest NumPy, and those of several processes.
exec python -m pytest tests/models tests/layers tests/optim tests/kernels/test_standardize.py tests/publish/test_push.py \
    tests/publish/test_publish.py --ignore tests/optim/test_distributed.py "$@"
