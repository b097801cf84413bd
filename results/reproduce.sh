#!/usr/bin/env bash
# The commands of the published runs, from the project's root after `make setup`. Stopped, the same
# command goes on. The number of threads is given because the last bits depend on it. On several
# cores, run both recipes at once: `bash results/reproduce.sh notes & bash results/reproduce.sh best`.
set -euo pipefail
cd "$(dirname "$0")/.."
train() { OMP_NUM_THREADS=$1 .venv/bin/python "train_$2.py" --recipe "$recipe" --resume "${@:3}"; }
declare -A threads=([notes]=2 [best]=1) # of the ResNet teacher
for recipe in "${@:-notes}"; do
  train "${threads[$recipe]}" teacher --arch resnet # one for all seeds
  train 1 teacher --arch cnn
  for seed in 0 1 2 3 4; do # experiment 2
    train 1 baseline --seed "$seed"
    train 1 student --seed "$seed" --teacher "runs/$recipe/teacher-resnet/seed-0"
  done
  train 1 student --teacher "runs/$recipe/teacher-cnn/seed-0"
  if [ "$recipe" = best ]; then # controls, and an ensemble as the teacher
    train 1 baseline --label-smoothing 0.1 --out runs/best/baseline-smoothed/seed-0
    train 1 baseline --epochs 100 --out runs/best/baseline-100-epochs/seed-0
    for loss in dist logit-standard; do
      train 1 student --loss "$loss" --teacher results/best/teacher-resnet/seed-0
    done
    train 2 baseline --precision float32 --out runs/best/baseline-float32/seed-0
    train 2 student --precision float32 --loss dkd --teacher results/best/teacher-resnet/seed-0
    second=runs/best/teacher-resnet-wd5e-4/seed-0
    train 2 teacher --precision float32 --weight-decay 5e-4 --cutout 8 --out "$second"
    train 2 student --precision float32 --teacher results/best/teacher-resnet/seed-0 "$second"
  fi
done
