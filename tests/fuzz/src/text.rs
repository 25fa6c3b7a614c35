//! What people type and files hold that is parsed here: tokens, positions, reasons, traces, names.
//!
//! What is accepted is read back from what it prints; what is not is refused in a message that can be shown.

use fencepost::{Lsn, NAME_BYTES_MAX, Reason, Token, TraceParent};
use fencepost_server::state::{check_name, check_pipeline};

/// A refusal of a name or a trace repeats no more of it than this leaves room for.
const MESSAGE_BYTES_MAX: usize = 1024;

/// One input.
pub fn run(data: &[u8]) {
    let text = &*String::from_utf8_lossy(data);
    match text.parse::<Token>() {
        Ok(token) => {
            assert_eq!(token.to_string().parse(), Ok(token), "{text:?}");
            assert_eq!(token.as_u64().to_string().parse(), Ok(token), "{text:?}");
            let parts = text.strip_prefix('g').and_then(|rest| rest.split_once(".e"));
            let read = parts.map(|(generation, epoch)| (generation.parse(), epoch.parse()));
            assert!(read.is_none_or(|read| read == (Ok(token.generation()), Ok(token.epoch()))), "{text:?}");
        }
        Err(message) => assert!(message.contains(text), "{message:?} does not name {text:?}"),
    }
    match text.parse::<Lsn>() {
        Ok(lsn) => {
            assert_eq!(lsn.to_string().parse(), Ok(lsn), "{text:?}");
            let (index, ordinal) = text.split_once('.').unwrap_or((text, "0"));
            assert_eq!((index.parse(), ordinal.parse()), (Ok(lsn.index().0), Ok(lsn.ordinal())), "{text:?}");
        }
        Err(message) => assert!(message.contains(text), "{message:?} does not name {text:?}"),
    }
    let known = Reason::ALL.iter().find(|reason| reason.as_str() == text);
    assert_eq!(text.parse().ok().as_ref(), known, "{text:?}");
    trace(text);
    name(text);
}

fn trace(text: &str) {
    match text.parse::<TraceParent>() {
        Ok(parent) => {
            let shown = parent.to_string();
            assert_eq!(shown.parse(), Ok(parent), "{text:?}");
            assert!(shown == text || !text.starts_with("00-"), "{text:?} became {shown}");
        }
        Err(message) => assert_showable(&message),
    }
}

fn assert_showable(message: &str) {
    assert!(message.len() <= MESSAGE_BYTES_MAX, "{} bytes of message", message.len());
    assert!(!message.contains(char::is_control), "{message:?}");
}

fn is_name(text: &str) -> bool {
    let is_good = |(at, letter): (usize, char)| match letter {
        'a'..='z' | 'A'..='Z' | '0'..='9' | '_' => true,
        '.' | '-' => at > 0,
        _ => false,
    };
    !text.is_empty() && text.len() <= NAME_BYTES_MAX && text.chars().enumerate().all(is_good)
}

fn name(text: &str) {
    let parts: Vec<&str> = text.split('/').collect();
    let is_pipeline = matches!(parts[..], [namespace, name] if is_name(namespace) && is_name(name));
    for (checked, expected) in [(check_name("name", text), is_name(text)), (check_pipeline("name", text), is_pipeline)]
    {
        assert_eq!(checked.is_ok(), expected, "{text:?}");
        if let Err(refusal) = checked {
            assert_showable(&refusal.to_string());
        }
    }
}

/// Inputs to begin with: one of each, and some that are nearly one.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = Reason::ALL.iter().map(|reason| reason.as_str().into()).collect();
    let texts = [
        "g1.e42",
        "g65535.e281474976710655",
        "18446744073709551615",
        "g65536.e1",
        "42",
        "42.0",
        "281474976710655.65535",
        "281474976710656",
        "281474976710655.65536",
        "18446744073709551616",
        "g1.e281474976710656",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-03-more",
        "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        "prod/orders",
        "jfk",
        "-jfk",
        "a/b/c",
        "\u{7f}\u{10ffff}",
        "",
    ];
    seeds.extend(texts.map(|text| text.as_bytes().to_vec()));
    seeds
}
