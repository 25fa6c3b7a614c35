//! The `traceparent` of W3C Trace Context (<https://www.w3.org/TR/trace-context/>): which distributed trace a piece of work
//! belongs to.

/// Length of version 00, and of the part that every later version begins with.
const LENGTH: usize = 55;

/// The trace id in a traceparent: 32 lower-case hexadecimal digits. `None`: it is ill-formed.
pub fn trace_id(traceparent: &str) -> Option<&str> {
    let is_hex = |part: &str, digits: usize| {
        part.len() == digits && part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let is_id = |part: &str, digits: usize| is_hex(part, digits) && part.bytes().any(|byte| byte != b'0');
    let mut parts = traceparent.splitn(5, '-');
    let (version, trace, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    // What a later version adds comes behind another dash.
    let ends_well = parts.next().is_none() || version != "00";
    let is_good = is_hex(version, 2) && version != "ff" && is_id(trace, 32) && is_id(parent, 16) && is_hex(flags, 2);
    (is_good && ends_well && traceparent.len() >= LENGTH).then_some(trace)
}
