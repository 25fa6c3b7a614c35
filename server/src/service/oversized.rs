//! A request over the size limit is refused before it is read, by the transport; here the refusal gets the form that
//! all others have.

use fencepost::Reason;
use tonic::body::Body;
use tonic::{Code, Status};

use super::status::status;
use crate::error::Refusal;

/// Gives a transport's refusal of an oversized request our reason and details; leaves everything else alone.
pub fn name_oversized(response: http::Response<Body>) -> http::Response<Body> {
    match Status::from_header_map(response.headers()) {
        Some(refused) if is_oversized(&refused) => name(&refused).into_http(),
        _ => response,
    }
}

/// The same for a refusal in the middle of a stream.
pub(super) fn name_oversized_status(refused: Status) -> Status {
    if is_oversized(&refused) { name(&refused) } else { refused }
}

fn is_oversized(refused: &Status) -> bool {
    refused.code() == Code::OutOfRange
        && refused.details().is_empty()
        && refused.message().contains("message length too large")
}

fn name(refused: &Status) -> Status {
    let message =
        format!("the request is too large ({}): send less at a time, or raise request_bytes_max", refused.message());
    status(Refusal::new(Reason::TooLarge, message).with("field", "request"))
}
