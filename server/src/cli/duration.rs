//! Lengths of time as people type them and as a policy has them.

use jiff::{Span, SpanRelativeTo, Unit};

/// Units from the longest to the shortest, in milliseconds.
const UNITS: [(u64, &str); 5] = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1_000, "s"), (1, "ms")];

/// A length of time such as `7d`, `12h`, `1h30m` or `30s`, in milliseconds. A day has 24 hours.
pub(super) fn parse(text: &str) -> Result<u64, String> {
    let expected = || format!("'{text}' is no length of time: expected a form such as 7d, 12h, 30m, 45s or 1h30m");
    let span: Span = text.parse().map_err(|_| expected())?;
    let total = span.total((Unit::Millisecond, SpanRelativeTo::days_are_24_hours())).map_err(|_| expected())?;
    // Years and months have no length of their own and fail above.
    if total < 0.0 || total.fract() != 0.0 {
        return Err(expected());
    }
    Ok(total as u64)
}

/// The same length in the longest unit that it is a whole number of, so that what was typed is what is shown.
pub(super) fn exact(ms: u64) -> String {
    let whole = UNITS.iter().find(|(unit, _)| ms != 0 && ms.is_multiple_of(*unit));
    whole.map_or_else(|| "0".to_owned(), |(unit, name)| format!("{} {name}", ms / unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_type_is_understood_and_shown_as_it_was_meant() {
        for (text, ms, shown) in [
            ("7d", 604_800_000, "7 d"),
            ("12h", 43_200_000, "12 h"),
            ("1h30m", 5_400_000, "90 min"),
            ("30s", 30_000, "30 s"),
            ("36h", 129_600_000, "36 h"),
            ("2w", 1_209_600_000, "14 d"),
            ("250ms", 250, "250 ms"),
            ("0s", 0, "0"),
        ] {
            assert_eq!(parse(text), Ok(ms), "{text}");
            assert_eq!(exact(ms), shown);
        }
    }

    #[test]
    fn what_has_no_length_is_refused_with_examples() {
        for text in ["", "7", "soon", "-3d", "1 month", "1y", "5us"] {
            let problem = parse(text).unwrap_err();
            assert!(problem.contains(&format!("'{text}'")) && problem.contains("such as 7d"), "{problem}");
        }
    }
}
