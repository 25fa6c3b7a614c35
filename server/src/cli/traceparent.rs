//! Which distributed trace something belongs to.

use std::num::NonZero;

use fencepost::TraceParent;

use super::output::note;

/// The trace that this command was started in, by the convention that a process finds it in its environment
/// (<https://opentelemetry.io/docs/specs/otel/context/env-carriers/>). One that is malformed counts as none, as the W3C's
/// recommendation wants it.
pub(super) fn surrounding() -> Option<TraceParent> {
    let text = std::env::var("TRACEPARENT").ok().filter(|text| !text.is_empty())?;
    text.parse().map_err(|problem| note(format_args!("fencepost: TRACEPARENT is left out: {problem}"))).ok()
}

/// The id of a trace, as 32 digits or inside a traceparent.
pub(super) fn parse_id(text: &str) -> Result<NonZero<u128>, String> {
    if let Ok(parent) = text.parse::<TraceParent>() {
        return Ok(parent.trace_id);
    }
    let is_id = text.len() == 32 && text.bytes().all(|digit| digit.is_ascii_hexdigit());
    let id = u128::from_str_radix(text, 16).ok().filter(|_| is_id).and_then(NonZero::new);
    id.ok_or_else(|| {
        format!(
            "'{text}' is no trace: expected 32 hexadecimal digits, not all zero, such as 4bf92f3577b34da6a3ce929d0e0e4736"
        )
    })
}

/// As tools for traces name it.
pub(super) fn id(parent: TraceParent) -> String {
    format!("{:032x}", parent.trace_id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_found_by_its_id_or_by_any_of_its_spans() {
        let id = "4bf92f3577b34da6a3ce929d0e0e4736";
        let found = parse_id(id).unwrap();
        assert_eq!(found.get(), 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736);
        assert_eq!(parse_id(&id.to_uppercase()), Ok(found));
        assert_eq!(parse_id(&format!("00-{id}-00f067aa0ba902b7-01")), Ok(found));
        for text in ["", "4bf9", &id.replace('4', "g"), &format!("{id}0"), &"0".repeat(32)] {
            let problem = parse_id(text).unwrap_err();
            assert!(problem.contains("expected 32 hexadecimal digits"), "{problem}");
        }
    }
}
