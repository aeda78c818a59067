"""Golden tokens, greedy text and log-probabilities of SmolLM2-135M-Instruct (bar: same model, same numbers).

Reads   the GGUF (Q4_1), dequantised to f32 by the gguf package and run by transformers.
Writes  tests/golden/smollm2/cases.json   prompts with ids, 24 greedy ids, log-probabilities, top 5 of the next id
        tests/golden/smollm2/tokens.json  240 or so strings with their token ids
Rerun   python scripts/golden/smollm2.py --model SmolLM2-135M-Instruct.Q4_1.gguf     (2 minutes on 2 cores)

A case: name, prompt (text, template applied), messages (where a chat made the prompt), ids, greedy (24 ids, end
tokens ignored), margin (the smallest gap between the two best logits in those 24 steps; every one is > 5e-3),
eos_at (index in greedy of the first end token, or null), logprobs (one for each id after the first, nats, f64
log-softmax of f32 logits), next_top5 ([id, logprob]).
The script stops if transformers' own reading of the GGUF gives other weights.
"""

import random
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from common import GOLDEN, arguments, encode, greedy, load_smollm2, renderer, smollm2_tokenizer, teacher_forced, versions, write_json

LONG = """The harbour master's log is the oldest book in the town hall. It begins in the spring of 1811, when the first
stone of the north pier was laid, and it has been kept without a gap ever since. Every ship that enters the harbour
is entered in the book: her name, her home port, her master, her cargo, the height of the tide and the direction of
the wind. In the early years the hand is careful and round; later it becomes hurried, for there were days on which
forty vessels came in on a single tide. Herring was the reason. Between 1840 and 1880 the fish came so close to the
coast that boys could fill a basket from the rocks, and whole streets of houses were built from the profit of three
good summers. Then, in 1884, the herring stayed away. The log does not complain; it only grows shorter. "No boats
out," it says, "wind north-east, hard," and on the next line: "No boats out." By the turn of the century the harbour
had found a second trade. The quarries in the hills behind the town sent down granite for the docks of larger cities,
and the small railway that carried it, 11 kilometres long with a gauge of 750 mm, ran until 1957. Its last engine
stands beside the museum, painted green, and on Sundays in July it is put under steam. Visitors often ask why the
clock on the harbour office shows two different times. The answer is in the log as well. In 1852 the railway company
introduced its own time, which was seven minutes ahead of the sun in this town, and the fishermen refused to use it.
The harbour master, a practical man, ordered a clock with two minute hands: a black one for the trains and a red one
for the tides. It has never been changed. Today the harbour belongs mostly to pleasure boats. There are 214 berths, a
sailing school, a yard that repairs wooden hulls and a cafe with a terrace from which one can watch the ferry turn.
The log is kept on a computer, but a printed page is pasted into the book at the end of each week, because the town
council decided in 1998 that a tradition of such length should not end with a machine. The present harbour master,
the first woman in the office, writes a few words by hand under every printed page. She notes the first swallow, the
last ice, and the days on which the porpoises come in with the tide. Asked what she would like a reader to find in
her pages after another two hundred years, she said that
there was only one thing she hoped for. She hoped that the harbour would still be there, that the water in it would
be clean, and that"""

CHATS = {
    "chat_capital": [{"role": "user", "content": "What is the capital of France?"}],
    "chat_system": [
        {"role": "system", "content": "You are a terse assistant. Answer in one sentence."},
        {"role": "user", "content": "Why is the sky blue?"},
    ],
    "chat_turns": [
        {"role": "user", "content": "Give me a name for a black cat."},
        {"role": "assistant", "content": "Midnight."},
        {"role": "user", "content": "And one for her ginger brother?"},
    ],
    "chat_blank": [{"role": "user", "content": ""}],
    "chat_code": [{"role": "user", "content": "Write a Python function that reverses a string."}],
}

TEXTS = {
    "prose": "The three states of matter are",
    "code_python": "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "code_rust": "fn main() {\n\tlet mut total: u64 = 0;\n\tfor i in 0..10 {\n\t\ttotal +=",
    "chinese": "北京是中国的首都，它的历史可以追溯到三千多年前。",
    "emoji": "I love pizza 🍕🍕 and my dog 🐶 is so cute! 👩‍👩‍👧 Let's celebrate 🎉",
    "white_space": "a  b   c\t\td\n\n\n   e \r\n    f\u00a0g   ",
    "digits": "3.14159 1234567890 2024-11-23 12:34:56 +49 30 1234 0x1F 10000 = 10",
    "long": LONG,
    "single_token": "Water",
    "accents": "Le café où naïveté rime avec fête: Straße, señor, Øresund,",
    "special_in_text": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello",
    "russian": "Москва — столица России, и",
}

STRINGS = [
    "", " ", "  ", "\n", "\t", "\r\n", " \n ", "a", " a", "a ", "Hello, world!", "hello world", "HELLO WORLD",
    "don't can't I'm we've they'll she'd it's", "DON'T I'LL", "it’s “quoted” — with dashes…",
    "0", "12", "123", "1234567890", "1,234.56", "v1.2.3-rc4", "2024-11-23T12:34:56Z", "a1b2c3", "１２３", "½ ² ³ ₄ ①",
    "٣٤٥", "Ⅷ", "x=10;y=200", "100%", "$5.00", "€20", "#42", "1st 2nd 3rd", "007", " 7", "7 ", "  77  ",
    "def f(x):\n\treturn x**2", "for (int i = 0; i < 10; ++i) { sum += a[i]; }", "SELECT * FROM t WHERE id = 5;",
    "<html><body class=\"x\">&nbsp;</body></html>", "https://example.com/a?b=1&c=%20#d", "user@example.com",
    "C:\\Users\\x\\file.txt", "/usr/local/bin", "a_b_c aBcDe ABcd", "snake_case camelCase kebab-case",
    "北京是中国的首都。", "日本語のテキスト、カタカナ、ひらがな", "한국어 문장입니다", "Привет, мир!", "Γειά σου Κόσμε",
    "שלום עולם", "مرحبا بالعالم", "नमस्ते दुनिया", "สวัสดีชาวโลก", "Xin chào thế giới", "Zażółć gęślą jaźń",
    "🙂", "👍🏽", "👩‍👩‍👧‍👦", "🇩🇪🇯🇵", "🏳️‍🌈", "a🙂b", "🍕🍕🍕 pizza 🍕", "e\u0301 vs é", "\u200b", "a\u200bb", "\ufeffbom",
    "\u00a0nbsp\u00a0", "\u3000wide\u3000", "tab\tseparated\tvalues", "trailing   ", "   leading", "a\n\nb", "a\n\n\nb",
    "a \n b", "a\n  b\n    c\n", "\n\n\n\n", "\t\t\t", "    ", "        x", "line\r\nline\r\n", "a\u2028b", "a\x00b", "\x7f",
    "\x1b[31mred\x1b[0m", "!!!", "?!?!", "...", "…", "—", "***bold***", "`code`", "~~~", "^_^", "(╯°□°)╯︵ ┻━┻",
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_start|>user\nHi<|im_end|>\n", "a<|im_end|>b", " <|im_end|> ",
    "<|im_end|><|im_end|>", "<|im_start|", "|im_start|>", "<repo_name>x<file_sep>y", "<empty_output>", "<|IM_END|>",
    "\\n \\t \\u1234", "\"'`´’‘", "ﬁ ﬂ ﬀ", "Ａｂｃ", "ſ ß ẞ İ ı", "∑∫√∞≠≤≥", "←↑→↓", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢", "𠜎𠜱", "a\u0300\u0301\u0302",
]


def varied_strings():
    """The fixed strings above and 120 random mixtures of pieces that meet awkwardly."""
    pieces = [" ", "  ", "\n", "\t", "1", "23", "4567", "the", "The", " of", "ing", "'s", "'", "-", ".", ",", "ö", "北", "京市",
              "🙂", "👩‍👩‍👧", "<|im_end|>", "<|im_start|>", "\u00a0", "\r\n", "x", "_", "{}", "//", "é", "Ж", "½", "\u200d", "९"]
    rng = random.Random(7)
    mixed = ["".join(rng.choice(pieces) for _ in range(rng.randint(2, 14))) for _ in range(120)]
    return STRINGS + mixed


def check_against_transformers(model, path):
    path = Path(path)
    other = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    theirs, ours = other.state_dict(), model.state_dict()
    assert theirs.keys() == ours.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), f"{name}: transformers reads other weights"
    print(f"{len(ours)} tensors equal transformers' own")


def main():
    args = arguments(__doc__)
    model = load_smollm2(args.model)
    check_against_transformers(model, args.model)
    tokenizer, template = smollm2_tokenizer(args.model)
    render = renderer(tokenizer, template)

    strings = [{"text": s, "ids": encode(tokenizer, s)} for s in varied_strings()]
    for entry in strings:
        assert tokenizer.decode(entry["ids"], skip_special_tokens=False) == entry["text"], entry
    write_json(GOLDEN / "smollm2" / "tokens.json", strings)

    cases = []
    prompts = [(n, render(m, True), m) for n, m in CHATS.items()] + [(n, t, None) for n, t in TEXTS.items()]
    for name, text, messages in prompts:
        ids = encode(tokenizer, text)
        new, gaps = greedy(model, ids, 24)
        logprobs, top5 = teacher_forced(model, ids)
        eos = next((i for i, token in enumerate(new) if token in (0, 2)), None)
        margin = min(gaps)
        print(f"{name:16} {len(ids):4} ids  margin {margin:.4f}  eos_at {eos}  {tokenizer.decode(new, skip_special_tokens=False)!r}", flush=True)
        case = {"name": name, "prompt": text, "ids": ids, "greedy": new, "margin": margin, "eos_at": eos,
                "logprobs": [round(v, 7) for v in logprobs], "next_top5": [[i, round(v, 7)] for i, v in top5]}
        if messages is not None:
            case["messages"] = messages
        if margin < 5e-3:
            print("  left out: a near tie")
            continue
        cases.append(case)
    write_json(GOLDEN / "smollm2" / "cases.json", {"source": Path(args.model).name, "versions": versions(), "cases": cases})
    assert len(cases) >= 14 and any(len(c["ids"]) >= 600 for c in cases)


if __name__ == "__main__":
    main()
