//! What distinguishes one decoder-only transformer from another, as plain data.

/// Model families whose configuration and tensor names are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Llama 2, 3 and 3.x, SmolLM2, TinyLlama and others that publish as `LlamaForCausalLM`.
    Llama,
    /// Mistral: Llama with an optional sliding window.
    Mistral,
    /// Qwen2 and Qwen2.5: biases on q, k and v.
    Qwen2,
    /// Qwen3: RMS norm on each head of q and k.
    Qwen3,
}

/// The gate of the feed-forward block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// x · sigmoid(x)
    Silu,
    /// GELU by its tanh approximation (`gelu_pytorch_tanh`).
    GeluTanh,
}

/// How rotary frequencies are stretched for long contexts. Formulas:
/// `transformers/modeling_rope_utils.py`, names as in `rope_scaling.rope_type` (or `rope_parameters`).
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Frequencies as trained.
    None,
    /// Positions divided by `factor`.
    Linear {
        /// Stretch factor.
        factor: f64,
    },
    /// NTK-aware base, recomputed for the longest context in use.
    Dynamic {
        /// Stretch factor.
        factor: f64,
    },
    /// YaRN (<https://arxiv.org/abs/2309.00071>).
    Yarn {
        /// Stretch factor.
        factor: f64,
        /// Rotations above which a frequency is left alone.
        beta_fast: f64,
        /// Rotations below which a frequency is fully interpolated.
        beta_slow: f64,
        /// Context length of pre-training.
        original_max_positions: usize,
        /// Multiplier on cos and sin, where the file states it; else `0.1 ln(factor) + 1` (or from mscale).
        attention_factor: Option<f64>,
        /// DeepSeek's `mscale` and `mscale_all_dim`, where stated.
        mscale: Option<(f64, f64)>,
        /// Round the correction range to whole dimensions (`truncate`, true unless stated).
        truncate: bool,
    },
    /// Llama 3.1's piecewise rule.
    Llama3 {
        /// Stretch factor.
        factor: f64,
        /// `low_freq_factor`.
        low_freq_factor: f64,
        /// `high_freq_factor`.
        high_freq_factor: f64,
        /// Context length of pre-training.
        original_max_positions: usize,
    },
    /// LongRoPE: one factor a dimension, a short set and a long set.
    LongRope {
        /// Divisors for contexts up to `original_max_positions`.
        short_factor: Vec<f64>,
        /// Divisors beyond it.
        long_factor: Vec<f64>,
        /// Context length of pre-training.
        original_max_positions: usize,
        /// Multiplier on cos and sin.
        attention_factor: Option<f64>,
        /// `factor`, where stated; else max_positions / original_max_positions.
        factor: Option<f64>,
    },
    /// GGUF's `rope_freqs.weight`: one divisor a frequency (llama.cpp bakes Llama 3's rule into it).
    Divisors {
        /// Divisor of each frequency, `rope_dim / 2` of them.
        divisors: Vec<f64>,
    },
}

/// Everything the decoder needs to know besides the weights.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Which family's names and defaults apply.
    pub family: Family,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Number of decoder layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Width of the feed-forward block.
    pub intermediate: usize,
    /// Rows of the embedding and of the head.
    pub vocab: usize,
    /// ε inside the RMS norms.
    pub rms_norm_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Dimensions of a head that are rotated (even, ≤ `head_dim`).
    pub rope_dim: usize,
    /// Frequency scaling.
    pub rope_scaling: RopeScaling,
    /// Longest context that the checkpoint claims.
    pub max_positions: usize,
    /// RMS norm on each head of q and k before rotation.
    pub qk_norm: bool,
    /// Biases on q, k and v.
    pub qkv_bias: bool,
    /// Bias on the attention output projection.
    pub o_bias: bool,
    /// Biases in the feed-forward block.
    pub mlp_bias: bool,
    /// One entry a layer: keys further back than this many positions are not seen.
    pub windows: Vec<Option<usize>>,
    /// Gate activation.
    pub activation: Activation,
    /// The head shares the embedding's weight.
    pub tied_head: bool,
    /// Token that starts a sequence, where the tokenizer adds one.
    pub bos: Option<u32>,
    /// Tokens that end generation (config.json and generation_config.json together).
    pub eos: Vec<u32>,
}
