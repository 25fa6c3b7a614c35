//! Which distributed trace a piece of work belongs to: the `traceparent` of W3C Trace Context
//! (<https://www.w3.org/TR/trace-context/>).

use std::fmt;
use std::num::NonZero;
use std::str::FromStr;

/// Length of version 00 in characters, and of the part that every later version begins with.
const LENGTH: usize = 55;

/// One span of a distributed trace. People and HTTP headers see
/// `00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01`.
///
/// That neither id is zero, as the standard wants it, is in their types.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TraceParent {
    /// The trace as a whole; the 16 bytes of the standard, the first one highest.
    pub trace_id: NonZero<u128>,
    /// The span in it that caused the work; the 8 bytes of the standard, the first one highest.
    pub parent_id: NonZero<u64>,
    /// Bit 0: whoever called may have recorded the span. The other bits are kept as they came.
    pub flags: u8,
}

impl TraceParent {
    /// Whether whoever called may have recorded the span.
    pub const fn is_sampled(self) -> bool {
        self.flags & 1 == 1
    }
}

/// As version 00, whatever version it was read from.
impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace_id, self.parent_id, self.flags)
    }
}

impl FromStr for TraceParent {
    type Err = String;

    /// Reads what `Display` writes. Of a later version it reads what version 00 knows, which the standard keeps in place
    /// ("Versioning of traceparent"); of its flags that is bit 0 alone.
    fn from_str(text: &str) -> Result<TraceParent, String> {
        let wrong = |problem: String| {
            // It may be anything, of any length.
            let shown: String = text.chars().take(LENGTH + 9).collect();
            format!(
                "{shown:?} is no traceparent: {problem}. Expected VERSION-TRACE_ID-PARENT_ID-FLAGS in lower-case hex, such \
                 as 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
            )
        };
        if text.len() < LENGTH {
            return Err(wrong(format!("it has {} bytes, and none has fewer than {LENGTH}", text.len())));
        }
        let mut fields = text.splitn(5, '-');
        let mut hex = |name: &str, digits: usize| {
            let field = fields.next().unwrap_or_default();
            if field.len() != digits {
                return Err(wrong(format!("{name} has {} bytes instead of {digits}", field.len())));
            }
            if let Some(other) = field.chars().find(|c| !matches!(c, '0'..='9' | 'a'..='f')) {
                return Err(wrong(format!("{name} has {other:?}, which is no lower-case hex digit")));
            }
            u128::from_str_radix(field, 16).map_err(|error| wrong(format!("{name}: {error}")))
        };
        let version = hex("the version", 2)?;
        let trace_id = hex("the trace id", 32)?;
        let parent_id = hex("the parent id", 16)? as u64;
        let flags = hex("the flags field", 2)? as u8;
        match (version, fields.next()) {
            (0xff, _) => return Err(wrong("version ff is forbidden".to_owned())),
            (0, Some(_)) => return Err(wrong("version 00 ends after the flags".to_owned())),
            _ => {}
        }
        Ok(TraceParent {
            trace_id: NonZero::new(trace_id).ok_or_else(|| wrong("the trace id is zero".to_owned()))?,
            parent_id: NonZero::new(parent_id).ok_or_else(|| wrong("the parent id is zero".to_owned()))?,
            flags: if version == 0 { flags } else { flags & 1 },
        })
    }
}
