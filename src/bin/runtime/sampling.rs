//! How generating commands choose tokens.

use clap::Args;
use runtime::engine::{Request, SamplingParams};

#[derive(Args, Clone, Debug)]
pub struct SamplingArgs {
    /// Most tokens to generate
    #[arg(short = 'n', long = "max-tokens", value_name = "N", default_value_t = 128)]
    pub max_tokens: usize,
    /// 0: always the most likely token
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    pub temperature: f32,
    /// Only the most likely tokens that together reach this probability
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    pub top_p: f32,
    /// Only this many of the most likely tokens; 0: all
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub top_k: usize,
    /// Same seed, same text
    #[arg(long, value_name = "SEED")]
    pub seed: Option<u64>,
    /// End the answer before this text; may be given several times
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
}

impl SamplingArgs {
    pub fn request(&self, prompt: Vec<u32>, adapter: Option<String>) -> Request {
        let sampling = SamplingParams {
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            seed: self.seed,
            ..SamplingParams::default()
        };
        Request { prompt, max_tokens: self.max_tokens, sampling, adapter, ..Request::default() }
    }
}
