#!/bin/sh
# Make mergekit's own environment, which the benchmarks and the parity tests run it in.
#
#     benchmarks/setup_mergekit.sh FOLDER [PYTHON]
#
# mergekit never shares mergeconf's environment: neither shall hold back the other's versions.
# torch comes first and alone. Where pip would choose a build with CUDA (gigabytes), install the CPU
# build of the same version into FOLDER beforehand: a torch that is there already is kept.
set -eu

folder=${1:?usage: setup_mergekit.sh FOLDER [PYTHON]}
python=${2:-python3}
constraints=$(dirname "$0")/mergekit-constraints.txt

[ -x "$folder/bin/python" ] || "$python" -m venv "$folder"
pip="$folder/bin/python -m pip --disable-pip-version-check"

if ! $pip show --quiet torch 2>/dev/null; then
    if $pip install --dry-run -c "$constraints" torch | grep -q '^Would install.* nvidia-'; then
        echo "pip would install torch with CUDA; install a CPU build into $folder first" >&2
        exit 1
    fi
    $pip install -qq -c "$constraints" torch
fi
$pip install -qq -c "$constraints" mergekit peft

"$folder/bin/python" -c 'import mergekit, peft, torch; print("torch", torch.__version__)'
HF_HUB_OFFLINE=1 "$folder/bin/mergekit-yaml" --help >/dev/null
echo "mergekit is in $folder/bin/mergekit-yaml"
