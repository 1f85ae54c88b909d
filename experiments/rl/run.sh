#!/usr/bin/env bash
# Reinforcement learning on a d4 chain (base -> mid -> sft are `make demo`'s): spelling with three seeds of phase rl, then of the whole chain (10
# minutes each), then GSM8K from the mirror with three seeds.
# bash experiments/rl/run.sh [DEMO_SFT] [CHAT_SFT]; the second is what experiments/open_chat/run.sh trains.
set -euo pipefail
cd "$(dirname "$0")/../.."
demo=${1:-demo-sft@latest} chat=${2:-open-chat-sft@latest} python=${PYTHON:-.venv/bin/python}
for seed in 1 2 3; do
    $python -m nanochat.train experiment=demo_rl init_from="$demo" seed=$seed run_name=rl-spelling-$seed progress=lines
done
for seed in ${CHAINS:-1 2 42}; do
    $python -m nanochat.train experiment=demo seed=$seed run_name=chain-$seed-base progress=lines
    $python -m nanochat.train experiment=demo_mid seed=$seed run_name=chain-$seed-mid init_from=chain-$seed-base@latest progress=lines
    $python -m nanochat.train experiment=demo_sft seed=$seed run_name=chain-$seed-sft init_from=chain-$seed-mid@latest progress=lines
    $python -m nanochat.train experiment=demo_rl seed=$seed run_name=chain-$seed-rl init_from=chain-$seed-sft@latest progress=lines
done
if [ -n "${NANOCHAT_HUB_DIR:-}" ]; then
    for seed in 1 2 3; do
        $python -m nanochat.train +phase=rl init_from="$chat" task=gsm8k trainer=cpu run_name=rl-gsm8k-$seed seed=$seed force=true progress=lines \
            rollout.questions=8 rollout.max_tokens=96 evals.pass_at_k.limit=100 evals.pass_at_k.samples=4 preflight.questions=16 max_steps=12 eval_every=null
    done
fi
