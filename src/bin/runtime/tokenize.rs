//! `runtime tokenize`

use crate::common::{self, DeviceArgs};
use runtime::format::Checkpoint;
use runtime::model::text_tools;
use runtime::{Error, Result};
use serde_json::json;

#[derive(clap::Args)]
pub struct Args {
    /// A .gguf file, a Hugging Face folder, or the name of a pulled repository
    #[arg(short, long, value_name = "MODEL")]
    model: String,
    /// The text; strings of special tokens in it become those tokens, and none is added
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: String,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
    /// Accepted on every command; tokenizing needs no device
    #[command(flatten)]
    _device: DeviceArgs,
}

pub fn run(args: &Args) -> Result<()> {
    let checkpoint = Checkpoint::open(&common::resolve(&args.model)?)?;
    let Some(tokenizer) = text_tools(&checkpoint)?.0 else {
        return Err(Error::Text(format!("{} has no tokenizer", args.model)));
    };
    let ids = tokenizer.encode(&args.prompt, false)?;
    if args.json {
        return common::print_json(&json!({ "ids": ids }));
    }
    let lines: String = ids.iter().map(|id| format!("{id:>7}  {:?}\n", tokenizer.decode(&[*id], false))).collect();
    common::print(&lines)
}
