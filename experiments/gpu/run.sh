#!/usr/bin/env bash
# Speed and memory of pretraining on one GPU: d12 and d20, and the original beside them if PEER is its checkout; then decoding.
#   bash experiments/gpu/run.sh            PEER=/path/to/nanochat bash experiments/gpu/run.sh
# Prints the GPU tests' result and a table; needs no network (text: this Python's own documentation).
set -uo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-python}
export NANOCHAT_BASE_DIR=${NANOCHAT_BASE_DIR:-$(mktemp -d)} PYTHONPATH=src:${PYTHONPATH:-}
STEPS=${STEPS:-12}
$PYTHON -m pytest -q -m gpu tests || true
for depth in ${DEPTHS:-12 20}; do
  for attention in ${ATTENTION:-flex sdpa}; do
    $PYTHON -m nanochat.train +phase=base model=d$depth trainer=1xh100 data=pydocs compute.attention=$attention batch_tokens=524288 \
      data.rows_per_device=${ROWS:-16} max_steps=$STEPS run_name=d$depth-$attention save_every=null eval_every=null eval_tokens=131072 \
      "sample.prompts=[]" progress=none || echo "d$depth $attention failed"
  done
done
$PYTHON - <<'P'
import csv, os, pathlib, statistics
print(f"{'run':16} {'tokens/s':>10} {'MFU %':>7} {'peak GiB':>9}")
for file in sorted(pathlib.Path(os.environ["NANOCHAT_BASE_DIR"], "runs").glob("*/*/metrics.csv")):
    rows = [r for r in csv.DictReader(file.open()) if r["train/loss"]][4:]
    middle = lambda key: statistics.median(float(r[key]) for r in rows if r.get(key))
    print(f"{file.parts[-3]:16} {middle('perf/tokens_per_second'):10,.0f} {100 * middle('perf/mfu'):7.1f} {middle('perf/peak_memory_gib'):9.1f}")
P
if [ -n "${PEER:-}" ]; then
  for depth in ${DEPTHS:-12 20}; do
    (cd "$PEER" && $PYTHON -m scripts.base_train --depth=$depth --device-batch-size=${ROWS:-16} --total-batch-size=524288 --num-iterations=$STEPS \
      --eval-every=-1 --core-metric-every=-1 --sample-every=-1 | grep -E "tok/sec|Peak memory" | tail -n 4)
  done
fi

# decoding; for one text of d20 an MBU of 70 % is wanted
for compile in false true; do
  $PYTHON -m nanochat.bench model=d20 vocab_size=65536 precision=bf16 prompt_tokens=1024 decode_tokens=256 "batches=[1,8,64]" compile=$compile || echo "bench d20 failed"
  $PYTHON -m nanochat.bench model=d12 vocab_size=32768 precision=bf16 prompt_tokens=128 decode_tokens=256 "batches=[1,8,64]" compile=$compile || echo "bench d12 failed"
done

# where one step goes; the second time inductor writes products of one row itself
$PYTHON experiments/gpu/decode.py 20 65536 1024 || echo "decode d20 failed"
TORCHINDUCTOR_COORDINATE_DESCENT_TUNING=1 $PYTHON experiments/gpu/decode.py 20 65536 1024 || echo "decode d20 tuned failed"

# RL from a model just trained (it has learned nothing; what counts is seconds, memory and how far engine and trainer are apart in bf16)
for depth in ${DEPTHS:-12 20}; do
  $PYTHON -m nanochat.train +phase=rl trainer=1xh100 init_from=d$depth-sdpa@latest task=arithmetic force=true max_steps=3 run_name=rl-d$depth rollout.max_tokens=128 \
    save_every=null eval_every=null eval_at_start=false evals.pass_at_k.limit=16 preflight.questions=16 "sample.prompts=[]" progress=none || echo "rl d$depth failed"
done
$PYTHON - <<'P'
import csv, os, pathlib
keys = ("seconds/rollout", "seconds/update", "memory/rollout_gib", "memory/update_gib", "rl/length", "rl/logprob_gap", "rl/logprob_gap_max")
for file in sorted(pathlib.Path(os.environ["NANOCHAT_BASE_DIR"], "runs").glob("rl-*/*/metrics.csv")):
    last = [row for row in csv.DictReader(file.open()) if row["train/loss"]][-1]
    print(file.parts[-3], *(f"{key} {float(last[key]):.3g}" for key in keys if last.get(key)), sep="  ")
P
