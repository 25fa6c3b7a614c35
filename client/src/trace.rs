//! The trace that a commit belongs to. Reading and writing it is the protocol's, since the server checks it too.

pub use fencepost::TraceParent;

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the standard.
    const EXAMPLE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn parse(text: &str) -> Result<TraceParent, String> {
        text.parse()
    }

    #[test]
    fn a_traceparent_reads_back_as_it_was_written() {
        let parent = parse(EXAMPLE).unwrap();
        assert_eq!(parent.trace_id.get().to_be_bytes()[..2], [0x4b, 0xf9]);
        assert_eq!(parent.parent_id.get().to_be_bytes()[6..], [0x02, 0xb7]);
        assert!(parent.is_sampled());
        assert_eq!(parent.to_string(), EXAMPLE);
        let small = "00-00000000000000000000000000000001-0000000000000001-00";
        assert_eq!(parse(small).unwrap().to_string(), small, "leading zeros stay");
        assert!(!parse(small).unwrap().is_sampled());
    }

    #[test]
    fn flags_that_version_00_does_not_name_are_kept() {
        let flagged = EXAMPLE.replace("-01", "-fe");
        let parent = parse(&flagged).unwrap();
        assert_eq!((parent.flags, parent.is_sampled(), parent.to_string()), (0xfe, false, flagged));
    }

    #[test]
    fn a_later_version_is_read_as_far_as_version_00_goes() {
        for later in [EXAMPLE.replacen("00", "cc", 1), EXAMPLE.replacen("00", "01", 1) + "-what-comes-next"] {
            assert_eq!(parse(&later).unwrap(), parse(EXAMPLE).unwrap(), "{later}");
        }
        let flagged = "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-ff";
        assert_eq!(parse(flagged).unwrap().flags, 1, "what its other flags mean is not known");
    }

    #[test]
    fn what_is_no_traceparent_is_refused_with_what_is_wrong() {
        let long = format!("{EXAMPLE}-00");
        let appended = format!("{EXAMPLE}00");
        let later_appended = format!("{EXAMPLE}.").replacen("00", "01", 1);
        let cases: &[(&str, &str)] = &[
            ("", "it has 0 bytes"),
            (&EXAMPLE[..54], "it has 54 bytes"),
            ("ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "version ff is forbidden"),
            ("0x-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "the version has 'x'"),
            ("00-4BF92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "the trace id has 'B'"),
            ("00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "the trace id has '+'"),
            ("00-00000000000000000000000000000000-00f067aa0ba902b7-01", "the trace id is zero"),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01", "the parent id is zero"),
            ("00-4bf92f3577b34da6a3ce929d0e0e473-600f067aa0ba902b7-01", "has 31 bytes instead of 32"),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736_00f067aa0ba902b7-01", "has 49 bytes instead of 32"),
            ("00-4bf92f3577b34da6a3ce929d0e0e47é-00f067aa0ba902b7-01", "the trace id has 'é'"),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7- 1", "the flags field has ' '"),
            (&long, "version 00 ends after the flags"),
            (&appended, "the flags field has 4 bytes instead of 2"),
            (&later_appended, "the flags field has 3 bytes instead of 2"),
        ];
        for (text, problem) in cases {
            let error = parse(text).unwrap_err();
            assert!(error.contains(problem), "{text}: {error}");
            assert!(error.contains("such as 00-4bf92f"), "{error}");
        }
    }

    #[test]
    fn a_refusal_can_be_shown_whatever_was_sent() {
        let error = parse(&format!("00-\u{1b}[2J{}", "x".repeat(1_000_000))).unwrap_err();
        assert!(error.len() < 1_000 && !error.chars().any(char::is_control), "{error}");
    }
}
