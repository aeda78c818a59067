//! `runtime inspect`

use crate::common::{self, DeviceArgs};
use runtime::Result;
use runtime::format::{Checkpoint, describe};

#[derive(clap::Args)]
pub struct Args {
    /// A .gguf file, a Hugging Face folder, or the name of a pulled repository
    #[arg(value_name = "MODEL")]
    model: String,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
    /// Accepted on every command; looking needs no device
    #[command(flatten)]
    _device: DeviceArgs,
}

pub fn run(args: &Args) -> Result<()> {
    let description = describe(&Checkpoint::open(&common::resolve(&args.model)?)?);
    if args.json {
        return common::print_json(&description);
    }
    let mut text = format!(
        "{}\n  {} parameters, {}, family {}\n",
        description.path,
        count(description.parameters),
        common::bytes(description.bytes as u64),
        description.family
    );
    for (dtype, n) in &description.dtypes {
        text += &format!("  {dtype:<5} {:>4} tensors  {}\n", n.tensors, common::bytes(n.bytes as u64));
    }
    text += &format!(
        "  tokenizer: {}; chat template: {}\n",
        description.tokenizer,
        if description.chat_template { "yes" } else { "no" }
    );
    if let Ok(serde_json::Value::Object(config)) = serde_json::to_value(&description.config) {
        text += &config.iter().map(|(key, value)| format!("  {key}: {value}\n")).collect::<String>();
    }
    common::print(&text)
}

/// `134.5 M`
fn count(n: usize) -> String {
    match n {
        1_000_000_000.. => format!("{:.2} G", n as f64 / 1e9),
        1_000_000.. => format!("{:.1} M", n as f64 / 1e6),
        _ => n.to_string(),
    }
}
