#!/bin/sh
# Validation bits per byte of short runs on a CPU, one line per run: model, optim, rate of the matrices, rate of the rest, bpb.
#   run.sh d2 0.001,0.002,0.004 same     AdamW, one rate for all groups
#   run.sh d2 0.004 0.001,0.01           AdamW, the matrices at 0.004
#   run.sh d2 muon                       Muon's preset
# STEPS and PYTHON may be set.
set -e
model=$1 matrix=$2 other=$3
if [ "$matrix" = muon ]; then
    words=optim=muon
else
    [ "$other" = same ] && head='${optim.groups.matrix.lr}' || head=$other
    words="optim=adamw optim.groups.matrix.lr=$matrix optim.groups.head.lr=$head"
    for role in embedding value_embedding resid_scalar x0_scalar gate_scalar; do
        words="$words optim.groups.$role.lr=\${optim.groups.head.lr}"
    done
fi
# shellcheck disable=SC2086
"${PYTHON:-python}" -m nanochat.train -m +phase=base "model=$model" trainer=cpu compute.compile=false data=pydocs \
    model.sequence_len=256 batch_tokens=1024 data.rows_per_device=4 tokenizer.vocab_size=2048 "max_steps=${STEPS:-200}" \
    eval_every=null eval_tokens=65536 save_every=null "sample.prompts=[]" progress=none \
    "run_name=rates-$model" $words >"/tmp/rates.$$"
bpb() { sed -n 's/^trained.*val bpb \([0-9.]*\).*/\1/p' "/tmp/rates.$$"; }
if [ "$matrix" = muon ]; then
    echo "$model,muon,0.02,,$(bpb)"
elif [ "$other" = same ]; then
    bpb | for rate in $(echo "$matrix" | tr , ' '); do read -r value && echo "$model,adamw,$rate,$rate,$value"; done
else
    bpb | for rate in $(echo "$other" | tr , ' '); do read -r value && echo "$model,adamw,$matrix,$rate,$value"; done
fi
rm "/tmp/rates.$$"
