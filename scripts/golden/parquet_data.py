"""The rows of tests/golden/sft/data.jsonl as Parquet, as data sets are published.

Reads   tests/golden/sft/data.jsonl.
Writes  tests/golden/sft/data_snappy.parquet, data_zstd.parquet, with small row groups.
Rerun   python scripts/golden/parquet_data.py   (needs pyarrow; a second)
"""

import pyarrow.json as reader
import pyarrow.parquet as parquet
from pathlib import Path

SFT = Path(__file__).resolve().parents[2] / "tests" / "golden" / "sft"

table = reader.read_json(SFT / "data.jsonl")
for compression in ("snappy", "zstd"):
    parquet.write_table(table, SFT / f"data_{compression}.parquet", compression=compression, row_group_size=20)
