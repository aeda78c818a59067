"""Lengths of a mixed traffic, as JSON lines for `runtime bench --traffic FILE`: traffic.py [REQUESTS] [SEED].

Prompts have lognormal(4.9, 1.0) tokens, clipped to 4…2048, answers lognormal(4.9, 0.9), clipped to 4…1024: many short ones
and a few long ones, as a public endpoint sees them. 1,000 requests of seed 0 are 217k tokens in and 197k out.
"""

import json
import random
import sys


def tokens(rng, spread, most):
    return max(4, min(most, int(rng.lognormvariate(4.9, spread))))


requests = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
rng = random.Random(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
for _ in range(requests):
    print(json.dumps({"prompt_tokens": tokens(rng, 1.0, 2048), "max_tokens": tokens(rng, 0.9, 1024)}))
