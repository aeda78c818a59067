//! `runtime merge`

use crate::common::{self, DeviceArgs, largest_rank};
use runtime::Result;
use runtime::backend::ComputeType;
use runtime::format::Checkpoint;
use runtime::format::peft::Adapter;
use runtime::tensor::DType;
use runtime::train::export;
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    /// A .gguf file, a Hugging Face folder, or the name of a pulled repository
    #[arg(short, long, value_name = "MODEL")]
    model: String,
    /// A LoRA adapter in PEFT's format
    #[arg(long, value_name = "DIR")]
    adapter: PathBuf,
    /// Folder for the merged model
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// --dtype is the type of the merged weights; auto: the model's own, f32 where it is quantised
    #[command(flatten)]
    device: DeviceArgs,
}

pub fn run(args: &Args) -> Result<()> {
    let checkpoint = Checkpoint::open(&common::resolve(&args.model)?)?;
    let adapter = Adapter::read(&args.adapter, &checkpoint.config)?;
    let dtype = match args.device.dtype {
        ComputeType::Auto => None,
        ComputeType::F32 => Some(DType::F32),
        ComputeType::F16 => Some(DType::F16),
        ComputeType::BF16 => Some(DType::BF16),
    };
    let report = export::merge(&checkpoint, Some(&adapter), &args.output, dtype)?;
    eprintln!(
        "{} modules of rank up to {} merged, {} tensors replaced; {} in {} at {}",
        adapter.modules.len(),
        largest_rank(&adapter),
        adapter.saved.len(),
        common::bytes(report.bytes),
        report.dtype,
        args.output.display()
    );
    Ok(())
}
