#!/usr/bin/env bash
# The commands of the published runs, from the project's root after `make setup`: of notes, best, or
# on-cpu, the baselines of both on a CPU. Stopped, the same command goes on. One thread, because on
# a CPU the last bits depend on their number. On several cores, run both recipes at once: `bash
# results/reproduce.sh notes & bash results/reproduce.sh best`.
set -euo pipefail
cd "$(dirname "$0")/.."
train() {
  OMP_NUM_THREADS=1 .venv/bin/python "train_$1.py" --recipe "$recipe" --seed "$seed" --resume "${@:2}"
}
networks() {
  train baseline
  for arch in resnet cnn; do
    train teacher --arch $arch
    train student --teacher "runs/$recipe/teacher-$arch/seed-$seed"
  done
}
controls() {
  local teachers=runs/$recipe/teacher-resnet
  local three=("$teachers"/seed-{$seed,$(((seed + 1) % 5)),$(((seed + 2) % 5))})
  train baseline --label-smoothing 0.1 --out "runs/$recipe/baseline-smoothed/seed-$seed"
  for loss in dist logit-standard dkd; do
    train student --loss $loss --teacher "$teachers/seed-$seed"
  done
  train student --teacher "${three[@]}"
  train baseline --arch deeper-cnn
  train student --arch deeper-cnn --teacher "$teachers/seed-0" "$teachers"-on-cpu/seed-{1,2}
  train baseline --epochs 100 --out "runs/$recipe/baseline-100-epochs/seed-$seed"
}
on_cpu() { train baseline --device cpu --out "runs/$recipe/baseline-on-cpu/seed-$seed"; }
each_seed() { for seed in 0 1 2 3 4; do "$1"; done; }
for part in "${@:-notes}"; do
  case $part in
    notes) recipe=notes; each_seed networks ;; # not by &&: a failure would be passed over
    best)
      recipe=best
      each_seed networks
      for seed in 1 2; do
        train teacher --device cpu --out "runs/best/teacher-resnet-on-cpu/seed-$seed"
      done
      each_seed controls
      ;;
    on-cpu) for recipe in notes best; do each_seed on_cpu; done ;;
    *) echo "error: $part is none of notes, best, on-cpu" >&2 && exit 2 ;;
  esac
done
