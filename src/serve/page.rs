//! `GET /`: a page to chat and to see figures. It is one file and asks for nothing but this server.

use super::http::unique_id;
use axum::http::header;
use axum::response::{IntoResponse, Response};

const PAGE: &str = include_str!("page.html");

/// The page. The browser runs and styles what carries this answer's number, and nothing else; a page of another site cannot
/// show it, and it cannot send anything elsewhere.
pub(super) async fn page() -> Response {
    let nonce = unique_id("");
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    );
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, &policy),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (headers, PAGE.replace("{{nonce}}", &nonce)).into_response()
}
