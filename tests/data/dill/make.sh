#!/usr/bin/env bash
# Makes the files of this folder anew, each with the versions in its name; needs the Pythons of pyenv and an index of
# packages. They come out the same to the byte.
#   bash tests/data/dill/make.sh
set -euo pipefail
cd "$(dirname "$0")"
environments=$(mktemp -d)
trap 'rm -r "$environments"' EXIT
# Haiku's class, as far as a pickle shows it.
mkdir -p "$environments/haiku/_src"
touch "$environments/haiku/__init__.py" "$environments/haiku/_src/__init__.py"
cat >"$environments/haiku/_src/data_structures.py" <<'END'
class FlatMapping(object):
    def __init__(self, mapping):
        self.mapping = mapping

    def __reduce__(self):
        return FlatMapping, (self.mapping,)
END
make() { # PYTHON DILL NUMPY PROTOCOL FORM ORDER
    local python environment=$environments/$1-$2-$3
    python=$(ls -d "$HOME/.pyenv/versions/$1".*/bin/python | tail -n 1)
    if [ ! -d "$environment" ]; then
        "$python" -m venv "$environment"
        "$environment/bin/python" -m pip install --quiet --disable-pip-version-check "dill==$2" "numpy==$3"
    fi
    PYTHONPATH=$environments "$environment/bin/python" make.py "python$1-dill$2-numpy$3-protocol$4-$5-$6.npz" "$4" "$5" "$6"
}
make 3.7 0.2.8.2 1.15.4 3 FF plain # numpy.core.multiarray
make 3.7 0.2.9 1.16.6 4 FF plain   # numpy.core._multiarray_umath from here on
make 3.7 0.3.3 1.18.5 3 DF plain   # the versions of the released files
make 3.7 0.3.3 1.18.5 3 FD plain
make 3.7 0.3.3 1.18.5 3 DD plain
make 3.7 0.3.3 1.18.5 4 FF fortran
make 3.7 0.3.3 1.18.5 3 FF big
make 3.8 0.3.3 1.19.5 4 FF plain
make 3.8 0.3.3 1.24.4 5 FF plain
make 3.8 0.3.3 1.24.4 3 DF fortran
make 3.7 0.3.4 1.21.6 3 FF plain # the last dill with _get_attr
make 3.10 0.3.4 2.2.6 3 FF plain # numpy._core._multiarray_umath
make 3.10 0.3.4 2.2.6 5 DD big
make 3.7 0.3.5.1 1.19.5 3 FF plain
make 3.8 0.3.9 1.24.4 5 FD plain # dill._dill._create_array
make 3.12 0.4.1 1.26.4 4 FF fortran
make 3.12 0.4.1 2.4.6 5 FF plain
