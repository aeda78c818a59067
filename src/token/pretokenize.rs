//! How byte-level BPE vocabularies cut text into words, by the name in `tokenizer.ggml.pre`.
//!
//! Each kind is a list of patterns. A pattern cuts every piece the earlier ones left, and both its
//! matches and the gaps between them become pieces. The patterns are those that llama.cpp uses for the
//! same name: GGUF files are written for it, and where its pattern differs from the model's original
//! (`tekken` approximates letter case), its ids are the ones users of the file know.

use tokenizers::SplitDelimiterBehavior::Isolated;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};

use crate::{Error, Result};

/// English contractions in either case.
const CONTRACTION: &str = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])";
/// GPT-2's pattern (Radford et al. 2019), up to its last alternative, which matches what is left anyway.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";
/// White space after everything else, in the patterns since GPT-4.
const SPACE: &str = r"\s*[\r\n]+|\s+(?!\S)|\s+";
const DIGIT: &str = r"\p{N}";
const UP_TO_3_DIGITS: &str = r"\p{N}{1,3}";
/// CJK ideographs and kana.
const CJK: &str = "[一-龥぀-ゟ゠-ヿ]+";
/// CJK as the first DeepSeek models cut it; the ranges look odd and are the original's.
const DEEPSEEK_CJK: &str = "[一-龥ࠀ-一가-퟿]+";
/// Every cased letter, spelled out: the original lists them.
const DEEPSEEK_LETTERS: &str = "\\s?[\
    A-Za-z\u{B5}\u{C0}-\u{D6}\u{D8}-\u{F6}\u{F8}-\u{1BA}\u{1BC}-\u{1BF}\u{1C4}-\u{293}\u{295}-\u{2AF}\
    \u{370}-\u{373}\u{376}\u{377}\u{37B}-\u{37D}\u{37F}\u{386}\u{388}-\u{38A}\u{38C}\u{38E}-\u{3A1}\
    \u{3A3}-\u{3F5}\u{3F7}-\u{481}\u{48A}-\u{52F}\u{531}-\u{556}\u{10A0}-\u{10C5}\u{13A0}-\u{13F5}\
    \u{13F8}-\u{13FD}\u{1C90}-\u{1CBA}\u{1CBD}-\u{1CBF}\u{1D00}-\u{1D2B}\u{1D6B}-\u{1D77}\
    \u{1D79}-\u{1D9A}\u{1E00}-\u{1F15}\u{1F18}-\u{1F1D}\u{1F20}-\u{1F45}\u{1F48}-\u{1F4D}\
    \u{1F50}-\u{1F57}\u{1F59}\u{1F5B}\u{1F5D}\u{1F5F}-\u{1F7D}\u{1F80}-\u{1FB4}\u{1FB6}-\u{1FBC}\u{1FBE}\
    \u{1FC2}-\u{1FC4}\u{1FC6}-\u{1FCC}\u{1FD0}-\u{1FD3}\u{1FD6}-\u{1FDB}\u{1FE0}-\u{1FEC}\
    \u{1FF2}-\u{1FF4}\u{1FF6}-\u{1FFC}\u{2102}\u{2107}\u{210A}-\u{2113}\u{2115}\u{2119}-\u{211D}\u{2124}\
    \u{2126}\u{2128}\u{212A}-\u{212D}\u{212F}-\u{2134}\u{2139}\u{213C}-\u{213F}\u{2145}-\u{2149}\u{214E}\
    \u{2183}\u{2184}\u{2C00}-\u{2C7B}\u{2C7E}-\u{2CE4}\u{2CEB}-\u{2CEE}\u{2CF2}\u{2CF3}\u{A640}-\u{A66D}\
    \u{A680}-\u{A69B}\u{A722}-\u{A76F}\u{A771}-\u{A787}\u{A78B}-\u{A78E}\u{AB70}-\u{ABBF}\
    \u{FB00}-\u{FB06}\u{FB13}-\u{FB17}\u{FF21}-\u{FF3A}\u{FF41}-\u{FF5A}\u{10400}-\u{1044F}\
    \u{104B0}-\u{104D3}\u{104D8}-\u{104FB}\u{10C80}-\u{10CB2}\u{10CC0}-\u{10CF2}\u{118A0}-\u{118DF}\
    \u{1E900}-\u{1E943}]+";

/// What a kind needs besides its patterns.
pub(super) struct Kind {
    /// Patterns in order.
    pub patterns: Vec<String>,
    /// A whole piece that is in the vocabulary is one token, whatever the merges say.
    pub ignore_merges: bool,
    /// Whether a BOS token is added where the file does not say.
    pub add_bos: bool,
}

/// Families of kinds: names, patterns, `ignore_merges`, `add_bos`.
fn families() -> Vec<(&'static [&'static str], Vec<String>, bool, bool)> {
    // Letters may take one leading character that is no letter, digit or line end: usually a space.
    let gpt4 = |digits: &str, tail: &str, space: &str| {
        format!(r"{CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+{tail}|{space}")
    };
    let llama3 = gpt4(UP_TO_3_DIGITS, r"[\r\n]*", SPACE);
    let qwen2 = gpt4(DIGIT, r"[\r\n]*", SPACE);
    // "Not a lower-case ASCII letter, but a letter" stands for the upper-case categories, and reversed.
    let (upper, lower) = (r"(?:(?=\p{L})[^a-z])", r"(?:(?=\p{L})[^A-Z])");
    let cased = |contraction: &str, digits: &str| {
        format!(
            r"[^\r\n\p{{L}}\p{{N}}]?{upper}*{lower}+{contraction}|[^\r\n\p{{L}}\p{{N}}]?{upper}+{lower}*{contraction}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{SPACE}"
        )
    };
    let optional_contraction = format!("{CONTRACTION}?");
    let s = |patterns: &[&str]| patterns.iter().map(ToString::to_string).collect::<Vec<_>>();
    let sentence = r" ?[^(\s|.,!?…。，、।۔،)]+";
    vec![
        (&["default"], s(&[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]), false, false),
        (
            &["llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"],
            s(&[&llama3]),
            true,
            true,
        ),
        (&["dbrx", "smaug-bpe", "chatglm-bpe"], s(&[&llama3]), false, false),
        (&["glm4"], s(&[&llama3]), true, false),
        (
            &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"],
            s(&[DIGIT, GPT2]),
            false,
            false,
        ),
        (
            &[
                "gpt-2",
                "phi-2",
                "mpt",
                "olmo",
                "jais",
                "trillion",
                "granite-docling",
                "exaone4",
                "gigachat",
                "a.x-4.0",
                "mellum",
                "roberta-bpe",
            ],
            s(&[GPT2]),
            false,
            false,
        ),
        (
            &["qwen2", "qwen3", "deepseek-r1-qwen", "stablelm2", "megrez", "hunyuan", "solar-open", "grok-2", "kormo"],
            s(&[&qwen2]),
            false,
            false,
        ),
        (
            &["qwen35"],
            s(&[&format!(
                r"{CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{SPACE}"
            )]),
            false,
            false,
        ),
        (&["seed-coder"], s(&[&qwen2.replace(r"[^\s\p{L}\p{N}]+[\r\n]*", r"[^\s\p{L}\p{N}\r\n]+")]), false, false),
        (
            &["bailingmoe", "bailingmoe2", "llada-moe"],
            s(&[
                r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
            ]),
            false,
            false,
        ),
        (&["tekken", "mistral-bpe"], s(&[&cased("", DIGIT)]), true, true),
        (&["gpt-4o", "llama4", "kanana2"], s(&[&cased(&optional_contraction, UP_TO_3_DIGITS)]), false, false),
        (
            &["deepseek-llm"],
            s(&["[\r\n]", DEEPSEEK_LETTERS, r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", DEEPSEEK_CJK, r"\p{N}+"]),
            false,
            false,
        ),
        (&["deepseek-coder"], s(&["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", DEEPSEEK_CJK, DIGIT]), false, false),
        (
            &["deepseek-v3", "hunyuan-dense", "joyai-llm"],
            s(&[
                UP_TO_3_DIGITS,
                CJK,
                &format!(
                    r#"[!"\#$%&'()*+,\-./:;<=>?@\[\\\]^_`{{|}}~][A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+[\r\n]*|{SPACE}"#
                ),
            ]),
            false,
            false,
        ),
        (&["falcon"], s(&[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"]), false, false),
        (&["poro-chat", "bloom", "gpt3-finnish"], s(&[sentence]), false, false),
        (&["viking"], s(&[sentence, DIGIT]), false, false),
    ]
}

/// The kind called `name`; no name at all means `default`, as in files from before the key existed.
pub(super) fn kind(name: Option<&str>) -> Result<Kind> {
    let wanted = name.unwrap_or("default");
    let families = families();
    let found = families.iter().find(|(names, ..)| names.contains(&wanted));
    match found {
        Some((_, patterns, ignore_merges, add_bos)) => {
            Ok(Kind { patterns: patterns.clone(), ignore_merges: *ignore_merges, add_bos: *add_bos })
        }
        None => {
            let known: Vec<&str> = families.iter().flat_map(|(names, ..)| names.iter().copied()).collect();
            Err(Error::unsupported(format!(
                "tokenizer.ggml.pre is '{wanted}'; the pre-tokenizers known here are {}",
                known.join(", ")
            )))
        }
    }
}

/// The patterns in order, then the byte-level alphabet.
pub(super) fn build(patterns: &[String]) -> Result<PreTokenizerWrapper> {
    let mut steps = Vec::with_capacity(patterns.len() + 1);
    for pattern in patterns {
        let split = Split::new(SplitPattern::Regex(pattern.clone()), Isolated, false)
            .map_err(|error| Error::internal(format!("pre-tokenizer pattern {pattern}: {error}")))?;
        steps.push(PreTokenizerWrapper::Split(split));
    }
    steps.push(PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, false, false)));
    Ok(PreTokenizerWrapper::Sequence(Sequence::new(steps)))
}
