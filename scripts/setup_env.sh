# Sourced by the other scripts: a virtual environment in .venv with this package and the extras named by the caller.
#   EXTRAS=test source scripts/setup_env.sh
# PYTHON picks the interpreter (3.10 or newer), NFNET_TIMM_VENV another place for the environment.
# With --help, the calling script prints the comment that begins it.

case "${1:-}" in
-h | --help)
    sed -n '/^#!/d; /^[^#]/q; s/^# \{0,1\}//p' "$0"
    exit 0
    ;;
esac
: "${EXTRAS:?name the extras to install: EXTRAS=test source scripts/setup_env.sh}"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-python3}
venv=${NFNET_TIMM_VENV:-.venv}

if ! command -v "$PYTHON" >/dev/null; then
    echo "error: $PYTHON is not there; install Python 3.10 or newer, or name it: PYTHON=python3.12 bash $0" >&2
    exit 1
fi
if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
    echo "error: $("$PYTHON" --version) is too old; name Python 3.10 or newer: PYTHON=python3.12 bash $0" >&2
    exit 1
fi
if [ ! -x "$venv/bin/pip" ]; then # also after an interrupted `venv`, which makes python first
    "$PYTHON" -m venv "$venv"
    # The pip that comes with Python 3.10, of 2023, goes over versions for more than ten minutes.
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade pip
fi
# Installed anew only when pyproject.toml or the extras have changed.
stamp="$venv/installed-$EXTRAS"
if [ ! -e "$stamp" ] || [ pyproject.toml -nt "$stamp" ]; then
    echo "Installing nfnet-timm[$EXTRAS] into $venv (a minute or two, mostly torch) ..."
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable ".[$EXTRAS]"
    touch "$stamp"
fi
PATH="$(cd "$venv/bin" && pwd):$PATH"
export PATH
