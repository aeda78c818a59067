//! Why a request about fine-tuning is refused, in the terms of OpenAI's errors.

use crate::error::Error;

/// Which status a refusal has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// 400: the request cannot be served as it is.
    Bad,
    /// 404: there is no such thing.
    NotFound,
    /// 413: too many bytes.
    TooLarge,
    /// 500: it is not the request's fault.
    Server,
}

/// A refusal.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    /// Its status.
    pub kind: Kind,
    /// What is wrong.
    pub message: String,
    /// Which field.
    pub param: Option<String>,
    /// OpenAI's word for it, where there is one.
    pub code: Option<&'static str>,
}

impl Refusal {
    /// About no field.
    pub fn bad(message: impl Into<String>) -> Self {
        Self { kind: Kind::Bad, message: message.into(), param: None, code: None }
    }

    /// About one field.
    pub fn field(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..Self::bad(message) }
    }

    /// There is none of that name.
    pub fn not_found(param: &str, message: impl Into<String>) -> Self {
        Self { kind: Kind::NotFound, ..Self::field(param, message) }
    }

    /// The same with a code.
    #[must_use]
    pub fn code(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self { kind: Kind::Server, ..Self::bad(error.to_string()) }
    }
}
