//! `runtime score`

use crate::common::{self, ADAPTER, CacheArgs, ModelArgs};
use crate::generate::PromptArgs;
use crate::speculative::Speculation;
use runtime::Result;
use serde_json::json;
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    cache: CacheArgs,
    #[command(flatten)]
    text: PromptArgs,
    /// A LoRA adapter in PEFT's format
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let model = args.model.load()?;
    let ids = args.text.encode(&model)?;
    let engine = common::engine(model.clone(), args.adapter.as_deref(), args.cache, Speculation::default())?;
    let scores = engine.score(&ids, args.adapter.as_ref().map(|_| ADAPTER))?;
    if args.json {
        let report = json!({ "ids": ids, "logprobs": scores.logprobs, "next_top5": scores.next_top5 });
        return common::print_json(&report);
    }
    // Without a tokenizer the ids have to do.
    let word = |id: u32| model.tokenizer.as_ref().map(|t| format!("{:?}", t.decode(&[id], false))).unwrap_or_default();
    let mut table = String::new();
    for (id, logprob) in ids.iter().skip(1).zip(&scores.logprobs) {
        table += &format!("{logprob:>9.4}  {id:>7}  {}\n", word(*id));
    }
    let sum: f64 = scores.logprobs.iter().map(|x| f64::from(*x)).sum();
    if !scores.logprobs.is_empty() {
        let mean = sum / scores.logprobs.len() as f64;
        table += &format!("sum {sum:.4} nat, mean {mean:.4}, perplexity {:.3}\n", (-mean).exp());
    }
    for (id, logprob) in &scores.next_top5 {
        table += &format!("next {logprob:>9.4}  {id:>7}  {}\n", word(*id));
    }
    common::print(&table)
}
