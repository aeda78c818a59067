//! `/v1/files`: what fine-tuning jobs read.

use super::ApiError;
use super::pages::{Query, page};
use crate::serve::http::App;
use crate::tune::Tuner;
use axum::Json;
use axum::body::Body;
use axum::extract::multipart::Multipart;
use axum::extract::{Path, Query as RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::block_in_place;
use tokio::time::timeout;

/// How long a client may leave an upload without another piece.
const PIECE_TIME: Duration = Duration::from_secs(60);
/// Bytes of a file that are read at a time to be sent.
const PIECE: usize = 256 << 10;
/// Longest text field of an upload.
const FIELD_BYTES: usize = 1024;

fn broken(error: &axum::extract::multipart::MultipartError) -> ApiError {
    ApiError::invalid(format!("the body is not a form with a file: {}", error.body_text())).with_status(error.status())
}

async fn in_time<T>(step: impl Future<Output = T>) -> Result<T, ApiError> {
    timeout(PIECE_TIME, step).await.map_err(|_| {
        let message = format!("no further piece of the body arrived within {} s", PIECE_TIME.as_secs());
        ApiError::invalid(message).with_status(StatusCode::REQUEST_TIMEOUT)
    })
}

/// `POST /v1/files`
pub async fn create(
    State(app): State<Arc<App>>,
    form: Result<Multipart, axum::extract::multipart::MultipartRejection>,
) -> Result<Json<Value>, ApiError> {
    let tuner = app.tuner()?;
    let mut form = form.map_err(|rejection| {
        ApiError::invalid(format!("expected a form with `purpose` and `file`: {}", rejection.body_text()))
            .with_status(rejection.status())
    })?;
    // Whatever goes wrong on the way, dropping it leaves nothing behind.
    let mut upload = block_in_place(|| tuner.upload())?;
    let (mut purpose, mut filename) = (None, None);
    while let Some(mut field) = in_time(form.next_field()).await?.map_err(|e| broken(&e))? {
        match field.name() {
            Some("purpose") => {
                let mut text = Vec::new();
                while let Some(piece) = in_time(field.chunk()).await?.map_err(|e| broken(&e))? {
                    text.extend_from_slice(&piece);
                    if text.len() > FIELD_BYTES {
                        return Err(ApiError::field("purpose", "`purpose` is too long"));
                    }
                }
                purpose = Some(String::from_utf8_lossy(&text).into_owned());
            }
            Some("file") if filename.is_none() => {
                let name = field.file_name().map(str::to_owned);
                filename = Some(name.ok_or_else(|| ApiError::field("file", "`file` must have a file name"))?);
                let mut taken = Ok(());
                while let Some(piece) = in_time(field.chunk()).await?.map_err(|e| broken(&e))? {
                    // A client that is still sending would not see the refusal.
                    if taken.is_ok() {
                        taken = block_in_place(|| upload.write(&piece));
                    }
                }
                taken?;
            }
            other => {
                let name = other.unwrap_or_default().to_owned();
                return Err(ApiError::field(&name, format!("Unrecognized request argument supplied: `{name}`")));
            }
        }
    }
    let missing = |name: &str| ApiError::field(name, format!("'{name}' is a required property"));
    let purpose = purpose.ok_or_else(|| missing("purpose"))?;
    let filename = filename.ok_or_else(|| missing("file"))?;
    let file = block_in_place(|| upload.finish(&filename, &purpose))?;
    Ok(Json(file.object()))
}

/// `GET /v1/files`
pub async fn list(
    State(app): State<Arc<App>>,
    RawQuery(query): RawQuery<BTreeMap<String, String>>,
) -> Result<Json<Value>, ApiError> {
    let mut query = Query::new(query);
    let (purpose, after, limit) = (query.take("purpose"), query.take("after"), query.limit(10_000, 10_000)?);
    let ascending = match query.take("order").as_deref() {
        None | Some("desc") => false,
        Some("asc") => true,
        Some(other) => return Err(ApiError::field("order", format!("`order` is {other}, expected asc or desc"))),
    };
    query.finish()?;
    app.tuning(move |tuner| {
        let mut files = tuner.store().files()?;
        if ascending {
            files.reverse();
        }
        let wanted = files.iter().filter(|file| purpose.as_ref().is_none_or(|purpose| *purpose == file.purpose));
        page(wanted.map(|file| file.object()).collect(), after, limit)
    })
    .await
}

/// `GET /v1/files/{id}`
pub async fn retrieve(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    app.tuning(move |tuner| Ok(Json(tuner.file(&id)?.object()))).await
}

/// `DELETE /v1/files/{id}`
pub async fn delete(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    app.tuning(move |tuner| {
        tuner.delete_file(&id)?;
        Ok(Json(json!({"id": id, "object": "file", "deleted": true})))
    })
    .await
}

/// `GET /v1/files/{id}/content`
pub async fn content(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Response, ApiError> {
    let (file, length) = app
        .tuning(move |tuner: &Tuner| {
            let record = tuner.file(&id)?;
            let path = tuner.store().file_path(&record.id);
            let file = std::fs::File::open(&path).map_err(|e| crate::Error::io(&path, e))?;
            Ok((file, record.bytes))
        })
        .await?;
    let pieces = tokio_stream::iter(Pieces(file));
    let headers =
        [(header::CONTENT_TYPE, "application/octet-stream".to_owned()), (header::CONTENT_LENGTH, length.to_string())];
    Ok((headers, Body::from_stream(pieces)).into_response())
}

/// A file, piece by piece.
struct Pieces(std::fs::File);

impl Iterator for Pieces {
    type Item = std::io::Result<Vec<u8>>;

    fn next(&mut self) -> Option<Self::Item> {
        use std::io::Read;
        let mut piece = vec![0; PIECE];
        match block_in_place(|| self.0.read(&mut piece)) {
            Ok(0) => None,
            Ok(n) => {
                piece.truncate(n);
                Some(Ok(piece))
            }
            Err(error) => Some(Err(error)),
        }
    }
}
