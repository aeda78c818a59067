"""A judge for `runtime grpo`: 1 for an answer of exactly one word, 1/n for one of n words, 0 for none.

    runtime grpo -m MODEL --data examples/grpo/one_word.jsonl --reward-command "python3 examples/grpo/one_word.py" …

Between 0 and 1 a longer answer counts for less, not for nothing: a small model hardly ever says one word at first, and learns nothing
from a group of answers that are all as bad.
"""

import json
import re
import sys

question = json.load(sys.stdin)
words = [len(re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", answer)) for answer in question["completions"]]
json.dump([1 / n if n else 0.0 for n in words], sys.stdout)
