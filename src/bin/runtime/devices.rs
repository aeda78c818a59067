//! `runtime devices`

use crate::common::{self, DeviceArgs};
use runtime::Result;
use runtime::backend::{self, DeviceInfo};
use serde_json::json;

#[derive(clap::Args)]
pub struct Args {
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
    /// Accepted on every command; all devices are listed
    #[command(flatten)]
    _device: DeviceArgs,
}

pub fn run(args: &Args) -> Result<()> {
    let devices = backend::devices();
    let auto = backend::open(backend::BackendChoice::Auto, 0, backend::ComputeType::Auto);
    let auto = auto.map(|device| device.info().clone());
    if args.json {
        let auto = auto.ok().map(|info| json!({ "backend": info.backend, "index": info.index, "name": info.name }));
        return common::print_json(&json!({ "devices": devices, "auto": auto }));
    }
    let mut text = String::new();
    for (backend, built, none) in [
        ("cuda", cfg!(feature = "cuda"), "no NVIDIA driver found"),
        ("wgpu", cfg!(feature = "wgpu"), "no Vulkan, Metal or DX12 adapter found"),
        ("cpu", true, ""),
    ] {
        let found: Vec<&DeviceInfo> = devices.iter().filter(|device| device.backend == backend).collect();
        if found.is_empty() {
            let none = if built { none } else { "not in this build" };
            text += &format!("{backend:<5} {none}\n");
        }
        for device in found {
            text += &line(device);
        }
    }
    text += &match auto {
        Ok(info) => format!("--backend auto takes {} ({})\n", info.backend, info.name),
        Err(error) => format!("--backend auto takes none: {error}\n"),
    };
    common::print(&text)
}

fn line(device: &DeviceInfo) -> String {
    let memory = device.memory_bytes.map(|n| format!(", {}", common::bytes(n))).unwrap_or_default();
    let detail = if device.detail.is_empty() { String::new() } else { format!(" ({})", device.detail) };
    let software = if device.software { ", software: only taken with --backend wgpu" } else { "" };
    format!("{:<5} {}: {}{detail}{memory}{software}\n", device.backend, device.index, device.name)
}
