//! The one place where a refusal becomes a gRPC status or a message of a stream.

use std::collections::HashMap;
use std::time::Duration;

use fencepost::{ERROR_DOMAIN, v1};
use tonic::Status;
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::error::Refusal;

/// As the status of a failed call, with a `google.rpc.ErrorInfo` and, where waiting helps, a `RetryInfo`.
pub(super) fn status(refusal: Refusal) -> Status {
    let reason = refusal.reason;
    let retry_after = refusal.detail("retry_after_ms").and_then(|text| text.parse().ok()).map(Duration::from_millis);
    let v1::Refusal { reason: name, message, metadata } = message(refusal);
    let mut details = ErrorDetails::with_error_info(name, ERROR_DOMAIN, metadata);
    if let Some(retry_after) = retry_after {
        details.set_retry_info(Some(retry_after));
    }
    Status::with_error_details(reason.code(), message, details)
}

/// As a message of a stream.
pub(super) fn message(refusal: Refusal) -> v1::Refusal {
    // A refusal that knows better says so itself.
    let applied = ("applied", refusal.reason.applied().as_str().to_owned());
    let metadata: HashMap<String, String> =
        [applied].into_iter().chain(refusal.metadata).map(|(key, value)| (key.to_owned(), value)).collect();
    v1::Refusal { reason: refusal.reason.to_string(), message: refusal.message, metadata }
}
