#!/bin/sh
# What the portable arch costs, for the seed $1: d4, modern against classic, then classic without its
# softcap; same text, tokens, tokenizer and optimizer. NANOCHAT_HUB_DIR is a mirror of open-prose.
one() {
    python -m nanochat.train +phase=base model=d4 trainer=cpu data=open_prose seed=$SEED "$@" \
        tokenizer.vocab_size=4096 model.sequence_len=256 data.num_shards=1 data.packing=stream \
        data.rows_per_device=2 data.num_workers=0 batch_tokens=512 max_steps=200 \
        compute.compile=false save_every=null eval_every=null eval_tokens=65536 \
        'sample.prompts=[]' progress=lines || exit 1
}
SEED=$1
one arch=modern run_name=price-modern-$SEED
one arch=classic run_name=price-classic-$SEED
one arch=classic arch.softcap=null run_name=price-uncapped-$SEED
