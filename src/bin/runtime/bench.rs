//! `runtime bench`

use crate::common::{self, ModelArgs};
use runtime::Result;
use runtime::engine::bench::{self, BenchOptions};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Tokens of the prompt
    #[arg(short, long, value_name = "TOKENS", default_value_t = 512)]
    prompt: usize,
    /// Tokens to generate
    #[arg(short = 'n', long = "max-tokens", value_name = "TOKENS", default_value_t = 128)]
    max_tokens: usize,
    /// Requests at once
    #[arg(short, long, value_name = "N", default_value_t = 1)]
    batch: usize,
    /// Runs after the warm-up; medians are reported
    #[arg(short, long, value_name = "N", default_value_t = 3)]
    runs: usize,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let options =
        BenchOptions { prompt_tokens: args.prompt, new_tokens: args.max_tokens, batch: args.batch, runs: args.runs };
    let report = bench::run(args.model.load()?, &options)?;
    if args.json {
        return common::print_json(&report);
    }
    common::print(&format!(
        "{} on {}\n  prefill {:>9.1} tok/s  ({} × {} tokens)\n  decode  {:>9.1} tok/s  ({} × {} tokens)\n  \
         {} of weights a decode step, {:.1} GB/s of copy bandwidth: {:.0} % of it used\n",
        report.model,
        report.device,
        report.prefill_tok_s,
        report.batch,
        report.prompt_tokens,
        report.decode_tok_s,
        report.batch,
        report.new_tokens,
        common::bytes(report.weight_bytes),
        report.copy_gb_s,
        100.0 * report.decode_bandwidth_share
    ))
}
