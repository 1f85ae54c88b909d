#!/usr/bin/env bash
# What only a GPU can say, in one call of nine minutes and one table, most important first:
#   bash experiments/gpu/run.sh        PEER=/path/to/nanochat PEER_PYTHON=… bash experiments/gpu/run.sh
# Each part has its own time limit (520 s in all) and one that fails does not stop the next. Without CUDA, or
# with DRY=1, tiny sizes on the CPU try the script itself. Needs no network: the text is this Python's own documentation.
set -uo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-python}
export PYTHONPATH=src:${PYTHONPATH:-}
export NANOCHAT_BASE_DIR=${NANOCHAT_BASE_DIR:-$(mktemp -d)}
OUT=${OUT:-$NANOCHAT_BASE_DIR}
HERE=experiments/gpu
if [ "${DRY:-0}" = 1 ] || ! $PYTHON -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
  export DRY=1 CUDA_VISIBLE_DEVICES=
  echo "unrun: no CUDA device; tiny sizes on the CPU try the script"
fi

part() {  # seconds, title, command
  local limit=$1 title=$2 start=$SECONDS
  shift 2
  timeout -k 5 "${LIMIT:-$limit}" "$@" >"$OUT/part.log" 2>&1
  local code=$?
  cat "$OUT/part.log" >>"$OUT/all.log"
  {
    echo "| **$title** ($((SECONDS - start)) s of $limit) | | | | |"
    grep '^| ' "$OUT/part.log" | grep -v '^| what'
    [ $code -eq 0 ] || echo "| $title: exit code $code, $(grep -v '^| ' "$OUT/part.log" | tail -n 1 | tr '|' ' ' | cut -c 1-160) | | | | |"
  } | tee -a "$OUT/table.md"
}

bench() {  # seconds, title, words for make bench
  local limit=$1 title=$2
  shift 2
  part "$limit" "$title" $PYTHON experiments/bench/bench.py limit="${LIMIT:-$limit}" json="$OUT/${title// /_}.json" "$@"
}

peer=(${PEER:+peer="$PEER"} ${PEER_PYTHON:+peer_python="$PEER_PYTHON"})
if [ "${DRY:-0}" = 1 ]; then
  small=(depth=2 sequence_len=128 vocab_size=1024 rows=2 steps=1 rounds=1 compile=0 text_mb=0.5 parts=training)
  d12=("${small[@]}" "${peer[@]}") d20=("${small[@]}") d34=("${small[@]}" rows=1) eight=()
else
  card=(sequence_len=2048 accumulate=2 steps=3 rounds=2 text_mb=12 parts=training)
  d12=("${card[@]}" depth=12 rows=16 vocab_size=32768 "${peer[@]}")
  d20=("${card[@]}" depth=20 rows=8 vocab_size=32768 "${peer[@]}")
  d34=("${card[@]}" depth=34 rows=8 vocab_size=32768 accumulate=1 steps=2)
  eight=("${card[@]}" depth=20 rows=8 vocab_size=32768)
fi

: >"$OUT/table.md"
echo "| what | here | original, predicted or wanted | ratio | of CPU time |"
echo "|---|---|---|---|---|"
part 40 "attention back-ends" $PYTHON $HERE/parts.py back_ends
part 50 "recorded decoding" $PYTHON $HERE/parts.py recorded
bench 90 "training d12" "${d12[@]}"
bench 90 "training d20" "${d20[@]}"
bench 70 "training d34 as in midtraining" "${d34[@]}"
part 60 "decoding" $PYTHON $HERE/parts.py decode
part 50 "RL step" $PYTHON $HERE/parts.py rl
[ ${#eight[@]} -gt 0 ] && bench 40 "training d20 in fp8" "${eight[@]}" more=compute.fp8=true
part 30 "tests" $PYTHON $HERE/parts.py tests
echo "table: $OUT/table.md; everything that was printed: $OUT/all.log"
