#!/usr/bin/env bash
# The commands of the published runs, and of what is missing of five seeds, from the project's root
# after `make setup`: of notes, best, or on-cpu, the baselines of notes on a CPU. Stopped, the same
# command goes on. One thread, because on a CPU the last bits depend on their number. On several
# cores, run both recipes at once: `bash results/reproduce.sh notes & bash results/reproduce.sh best`.
set -euo pipefail
cd "$(dirname "$0")/.."
train() {
  OMP_NUM_THREADS=1 .venv/bin/python "train_$1.py" --recipe "$recipe" --seed "$seed" --resume "${@:2}"
}
for recipe in "${@:-notes}"; do
  runs=runs/$recipe
  case $recipe in
    notes | best) ;;
    on-cpu)
      recipe=notes
      for seed in 0 1 2 3 4; do
        train baseline --device cpu --out "runs/notes/baseline-on-cpu/seed-$seed"
      done
      continue
      ;;
    *) echo "error: $recipe is none of notes, best, on-cpu" >&2 && exit 2 ;;
  esac
  for seed in 0 1 2 3 4; do
    train baseline
    for arch in resnet cnn; do
      train teacher --arch $arch
      train student --teacher "$runs/teacher-$arch/seed-$seed"
    done
  done
  [ "$recipe" = best ] || continue
  for seed in 0 1 2 3 4; do # the controls
    teachers=$runs/teacher-resnet
    train baseline --label-smoothing 0.1 --out "$runs/baseline-smoothed/seed-$seed"
    for loss in dist logit-standard dkd; do
      train student --loss $loss --teacher "$teachers/seed-$seed"
    done
    train student --teacher "$teachers"/seed-{$seed,$(((seed + 1) % 5)),$(((seed + 2) % 5))}
    train baseline --epochs 100 --out "$runs/baseline-100-epochs/seed-$seed"
  done
done
