"""A judge for `runtime grpo`: 1 for an answer of exactly one word, 0 for any other.

    runtime grpo -m MODEL --data examples/grpo/one_word.jsonl --reward-command "python3 examples/grpo/one_word.py" …
"""

import json
import re
import sys

question = json.load(sys.stdin)
one_word = re.compile(r"\s*[^\W_]+(?:['’-][^\W_]+)*[.!]?\s*")
json.dump([float(bool(one_word.fullmatch(answer))) for answer in question["completions"]], sys.stdout)
