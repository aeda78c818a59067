//! A guest's slices between the steps, and what it may do there.

use super::Worker;
use crate::engine::adapters::{AdapterBank, Registry};
use crate::engine::guest::{DeviceAdapter, House};
use crate::engine::worker::Turn;
use crate::error::{Error, Result};
use crate::format::peft::Adapter;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

impl Worker {
    /// A slice for the guest, or a step: whoever's turn it is.
    pub(super) fn share_time(&mut self) {
        let requests = !self.is_idle();
        let slice = if self.guest_awake { self.pacer.slice(requests) } else { None };
        let began = Instant::now();
        match slice {
            Some(slice) => {
                // Where the device runs ahead callers would hear of the last step only with the next one.
                self.deliver();
                self.guest_turn(began + slice);
                if requests {
                    self.pacer.trained(slice, began.elapsed());
                }
            }
            None => {
                self.guarded_work(None);
                if self.guest_awake {
                    self.pacer.stepped(began.elapsed());
                }
            }
        }
    }

    fn guest_turn(&mut self, deadline: Instant) {
        let Some(guest) = &mut self.guest else {
            self.guest_awake = false;
            return;
        };
        let mut house = Rooms { bank: &mut self.parts.bank, registry: &self.parts.registry };
        match catch_unwind(AssertUnwindSafe(|| guest.turn(deadline, &mut house))) {
            Ok(Turn::Worked) => {}
            Ok(Turn::Idle) => self.guest_awake = false,
            // It is in no state to go on.
            Ok(Turn::Ended) | Err(_) => (self.guest, self.guest_awake) = (None, false),
        }
    }
}

/// What a guest may use.
struct Rooms<'a> {
    bank: &'a mut Option<AdapterBank>,
    registry: &'a Mutex<Registry>,
}

impl Rooms<'_> {
    fn registry(&self) -> std::sync::MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl House for Rooms<'_> {
    fn publish(&mut self, name: &str, adapter: &mut DeviceAdapter) -> Result<u64> {
        let Some(bank) = self.bank else {
            return Err(Error::invalid("this engine was started without room for adapters (max_adapters 0)"));
        };
        self.registry.lock().unwrap_or_else(PoisonError::into_inner).publish(name, adapter, bank)
    }

    fn load(&mut self, name: &str, adapter: &Adapter) -> Result<u64> {
        self.registry().load(name, adapter)
    }
}
