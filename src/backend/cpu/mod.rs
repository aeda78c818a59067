//! CPU.
use super::*;
/// Info.
pub fn info() -> DeviceInfo { DeviceInfo { backend: "cpu", index: 0, name: "cpu".into(), detail: String::new(), memory_bytes: None, software: false } }
/// Opens.
pub fn open(_: ComputeType) -> Result<Arc<dyn Device>> { Err(Error::internal("stub")) }
