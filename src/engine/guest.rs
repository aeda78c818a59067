//! Work that shares the engine's thread and device with requests: it gets slices between steps, and puts adapters in place for
//! the requests that follow.

use super::Turn;
use crate::backend::{Buffer, Executable};
use crate::error::Result;
use crate::format::peft::Adapter;
use crate::model::lora::LoraLayout;
use std::time::Instant;

/// Something that wants the device while requests leave it, on the engine's thread.
pub trait Guest: Send {
    /// Works until `deadline` at most, but for the device's smallest unit of work. [`Turn::Idle`]: there is nothing to do until
    /// [`super::Engine::wake`].
    fn turn(&mut self, deadline: Instant, house: &mut dyn House) -> Turn;
}

/// What a guest may ask of the engine, between two steps.
pub trait House {
    /// Makes an adapter that lies on the device available under `name`, in the place of one of that name: no copy goes through the
    /// host. Requests that began with the older version end with it. Until [`super::Engine::settle`] the version keeps its
    /// place on the device. Gives its number.
    ///
    /// # Errors
    /// [`crate::Error::Busy`] where requests or other versions hold all places on the device; [`crate::Error::Invalid`] where it
    /// does not fit the engine's largest rank; [`crate::Error::Unsupported`] where the device cannot do it in place;
    /// [`crate::Error::Device`].
    fn publish(&mut self, name: &str, adapter: &mut DeviceAdapter) -> Result<u64>;

    /// As [`super::Engine::load_adapter`]: from the host's memory. Gives the version's number.
    ///
    /// # Errors
    /// As there.
    fn load(&mut self, name: &str, adapter: &Adapter) -> Result<u64>;
}

/// An adapter on the device, in a trainer's flat buffer.
pub struct DeviceAdapter {
    /// f32 `[1, layout.len]`.
    pub params: Buffer,
    /// What lies where.
    pub layout: LoraLayout,
    /// What the low-rank product is multiplied by.
    pub scale: f32,
    /// Copies it into the bank; made when it is first needed.
    pub(super) placer: Option<Box<dyn Executable>>,
}

impl DeviceAdapter {
    /// An adapter in `params`.
    pub fn new(params: Buffer, layout: LoraLayout, scale: f32) -> Self {
        Self { params, layout, scale, placer: None }
    }
}
