#!/usr/bin/env bash
# One call on a bare machine with a GPU: prove and measure (phase 1 only), train on, bring home what there is.
#   benchmarks/gpu/phase.sh PHASE SECONDS OUT CARRIED
# CARRIED holds site.zip (packages that the machine lacks), a/ and b/ with photos.tar, a/validation.tar, a/raw.tar and,
# where a run is to go on from weights alone, checkpoint/ (benchmarks/gpu/travel packs it and unpacks OUT).
# Training runs on between calls, as long as the machine is kept; RUN is its folder there, another one for each training.
# RECIPE is the training file; with RIVAL=1 it is a fixed-rate rival's, which is brought home as it is, not calibrated and
# timed as the next bundled one.
set -uo pipefail
phase=$1 seconds=$2 out=$3 carried=$4
started=$(date +%s)
left() { echo $((seconds - $(date +%s) + started)); }
run=${RUN:-$HOME/.cache/tatok-gpu}
site=$run/site
mkdir -p "$site" "$out"
python3 -m benchmarks.layout . "$run/layout"  # nothing is installed there
# PYTHONSAFEPATH: else the current folder comes first, whose tatok/ is a part of the package only.
export PYTHONPATH=$run/layout:$PWD:$site PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1
[ -e "$site/pydantic" ] || python3 -m zipfile -e "$carried/site.zip" "$site"
nvidia-smi --query-gpu=name,driver_version,memory.used --format=csv,noheader

if [ "$phase" = 1 ]; then
  python3 -m benchmarks.gpu.kit --out "$run/kit" --seconds "${KIT_SECONDS:-270}" --device cuda --photos "$carried/a/raw.tar" \
    --photos "$carried/a/validation.tar" 2>&1 | tail -c 5000
  cp "$run/kit/gpu.json" "$out/" && tar -C "$run" -czf "$out/kit-logs.tgz" kit
fi
echo "== $(left) s left"
alive() { [ -e "$run/pid" ] && kill -0 "$(cat "$run/pid")" 2> /dev/null; }
if ! alive && [ ! -e "$run/done" ]; then
  more=()
  if [ ! -e "$run/train/state.pt" ] && [ -e "$carried/checkpoint" ]; then
    more=(--start-from "$carried/checkpoint" --first-stage "${FIRST_STAGE:-1}")
  fi
  mkdir -p "$run/carried" && cp -r "$carried/a" "$run/carried/"
  setsid bash -c "python3 -m benchmarks.gpu.training.train ${RECIPE:-examples/train-photos-256-gpu.yaml} --output $run/train \
    --photos '$run/carried/*/photos.tar' --heldout $run/carried/a/validation.tar --scale ${SCALE:-1} ${more[*]:-} >> $run/train.log 2>&1 \
    && touch $run/done" < /dev/null > /dev/null 2>&1 &
  echo $! > "$run/pid"
fi
if [ -e "$carried/b" ] && [ ! -e "$run/carried/b" ]; then  # under its name once complete: a stage may start meanwhile
  cp -r "$carried/b" "$run/b.partial" && mv "$run/b.partial" "$run/carried/b"
fi
while [ "$(left)" -gt 20 ] && [ ! -e "$run/done" ] && alive; do sleep 2; done  # a run that died is told at once
nvidia-smi --query-gpu=utilization.gpu,memory.used,clocks.sm --format=csv,noheader
if [ -e "$run/train/checkpoint" ]; then
  tar -C "$run/train" -cf "$run/checkpoint.tar" checkpoint
  split -b 15M -d "$run/checkpoint.tar" "$out/checkpoint.tar."
  (cd "$out" && sha256sum checkpoint.tar.?? > checkpoint.sha256)
  (cd "$run" && tar -czf "$out/train.tgz" train.log train/metrics.jsonl $(ls -t train/samples/*.png | head -4))
fi
tail -c 3500 "$run/train.log"
if [ -e "$run/done" ] && [ "${RIVAL:-0}" = 0 ] && [ "$(left)" -gt 45 ]; then  # the new checkpoint, measured as the old one was
  cp "$run"/train/checkpoint/* tatok/weights/
  python3 -m benchmarks.gpu.training.calibrated tatok/weights "$carried/a/validation.tar" --tokens 56 --device cuda
  cp tatok/weights/config.json "$out/config.json"
  python3 -m benchmarks.gpu.kit --out "$run/kit-new" --seconds $(($(left) - 15)) --device cuda --only speed agreement \
    --photos "$carried/a/validation.tar" 2>&1 | tail -c 3000
  cp "$run/kit-new/gpu.json" "$out/gpu-new.json"
fi
