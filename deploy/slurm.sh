#!/usr/bin/env bash
#SBATCH --job-name=tatok
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --exclusive
#SBATCH --time=12:00:00
#SBATCH --requeue
#
# Ray on a Slurm allocation, then one tatok job on it:  sbatch deploy/slurm.sh JOB.yaml [OPTION OF TATOK TOKENIZE...]
# such as --log photos.jsonl. Requeued or submitted again, it resumes from the committed parts. The virtual environment
# (VENV) and the job's folders must be on a disk that every node mounts; credentials are those of the nodes' environment.
# Whole nodes (--exclusive), because Ray's ports would meet those of another Ray on the same node.
set -euo pipefail
job=${1:?usage: sbatch deploy/slurm.sh JOB.yaml [OPTION OF TATOK TOKENIZE...]}
venv=${VENV:-$PWD/.venv}
port=$((20000 + SLURM_JOB_ID % 20000))
deadline=$((SECONDS + ${RAY_START_TIMEOUT_S:-300}))

# Ray's token authentication keeps the node's other users out: one token for this allocation, for us alone to read.
umask 077
token=$(mktemp "$PWD/.ray-token.XXXXXX")
trap 'rm -f "$token"; kill $(jobs -p) 2> /dev/null || true' EXIT
"$venv/bin/python" -c 'import secrets; print(secrets.token_hex(32), end="")' > "$token"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$token RAY_USAGE_STATS_ENABLED=0

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | cut -d' ' -f1):$port

# --block keeps each daemon in its own step: Slurm ends them all with the allocation. Steps do not inherit the job's
# --cpus-per-task. A folder of our own, because /tmp/ray may belong to who had the node before; sockets in it need a
# short path.
step=(srun --nodes=1 --ntasks=1 --overlap --cpus-per-task="$SLURM_CPUS_PER_TASK")
"${step[@]}" --nodelist="$head" "$venv/bin/ray" start --head --block --port="$port" \
  --num-cpus="$SLURM_CPUS_PER_TASK" --include-dashboard=false --temp-dir="/tmp/tatok-$SLURM_JOB_ID" &
head_step=$!
for node in "${nodes[@]:1}"; do
  "${step[@]}" --nodelist="$node" "$venv/bin/ray" start --block --address="$address" \
    --num-cpus="$SLURM_CPUS_PER_TASK" &
done
until timeout 60 "$venv/bin/ray" status --address="$address" > /dev/null 2>&1; do
  if ! kill -0 "$head_step" 2> /dev/null; then
    echo "error: the Ray head on $head has ended; what it said stands above" >&2
    exit 1
  fi
  if ((SECONDS >= deadline)); then
    echo "error: the Ray head on $head does not answer; give it longer with RAY_START_TIMEOUT_S" >&2
    exit 1
  fi
  sleep 2
done

# Nodes that join later are taken in while the job runs.
RAY_ADDRESS=$address "$venv/bin/tatok" tokenize --config "$job" "${@:2}"
