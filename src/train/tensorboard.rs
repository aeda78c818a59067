//! TensorBoard's event files: protocol buffers in TFRecord frames.
//!
//! A frame is the length (u64), its checksum, the data, its checksum; a checksum is CRC-32C, rotated right by 15 bits, plus
//! 0xa282ead8, all little-endian (`tensorflow/core/lib/io/record_writer.h`). The data is an `Event` of
//! `tensorflow/core/util/event.proto`: 1 wall_time (double), 2 step (varint), 3 file_version (string), 5 summary, which
//! repeats 1 value {1 tag (string), 2 simple_value (float)} (`summary.proto`).

use crate::error::{Error, Result};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// An event file that is being written.
pub struct Events {
    path: PathBuf,
    file: File,
}

impl Events {
    /// A new file in `folder`. A run that goes on writes another one: TensorBoard shows all of a folder as one run.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create(folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        let seconds = now() as u64;
        let path = folder.join(format!("events.out.tfevents.{seconds}.runtime.{}", std::process::id()));
        let file = File::create(&path).map_err(|e| Error::io(&path, e))?;
        let mut me = Self { path, file };
        let mut event = double(1, now());
        event.extend(bytes(3, b"brain.Event:2"));
        me.write(&event)?;
        Ok(me)
    }

    /// Adds numbers of a step.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn scalars(&mut self, step: usize, values: &[(&str, f64)]) -> Result<()> {
        let mut summary = Vec::new();
        for (tag, value) in values {
            let mut one = bytes(1, tag.as_bytes());
            one.push(2 << 3 | 5);
            one.extend((*value as f32).to_le_bytes());
            summary.extend(bytes(1, &one));
        }
        let mut event = double(1, now());
        event.push(2 << 3);
        varint(step as u64, &mut event);
        event.extend(bytes(5, &summary));
        self.write(&event)
    }

    fn write(&mut self, event: &[u8]) -> Result<()> {
        let length = (event.len() as u64).to_le_bytes();
        let parts: [&[u8]; 4] = [&length, &checksum(&length), event, &checksum(event)];
        self.file.write_all(&parts.concat()).map_err(|e| Error::io(&self.path, e))
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

fn checksum(data: &[u8]) -> [u8; 4] {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 128 {
        out.push(value as u8 | 128);
        value >>= 7;
    }
    out.push(value as u8);
}

fn double(field: u8, value: f64) -> Vec<u8> {
    let mut out = vec![field << 3 | 1];
    out.extend(value.to_le_bytes());
    out
}

fn bytes(field: u8, data: &[u8]) -> Vec<u8> {
    let mut out = vec![field << 3 | 2];
    varint(data.len() as u64, &mut out);
    out.extend(data);
    out
}
