#!/usr/bin/env bash
# Base -> mid -> SFT of a d4 on real conversations: NANOCHAT_HUB_DIR=… bash experiments/open_chat/run.sh
# Starts from the checkpoint of experiments/open_prose_10min (BASE=RUN@latest for another). Prints each phase's accuracy and bits per byte.
set -euo pipefail
PYTHON=${PYTHON:-python} BASE=${BASE:-open-prose-10min@latest} STEPS=${STEPS:-300}
QUICK="trainer=cpu compute.compile=false eval_every=null eval_tokens=131072 eval_at_start=false save_every=100 sample.prompts=[] resume=auto"
$PYTHON -m nanochat.train +phase=mid data=open_chat init_from=$BASE max_steps=$STEPS run_name=open-chat-mid $QUICK
$PYTHON -m nanochat.train +phase=sft data=open_chat init_from=open-chat-mid@latest max_steps=$STEPS run_name=open-chat-sft $QUICK
for ckpt in $BASE open-chat-mid@latest open-chat-sft@latest; do
  echo "== $ckpt"
  $PYTHON -m nanochat.evaluate ckpt=$ckpt data=open_chat evals=bpb,arc_easy,arc_challenge,openbookqa eval_tokens=131072 evals.tasks.limit=null
  $PYTHON -m nanochat.evaluate ckpt=$ckpt evals=gsm8k evals.tasks.limit=200
done
