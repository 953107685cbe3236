#!/usr/bin/env bash
# [GPUS=4 GPUS_PER_NODE=4 CPUS_PER_TASK=5 PORT=29500 SRUN_ARGS=...] tools/slurm_train.sh PARTITION JOB_NAME CONFIG [arguments of tools/train.py]
set -euo pipefail
if [ $# -lt 3 ]; then
    echo "usage: $0 PARTITION JOB_NAME CONFIG [arguments of tools/train.py]" >&2
    exit 2
fi
partition=$1 job=$2 config=$3
gpus=${GPUS:-4}
gpus_per_node=${GPUS_PER_NODE:-4}
tools=$(cd "$(dirname "$0")" && pwd)

# mmengine reads MASTER_PORT, which srun hands on: two jobs that share a machine need two ports.
export MASTER_PORT="${PORT:-${MASTER_PORT:-29500}}"
# SRUN_ARGS holds several arguments in one string, hence no quotes.
PYTHONPATH="$(dirname "$tools")${PYTHONPATH:+:$PYTHONPATH}" \
exec srun -p "$partition" \
    --job-name="$job" \
    --gres="gpu:$((gpus < gpus_per_node ? gpus : gpus_per_node))" \
    --ntasks="$gpus" \
    --ntasks-per-node="$((gpus < gpus_per_node ? gpus : gpus_per_node))" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 \
    ${SRUN_ARGS:-} \
    "${PYTHON:-python}" -u "$tools/train.py" "$config" --launcher slurm "${@:4}"
