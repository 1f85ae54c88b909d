"""A hub small enough to try `pipeline=d34_chat` on a CPU:
`python experiments/interop/stand_in.py OUT` with NANOCHAT_HUB_DIR set.

OUT/karpathy/nanochat-d34 is a classic GPT of 4 layers as the original saves it, all files in one
folder as d34 is published. The data sets are those of the mirror NANOCHAT_HUB_DIR, repeated where
they have too few rows; MMLU's training questions are made of its test questions, and SmolTalk's
conversations of OASST's, which the mirror has instead.
"""

import os
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "interop"))
from original_files import write

ROWS = {"auxiliary_train": 500, "test": 5200, "train": 10_000}  # that conf/data asks for, by split
# data set and file -> that of the mirror
FILES = {
    "cais/mmlu/all/auxiliary_train.parquet": "cais/mmlu/all/test-*.parquet",
    "cais/mmlu/all/test.parquet": "cais/mmlu/all/test-*.parquet",
    "openai/gsm8k/main/train.parquet": "openai/gsm8k/main/train-*.parquet",
    "openai/gsm8k/main/test.parquet": "openai/gsm8k/main/test-*.parquet",
    **{
        f"allenai/ai2_arc/{part}/{split}.parquet": f"allenai/ai2_arc/{part}/{split}-*.parquet"
        for part in ("ARC-Easy", "ARC-Challenge")
        for split in ("train", "test")
    },
    **{
        f"HuggingFaceTB/smol-smoltalk/data/{split}.parquet": (
            f"OpenAssistant/oasst1-en-threads/data/{split}-*.parquet"
        )
        for split in ("train", "test")
    },
}


def main(out: Path) -> None:
    mirror = Path(os.environ["NANOCHAT_HUB_DIR"])
    for name, pattern in FILES.items():
        (source,) = mirror.glob(pattern)
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        table, rows = pq.read_table(source), ROWS[Path(name).stem]
        copies = -(-rows // len(table))
        pq.write_table(pa.concat_tables([table] * copies).slice(0, rows), out / name)
    for readme in ("cais/mmlu", "openai/gsm8k", "allenai/ai2_arc"):  # say which file is which split
        configs = [
            f"- config_name: {config.name}\n  data_files:\n"
            + "".join(
                f"  - split: {file.stem}\n    path: {config.name}/{file.name}\n"
                for file in sorted(config.glob("*.parquet"))
            )
            for config in sorted(path for path in (out / readme).iterdir() if path.is_dir())
        ]
        (out / readme / "README.md").write_text("---\nconfigs:\n" + "".join(configs) + "---\n")
    model = out / "karpathy" / "nanochat-d34"
    meta = {"device_batch_size": 4, "max_seq_len": 256, "total_batch_size": 8192}
    write(
        out, "classic", group="karpathy", tag="nanochat-d34", step=169150, tokenizer=model, **meta
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
