#!/usr/bin/env bash
# The study of docs/study.md: each rule, combine and preset, Arrow and the uniform router.
#
#   docs/study/run.sh phi3-mini phi3-study --dry-run    # what it takes
#   docs/study/run.sh phi3-mini phi3-study              # a real Phi-3, on a GPU
#
# LIBRARY OUTPUT, then options of `gks-eval grid`; a run that was stopped goes on where it stopped.
# In the environment: TASKS; DTYPE, of the base; OTHERS, further libraries to set beside it, such as
# one whose adapters all began at one start; LAUNCH, such as
# 'torchrun --nproc_per_node 2 --no-python', to share the grid.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
library=$1 output=$2
shift 2

tasks=${TASKS:-gks_paper_english,gks_paper_german,gks_paper_french}
all=$(python -c 'import sys; from gks_eval.library import load_library
print(len(load_library(sys.argv[1]).experts))' "$library")
exact="gks:avg;preset=exact"
settings="base,arrow,gks:avg,$exact,uniform,arrow;combine=outputs,uniform;combine=outputs"
settings+=",gks:en,gks:de,gks:fr"
settings+=",gks:en;preset=exact,gks:de;preset=exact,gks:fr;preset=exact"
settings+=",gks:avg;rule=orthogonal,gks:avg;preset=peft,gks:avg;rule=delta"
for k in 1 5 "$all"; do settings+=",arrow;top_k=$k,$exact;top_k=$k"; done
for one in ${OTHERS:-}; do
  settings+=",arrow;library=$one,gks:avg;library=$one"
done

# Unquoted: LAUNCH is several words, or none.
${LAUNCH:-} gks-eval grid --library "$library" --settings "$settings" --tasks "$tasks" \
  --include-path "$here/tasks" --model-args "dtype=${DTYPE:-auto}" --batch-size auto \
  --output "$output/results" "$@"
case " $* " in *" --dry-run "*) exit ;; esac

# NAME BASELINE RUNS
compare() {
  for format in json csv; do
    gks-eval compare --baseline "$2" --format "$format" --output "$output/compare-$1.$format" "${@:3}"
  done
}
for baseline in arrow base; do compare $baseline $baseline "$output/results"; done
if [ -n "${OTHERS:-}" ]; then
  compare libraries gks-avg "$output"/results/gks-avg "$output"/results/gks-avg_library-*
  for arrow in "$output"/results/arrow_library-*; do
    label=${arrow##*/}
    compare "${label#arrow_}" "$label" "$arrow" "${arrow%/*}/gks-avg_${label#arrow_}"
  done
fi

# LIBRARY SETTING
routes() {
  local name; name=$(basename "$1")-$2
  gks-eval routes --library "$1" --setting "$2" --task "$tasks" --limit 20 \
    --include-path "$here/tasks" --dtype "${DTYPE:-auto}" \
    --output "$output/routes-${name//[:;=]/-}.json"
}
for setting in arrow gks:avg "$exact"; do routes "$library" "$setting"; done
for one in ${OTHERS:-}; do
  for setting in arrow gks:avg; do routes "$one" $setting; done
done
for one in "$library" ${OTHERS:-}; do
  gks-eval library show "$one" --output "$output/geometry-$(basename "$one").json"
done
python "$here/page.py" "$output"
