//! Rows of a Parquet file.

use crate::error::{Error, Result};
use parquet::file::reader::{FileReader, SerializedFileReader};
use serde_json::Value;
use std::fs::File;
use std::path::Path;

/// Calls `f` as [`super::each_row`] does.
///
/// # Errors
/// As there.
pub fn rows(path: &Path, file: File, f: &mut dyn FnMut(usize, Result<Value>) -> Result<()>) -> Result<()> {
    let wrong = |e: parquet::errors::ParquetError| {
        Error::format(path.display().to_string(), "Parquet", e.to_string().replace('\n', " "))
    };
    let reader = SerializedFileReader::new(file).map_err(wrong)?;
    for (index, row) in reader.get_row_iter(None).map_err(wrong)?.enumerate() {
        f(index + 1, Ok(without_nulls(row.map_err(wrong)?.to_json_value())))?;
    }
    Ok(())
}

/// A column has a value for every row: what a row does not have is null in it.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            Value::Object(map.into_iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k, without_nulls(v))).collect())
        }
        Value::Array(list) => Value::Array(list.into_iter().map(without_nulls).collect()),
        other => other,
    }
}
