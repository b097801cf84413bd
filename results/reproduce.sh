#!/usr/bin/env bash
# The commands of the published runs, from the project's root after `make setup`. Stopped, the same
# command goes on. What each took and where is in results/README.md.
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
for recipe in "${@:-notes}"; do
  "$python" train_teacher.py --recipe "$recipe" --resume
  for seed in 0; do
    "$python" train_baseline.py --recipe "$recipe" --seed "$seed" --resume
    "$python" train_student.py --recipe "$recipe" --seed "$seed" --resume \
      --teacher "runs/$recipe/teacher-resnet/seed-0"
  done
done
