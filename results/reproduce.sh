#!/usr/bin/env bash
# The commands of the published runs, from the project's root after `make setup`. Stopped, the same
# command goes on. One thread, because the last bits depend on their number; on several cores, run
# it for each recipe at the same time: `bash results/reproduce.sh notes & bash results/reproduce.sh best`.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1
train() { .venv/bin/python "train_$1.py" --recipe "$recipe" --resume "${@:2}"; }
for recipe in "${@:-notes}"; do
  train teacher --arch resnet # one for all seeds
  for seed in 0 1 2; do
    train baseline --seed "$seed"
    train student --seed "$seed" --teacher "runs/$recipe/teacher-resnet/seed-0"
  done
  train teacher --arch cnn
  train student --teacher "runs/$recipe/teacher-cnn/seed-0"
done
