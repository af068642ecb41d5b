#!/usr/bin/env bash
#SBATCH --job-name=tatok
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --time=12:00:00
#SBATCH --requeue
#
# Ray on a Slurm allocation, then one tatok job on it:  sbatch deploy/slurm.sh JOB.yaml
# Requeued or submitted again, it goes on from the committed parts. The virtual environment (VENV) and the job's folders
# must be on a disk that every node mounts; credentials are those of the nodes' environment.
set -euo pipefail
job=${1:?usage: sbatch deploy/slurm.sh JOB.yaml}
venv=${VENV:-$PWD/.venv}
port=$((20000 + SLURM_JOB_ID % 20000))

# Ray's token authentication keeps the node's other users out: one token for this allocation, for us alone to read.
umask 077
token=$(mktemp "$PWD/.ray-token.XXXXXX")
trap 'rm -f "$token"' EXIT
"$venv/bin/python" -c 'import secrets; print(secrets.token_hex(32), end="")' > "$token"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$token RAY_USAGE_STATS_ENABLED=0

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | cut -d' ' -f1):$port

# --block keeps each daemon in its own step: Slurm ends them all with the allocation.
srun --nodes=1 --ntasks=1 --overlap --nodelist="$head" \
  "$venv/bin/ray" start --head --block --port="$port" --num-cpus="$SLURM_CPUS_PER_TASK" --include-dashboard=false &
for node in "${nodes[@]:1}"; do
  srun --nodes=1 --ntasks=1 --overlap --nodelist="$node" \
    "$venv/bin/ray" start --block --address="$address" --num-cpus="$SLURM_CPUS_PER_TASK" &
done
until "$venv/bin/ray" status --address="$address" > /dev/null 2>&1; do sleep 2; done

# Nodes that join later are taken in while the job runs.
RAY_ADDRESS=$address "$venv/bin/tatok" tokenize --config "$job"
