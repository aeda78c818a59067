//! Handles: ffi-support's map behind a lock of our own.
//!
//! `ffi_support::ConcurrentHandleMap` holds its lock while a call runs, so that one long call would stall every
//! other; here a call clones the `Arc`, drops the lock, then works.

use super::error::Failure;
use crate::error::Error;
use ffi_support::{Handle, HandleMap};
use std::sync::{Arc, LazyLock, PoisonError, RwLock};

/// All objects of one kind.
pub(super) struct Handles<T> {
    what: &'static str,
    map: LazyLock<RwLock<HandleMap<Arc<T>>>>,
}

impl<T> Handles<T> {
    /// `what` names the kind in messages.
    pub(super) const fn new(what: &'static str) -> Self {
        Self { what, map: LazyLock::new(|| RwLock::new(HandleMap::new())) }
    }

    /// A new handle on `object`.
    pub(super) fn insert(&self, object: Arc<T>) -> Result<u64, Failure> {
        let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        // The map would panic when it is full: it keeps one entry free, and grows to one less than it says.
        if map.len() + 2 >= ffi_support::handle_map::MAX_CAPACITY {
            let (n, what) = (map.len(), self.what);
            return Err(Error::Busy(format!(
                "there are {n} {what} handles already: release some; those of requests end when their events are polled"
            ))
            .into());
        }
        Ok(map.insert(object).into_u64())
    }

    /// The object behind a handle.
    pub(super) fn get(&self, id: u64) -> Result<Arc<T>, Failure> {
        let handle = Handle::from_u64(id).map_err(|_| self.stale())?;
        let map = self.map.read().unwrap_or_else(PoisonError::into_inner);
        map.get(handle).cloned().map_err(|_| self.stale())
    }

    /// Takes the object out of the map. The caller drops it, without the lock.
    pub(super) fn remove(&self, id: u64) -> Result<Arc<T>, Failure> {
        let handle = Handle::from_u64(id).map_err(|_| self.stale())?;
        let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        map.remove(handle).map_err(|_| self.stale())
    }

    fn stale(&self) -> Failure {
        Failure::StaleHandle(self.what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stale_foreign_and_twice_released_handles_are_errors() {
        static A: Handles<u32> = Handles::new("a");
        static B: Handles<u32> = Handles::new("b");
        let id = A.insert(Arc::new(7)).ok().unwrap();
        assert_eq!(A.get(id).ok().as_deref(), Some(&7));
        for garbage in [0, 1, u64::MAX, id ^ 1, id ^ (1 << 40)] {
            assert!(matches!(A.get(garbage), Err(Failure::StaleHandle("a"))), "{garbage:#x}");
        }
        assert!(B.get(id).is_err(), "a handle of another kind");
        assert!(A.remove(id).is_ok() && A.remove(id).is_err() && A.get(id).is_err());
        let next = A.insert(Arc::new(8)).ok().unwrap();
        assert!(next != id && A.get(id).is_err(), "a place used again has a new handle");
    }

    #[test]
    fn a_full_map_refuses_and_goes_on() {
        static FULL: Handles<u32> = Handles::new("full");
        let object = Arc::new(1);
        let ids: Vec<u64> = std::iter::from_fn(|| FULL.insert(object.clone()).ok()).collect();
        assert!(ids.len() > 30_000, "{}", ids.len());
        assert!(matches!(FULL.insert(object.clone()), Err(Failure::Error(Error::Busy(_)))));
        assert!(FULL.remove(ids[0]).is_ok() && FULL.insert(object).is_ok());
    }
}
