//! What a failed call says, read back.

use fencepost::{Action, Applied, ERROR_DOMAIN, Reason};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::*;

fn read(code: Code, reason: &str, metadata: &[(&str, &str)]) -> Error {
    let metadata = metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    let details = ErrorDetails::with_error_info(reason, ERROR_DOMAIN, metadata.collect::<HashMap<_, _>>());
    Error::from_status(&Status::with_error_details(code, "in words", details), "here")
}

#[test]
fn each_reason_of_the_catalogue_keeps_its_meaning() {
    for reason in Reason::ALL {
        let error = read(reason.code(), reason.as_str(), &[("applied", reason.applied().as_str())]);
        assert_eq!(error.reason(), Some(*reason));
        assert_eq!((error.applied(), error.action()), (reason.applied(), reason.action()));
        assert_eq!(error.to_string(), format!("{reason}: in words"));
    }
}

#[test]
fn a_reason_that_is_not_known_falls_back_on_its_code() {
    let no = [("applied", "no")].as_slice();
    let unknown = [("applied", "unknown")].as_slice();
    for (code, metadata, applied, action) in [
        (Code::Unavailable, no, Applied::No, Action::Retry),
        (Code::ResourceExhausted, no, Applied::No, Action::Retry),
        (Code::Unavailable, unknown, Applied::Unknown, Action::ResolveThenRetry),
        (Code::Aborted, no, Applied::No, Action::Resync),
        (Code::FailedPrecondition, no, Applied::No, Action::Stop),
        (Code::FailedPrecondition, &[], Applied::No, Action::Stop),
        (Code::Internal, &[], Applied::Unknown, Action::ResolveThenRetry),
        (Code::DataLoss, no, Applied::No, Action::Operator),
    ] {
        let error = read(code, "MOON_PHASE", metadata);
        assert_eq!((error.reason(), error.applied(), error.action()), (None, applied, action), "{code:?} {metadata:?}");
    }
}

#[test]
fn what_the_server_says_of_the_effect_goes_before_the_catalogue() {
    let error = read(Code::FailedPrecondition, "FENCED", &[("applied", "unknown")]);
    assert_eq!(error.applied(), Applied::Unknown);
}

#[test]
fn without_a_reason_only_some_codes_say_that_nothing_happened() {
    for code in [Code::Unavailable, Code::DeadlineExceeded, Code::Cancelled, Code::Internal, Code::Unknown] {
        let error = Error::from_status(&Status::new(code, ""), "here");
        assert!(matches!(error, Error::Unanswered { .. }), "{code:?}");
        assert_eq!((error.applied(), error.action()), (Applied::Unknown, Action::ResolveThenRetry));
    }
    for code in [Code::PermissionDenied, Code::Unauthenticated, Code::Unimplemented] {
        let error = Error::from_status(&Status::new(code, "no"), "here");
        assert_eq!((error.applied(), error.action()), (Applied::No, Action::Stop), "{code:?}");
    }
}

#[test]
fn the_details_are_read_as_what_they_are() {
    let error = read(
        Code::FailedPrecondition,
        "FENCED",
        &[("current_token", "281474976710699"), ("holder", "loader-2"), ("actual_head", "7"), ("lsn", "131073")],
    );
    assert_eq!(error.current_token().unwrap().to_string(), "g1.e43");
    assert_eq!((error.holder(), error.actual_head()), (Some("loader-2"), Some(7)));
    assert_eq!(error.refusal().unwrap().lsn().unwrap().to_string(), "2.1");
}

#[test]
fn a_retry_info_is_the_least_time_to_wait() {
    let mut details = ErrorDetails::with_error_info("RATE_LIMITED", ERROR_DOMAIN, HashMap::<String, String>::new());
    details.set_retry_info(Some(Duration::from_millis(250)));
    let status = Status::with_error_details(Code::ResourceExhausted, "busy", details);
    assert_eq!(Error::from_status(&status, "here").retry_after(), Some(Duration::from_millis(250)));
}

#[test]
fn a_doubt_about_the_wrong_server_is_for_a_person() {
    let doubt = |cause| Error::InDoubt {
        pipeline: "p/q".to_owned(),
        commit_id: "c".to_owned(),
        branch: "main".to_owned(),
        sequence: 1,
        cause: Box::new(cause),
    };
    let rolled_back = Error::RolledBack { endpoint: "here".to_owned(), seen: 2, answered: 1 };
    assert_eq!(doubt(rolled_back).action(), Action::Operator);
    let silent = Error::Unanswered { endpoint: "here".to_owned(), cause: "silence".to_owned() };
    assert_eq!(doubt(silent).action(), Action::ResolveThenRetry);
}
