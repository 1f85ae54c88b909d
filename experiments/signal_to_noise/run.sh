#!/bin/bash
# d2 and d4 of two seeds on the mirror's prose, and the signal-to-noise of CORE's tasks over their last
# checkpoints. NANOCHAT_HUB_DIR names the mirror. A checkpoint of step 100 is one of the same run to
# evaluate; the table of README.md counts it as a recipe of its own.
set -e
NANOCHAT_BASE_DIR=${NANOCHAT_BASE_DIR:-$HOME/.cache/nanochat}
python -m nanochat.train -m +phase=base model.depth=2,4 seed=1,2 trainer=cpu data=open_prose \
    max_steps=250 batch_tokens=1024 save_every=25 checkpoints.keep_last=null eval_every=null \
    eval_tokens=32768 'sample.prompts=[]' 'run_name=snr-d${model.depth}-s${seed}' compute.compile=false
words=()
for folder in "$NANOCHAT_BASE_DIR"/runs/snr-d*/*/*/checkpoints/step_000{100,225,250}; do
    words+=("ckpt=$folder")
done
python -m nanochat.evaluate "${words[@]}" evals=core limit=16 evals.core.passage_swap=false
