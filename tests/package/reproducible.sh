#!/bin/sh
# Builds the wheel twice, in two folders of different names and with nothing to share, and compares the bytes.
set -eu
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
python=$(command -v "$python")
case $python in /*) ;; *) python=$PWD/$python ;; esac
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for name in a another-name; do
    mkdir "$folder/$name"
    tar -c --exclude ./build --exclude ./fastgc/include --exclude ./fastgc/lib --exclude '*.so' --exclude '*.egg-info' \
        pyproject.toml setup.py README.md LICENSE csrc fastgc mpi_runner | tar -x -C "$folder/$name"
    (cd "$folder/$name" && SOURCE_DATE_EPOCH=315532800 "$python" -m pip wheel . --quiet --no-deps --no-build-isolation -w dist)
done
sha256sum "$folder"/*/dist/*.whl
cmp "$folder"/a/dist/*.whl "$folder"/another-name/dist/*.whl && echo 'the wheels are the same'
