//! Tinker's building blocks of training, over HTTP.

pub(super) mod sessions;
