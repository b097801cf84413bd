#!/usr/bin/env bash
# The commands of the published runs, and of what is missing of five seeds, from the project's root
# after `make setup`: of notes, best or best-v1. Stopped, the same command goes on. The number of
# threads is given because on a CPU the last bits depend on it. On several cores, run both recipes
# at once: `bash results/reproduce.sh notes & bash results/reproduce.sh best`.
set -euo pipefail
cd "$(dirname "$0")/.."
train() { OMP_NUM_THREADS=$1 .venv/bin/python "train_$2.py" --recipe "$recipe" --resume "${@:3}"; }
for part in "${@:-notes}"; do
  case $part in
    notes | best)
      recipe=$part runs=runs/$part
      taught_by=(0 1 2 0 0) # by which seed's ResNet
      [ "$part" = best ] || taught_by[2]=0
      for seed in 0 1 2 3 4; do
        for arch in resnet cnn; do train 1 teacher --arch "$arch" --seed "$seed"; done
        train 1 baseline --seed "$seed"
        train 1 student --seed "$seed" --teacher "$runs/teacher-resnet/seed-${taught_by[seed]}"
        train 1 student --seed "$seed" --teacher "$runs/teacher-cnn/seed-$seed"
      done
      [ "$part" = notes ] || # an ensemble
        train 1 student --seed 3 --teacher "$runs"/teacher-{resnet/seed-0,cnn/seed-3}
      ;;
    best-v1)
      recipe=best runs=runs-best-v1
      old=(--weight-decay 1e-3 --cutout 10) first=$runs/teacher-resnet/seed-0
      train 1 teacher --arch resnet "${old[@]}" --out "$first"
      for seed in 0 1 2 3 4; do
        train 1 baseline --seed "$seed" --out "$runs/baseline/seed-$seed"
        train 1 baseline --seed "$seed" --label-smoothing 0.1 \
          --out "$runs/baseline-smoothed/seed-$seed"
        train 1 student --seed "$seed" --teacher "$first" --out "$runs/student-resnet/seed-$seed"
        train 1 student --seed "$seed" --teacher "$first" --loss dist \
          --out "$runs/student-resnet-dist/seed-$seed"
      done
      train 1 baseline --epochs 100 --out "$runs/baseline-100-epochs/seed-0"
      train 1 student --teacher "$first" --loss logit-standard \
        --out "$runs/student-resnet-logit-standard/seed-0"
      in_float32=(--precision float32)
      train 2 baseline "${in_float32[@]}" --out "$runs/baseline-float32/seed-0"
      train 2 student "${in_float32[@]}" --loss dkd --teacher "$first" \
        --out "$runs/student-resnet-dkd/seed-0"
      ;;
    *) echo "error: $part is none of notes, best, best-v1" >&2 && exit 2 ;;
  esac
done
