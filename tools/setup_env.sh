#!/usr/bin/env bash
# Builds or completes .venv in the repository and puts it first on PATH when sourced:
#     source tools/setup_env.sh        or, to build only:  bash tools/setup_env.sh
# What is there is kept: an environment, a torch >= 2.6, any mmcv. TORCH=... names another torch to install.

# Without bytecode every process compiles 3,300 files of the libraries anew: 20 s to import the plugin instead of 7.
unset PYTHONDONTWRITEBYTECODE

if [ "${BASH_SOURCE[0]}" != "$0" ]; then
    bash "${BASH_SOURCE[0]}" || return 1
    VIRTUAL_ENV=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/.venv
    export VIRTUAL_ENV PATH="$VIRTUAL_ENV/bin:$PATH"
    return 0
fi

set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
stamp=.venv/mmfusion-stamp       # what the finished environment was built from
building=.venv/mmfusion-building # exists while an environment of ours is unfinished
wanted="$(pwd) $(cat setup.cfg pyproject.toml tools/setup_env.sh | cksum)"

say() { printf 'setup_env: %s\n' "$*"; }
runs() { "$@" >/dev/null 2>&1; }
pip_install() { "$python" -m pip install -qq --no-compile --disable-pip-version-check --no-input "$@"; }
# Whether these modules can be found in .venv.
found() {
    runs "$python" -c 'import sys; from importlib.util import find_spec
sys.exit(not all(map(find_spec, sys.argv[1:])))' "$@"
}
modules=(torch mmengine mmcv mmseg mmaction ftfy regex importlib_metadata av h5py scipy matplotlib cv2
         librosa onnxscript onnxruntime pytest xdist hypothesis importlinter mmfusion_plugin)

if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && found "${modules[@]}"; then
    exit 0
fi

if [ ! -f "$building" ] && runs "$python" -c ''; then
    say 'completing .venv'
else
    [ ! -e .venv ] || say '.venv is unfinished or broken: building it again'
    for base in python3.11 python3.12 python3.10 python3.13 python3 python; do
        if runs "$base" -c 'import sys, venv; sys.exit(not (3, 10) <= sys.version_info < (3, 14))'; then break; fi
        base=
    done
    if [ -z "$base" ]; then
        say 'no Python 3.10 to 3.13 with the venv module found; install one' >&2
        exit 1
    fi
    say "building .venv with $("$base" --version) (under a minute, plus the download of torch)"
    mkdir -p .venv
    touch "$building"
    "$base" -m venv --clear .venv
    touch "$building"
fi
runs "$python" -m pip --version || "$python" -m ensurepip --upgrade >/dev/null

# The build of the plugin itself uses these, without an isolated environment.
runs "$python" -c 'import setuptools as s; raise SystemExit(not 64 <= int(s.__version__.split(".")[0]) < 81)' \
    && found wheel || pip_install 'setuptools>=64,<81' wheel
if ! runs "$python" -c 'from importlib.metadata import version
major, minor = version("torch").split(".")[:2]
raise SystemExit((int(major), int(minor)) < (2, 6))'; then
    say "installing ${TORCH:=torch==2.13.0}"
    pip_install "$TORCH"
fi
if ! found mmcv; then
    say 'installing mmcv-lite 2.1.0'
    pip_install mmcv-lite==2.1.0
fi
say 'installing the plugin with mmsegmentation, mmaction2 and the test tools'
pip_install --no-build-isolation -e '.[all,test]'

# mmengine and mmaction2 ask for OpenCV builds with windows, which need display libraries.
if ! problem=$("$python" -c 'import cv2' 2>&1); then
    case "$problem" in
        *.so*)
            say 'no display libraries: replacing OpenCV by its headless build'
            pip_install --force-reinstall --no-deps opencv-python-headless ;;
        *)
            printf '%s\n' "$problem" >&2
            exit 1 ;;
    esac
fi

"$python" -m mmfusion_plugin.doctor > .venv/mmfusion-doctor.txt || {
    cat .venv/mmfusion-doctor.txt >&2
    exit 1
}
printf '%s' "$wanted" > "$stamp"
rm -f "$building"
say 'ready'
