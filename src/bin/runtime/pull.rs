//! `runtime pull`

use crate::common::{self, DeviceArgs};
use crate::progress;
use runtime::Result;
use runtime::format::hub::{self, Pull};

#[derive(clap::Args)]
pub struct Args {
    /// owner/name, or owner/name:file.gguf where a repository has several
    #[arg(value_name = "REPO")]
    repo: String,
    /// Branch, tag or commit
    #[arg(long, value_name = "REVISION", default_value = "main")]
    revision: String,
    /// Accepted on every command; downloading needs no device
    #[command(flatten)]
    _device: DeviceArgs,
}

/// Prints where the model is now, on stdout, so that a script can use it.
pub fn run(args: &Args) -> Result<()> {
    let mut bar = progress::Download::default();
    let request = Pull { revision: args.revision.clone(), ..Pull::new(&args.repo) };
    let path = hub::pull(&request, &mut |event| bar.update(&event.file, event.done, event.total))?;
    bar.finish();
    common::print(&format!("{}\n", path.display()))
}
