//! Devices and models for the tests.

use runtime::backend::{self, BackendChoice, ComputeType, Device};
use runtime::format::Checkpoint;
use runtime::model::LoadedModel;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A path inside the repository.
pub fn repository(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The real model: `RUNTIME_SMOLLM2`, or where scripts/test.sh puts it.
pub fn smollm2_path() -> PathBuf {
    let default = repository(".cache/models/SmolLM2-135M-Instruct.Q4_1.gguf");
    let path = std::env::var_os("RUNTIME_SMOLLM2").map_or(default, PathBuf::from);
    assert!(path.exists(), "{} is missing: run scripts/fetch_model.sh or set RUNTIME_SMOLLM2", path.display());
    path
}

/// A device in f32, software adapters included.
pub fn device(choice: BackendChoice) -> Arc<dyn Device> {
    backend::open(choice, 0, ComputeType::F32)
        .unwrap_or_else(|e| panic!("{choice:?}: {e} (scripts/test.sh installs software Vulkan)"))
}

/// A model on a device.
pub fn load(path: &Path, choice: BackendChoice) -> Arc<LoadedModel> {
    LoadedModel::load(Checkpoint::open(path).unwrap(), device(choice)).unwrap()
}

/// Whether there is an NVIDIA GPU; without one a test of CUDA has nothing to do, unless `RUNTIME_CUDA` says there must be one.
#[allow(dead_code)] // not every test has a CUDA half
pub fn nvidia() -> bool {
    match backend::open(BackendChoice::Cuda, 0, ComputeType::F32) {
        Ok(_) => true,
        Err(error) => {
            assert!(std::env::var_os("RUNTIME_CUDA").is_none(), "{error}");
            eprintln!("skipped: {error}");
            false
        }
    }
}
