//! Points at which tests let a panic happen; in a build without `cfg(test)` they are nothing.

#[cfg(test)]
use std::sync::Mutex;

#[cfg(test)]
static ARMED: Mutex<Option<String>> = Mutex::new(None);

/// Panics once at the point of this name.
#[cfg(test)]
pub fn arm(name: &str) {
    *ARMED.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(name.into());
}

/// A point of this name. The names of C functions are points, too.
#[cfg(test)]
pub fn point(name: &str) {
    let mut armed = ARMED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if armed.as_deref() == Some(name) {
        *armed = None;
        drop(armed);
        std::panic::resume_unwind(Box::new(format!("injected at {name}")));
    }
}

/// Whether an armed point has not been reached.
#[cfg(test)]
pub fn disarm() -> bool {
    ARMED.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take().is_some()
}

/// A point of this name.
#[cfg(not(test))]
#[inline]
pub fn point(_: &str) {}
