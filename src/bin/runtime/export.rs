//! `runtime export`

use crate::common;
use runtime::format::Checkpoint;
use runtime::format::peft::Adapter;
use runtime::tensor::DType;
use runtime::train::export::{FileType, merge, write_adapter_gguf, write_model_gguf};
use runtime::{Error, Result};
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    /// A .gguf file, a Hugging Face folder, or the name of a pulled repository
    #[arg(short, long, value_name = "MODEL")]
    model: String,
    /// A LoRA adapter in PEFT's format, to be merged into the model
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// Write only the adapter, as a GGUF file for `llama-cli --lora`
    #[arg(long, requires = "adapter")]
    adapter_only: bool,
    /// A name that ends in .gguf for GGUF; else a folder in Hugging Face's layout
    #[arg(short, long, value_name = "FILE.gguf|DIR")]
    output: PathBuf,
    /// Type of the weights [default: the model's own, f32 where it is quantised; of an adapter: f16]
    #[arg(long = "type", value_name = "f32|f16|bf16|q8_0|q4_0|q4_k_m")]
    file_type: Option<FileType>,
}

pub fn run(args: &Args) -> Result<()> {
    let checkpoint = Checkpoint::open(&common::resolve(&args.model)?)?;
    let adapter = args.adapter.as_deref().map(|folder| Adapter::read(folder, &checkpoint.config)).transpose()?;
    let is_gguf = args.output.extension().is_some_and(|end| end.eq_ignore_ascii_case("gguf"));
    let plain = args.file_type.map(|kind| {
        kind.plain().ok_or_else(|| Error::invalid("a quantised --type needs an --output whose name ends in .gguf"))
    });
    let bytes = match (&adapter, is_gguf) {
        (Some(adapter), true) if args.adapter_only => {
            let dtype = plain.transpose()?.unwrap_or(DType::F16);
            write_adapter_gguf(&checkpoint.config, adapter, &args.output, dtype)?
        }
        (_, false) if args.adapter_only => {
            return Err(Error::invalid("--adapter-only writes GGUF: give an --output whose name ends in .gguf"));
        }
        (adapter, true) => {
            let own = match runtime::train::export::own_dtype(&checkpoint) {
                DType::F16 => FileType::F16,
                DType::BF16 => FileType::BF16,
                _ => FileType::F32,
            };
            write_model_gguf(&checkpoint, adapter.as_ref(), &args.output, args.file_type.unwrap_or(own))?
        }
        (adapter, false) => merge(&checkpoint, adapter.as_ref(), &args.output, plain.transpose()?)?.bytes,
    };
    let merged = match &adapter {
        Some(adapter) if !args.adapter_only => format!(", {} modules merged", adapter.modules.len()),
        _ => String::new(),
    };
    eprintln!("{} at {}{merged}", common::bytes(bytes), args.output.display());
    Ok(())
}
