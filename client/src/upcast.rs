//! State of old code in new code: each change of a state's format comes with a function that brings the state before it up
//! to it ([`Upcasters`]).

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;

type Convert = Box<dyn Fn(Bytes) -> Result<Bytes, String> + Send + Sync>;

/// Brings states of earlier format versions up to the one that this code reads, a step at a time. A step, once written, is
/// never changed: it is about two versions that are both in the past as soon as there is a next one.
///
/// ```
/// use bytes::Bytes;
/// use fencepost_client::{UpcastError, Upcasters};
///
/// # fn main() -> Result<(), UpcastError> {
/// // Version 1 was a count; 2 has its unit; 3 has a name before it.
/// let upcasters = Upcasters::new(3)
///     .register(1, 2, |state: Bytes| Ok::<_, String>([&state, &b" rows"[..]].concat().into()))?
///     .register(2, 3, |state: Bytes| Ok::<_, String>([b"done: ", &state[..]].concat().into()))?;
/// assert_eq!(upcasters.upcast(1, Bytes::from("17"))?, "done: 17 rows");
/// assert_eq!(upcasters.upcast(3, Bytes::from("done: 17 rows"))?, "done: 17 rows");
/// # Ok(())
/// # }
/// ```
pub struct Upcasters {
    current: u32,
    /// By the version that a step begins with: the one it ends with, and how.
    steps: BTreeMap<u32, (u32, Convert)>,
}

/// Why a state could not be brought to the version that this code reads, or why a step does not fit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UpcastError {
    /// The state was written by newer code.
    #[error(
        "the state has format version {found}, and this code knows versions up to {current}: old code must not run on new \
         state. Deploy the code that wrote it, or rewind the branch to a checkpoint of version {current}"
    )]
    Newer {
        /// The state's version.
        found: u32,
        /// The newest version that this code reads.
        current: u32,
    },
    /// A step is missing.
    #[error(
        "there is no way from format version {found} to {current}: no step leads on from version {missing}. Register one \
         from {missing}"
    )]
    NoWay {
        /// The state's version.
        found: u32,
        /// The version that this code reads.
        current: u32,
        /// The version at which the way ends.
        missing: u32,
    },
    /// A step could not read the state.
    #[error("the step from format version {from} to {to} failed: {cause}")]
    Failed {
        /// The version that the step begins with.
        from: u32,
        /// The version that it ends with.
        to: u32,
        /// What the step said.
        cause: String,
    },
    /// A step was registered that does not lead up to the current version.
    #[error(
        "a step from format version {from} to {to} does not lead up to version {current}: it has to end above {from} and \
         not above {current}"
    )]
    NotUp {
        /// The version that the step begins with.
        from: u32,
        /// The version that it ends with.
        to: u32,
        /// The version that this code reads.
        current: u32,
    },
    /// Two steps were registered that begin with the same version.
    #[error(
        "a step from format version {from} to {to} was registered, but there is one from {from} to {registered} already: \
         leave one of them out"
    )]
    Twice {
        /// The version that both steps begin with.
        from: u32,
        /// The version that the refused step ends with.
        to: u32,
        /// The version that the first step ends with.
        registered: u32,
    },
}

impl Upcasters {
    /// For code that reads and writes states of format version `current`. Version 0 is that of states for which none was
    /// declared; it needs its own step like any other.
    pub fn new(current: u32) -> Upcasters {
        Upcasters { current, steps: BTreeMap::new() }
    }

    /// The format version that this code reads and writes.
    pub fn current(&self) -> u32 {
        self.current
    }

    /// Adds the step from version `from` to version `to`, which need not be the next one. Fails if the step does not lead
    /// up to the current version, or if there is one from the same version already.
    pub fn register<E: fmt::Display>(
        mut self,
        from: u32,
        to: u32,
        step: impl Fn(Bytes) -> Result<Bytes, E> + Send + Sync + 'static,
    ) -> Result<Upcasters, UpcastError> {
        if to <= from || to > self.current {
            return Err(UpcastError::NotUp { from, to, current: self.current });
        }
        if let Some((registered, _)) = self.steps.get(&from) {
            return Err(UpcastError::Twice { from, to, registered: *registered });
        }
        let convert = move |state| step(state).map_err(|error| error.to_string());
        self.steps.insert(from, (to, Box::new(convert)));
        Ok(self)
    }

    /// The state in the current version. One that has it already is returned as it is, and not copied.
    pub fn upcast(&self, format_version: u32, state: Bytes) -> Result<Bytes, UpcastError> {
        let (found, current) = (format_version, self.current);
        if found > current {
            return Err(UpcastError::Newer { found, current });
        }
        let (mut version, mut state) = (found, state);
        while version < current {
            let (to, convert) =
                self.steps.get(&version).ok_or(UpcastError::NoWay { found, current, missing: version })?;
            state = convert(state).map_err(|cause| UpcastError::Failed { from: version, to: *to, cause })?;
            version = *to;
        }
        Ok(state)
    }
}

impl fmt::Debug for Upcasters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let steps: Vec<_> = self.steps.iter().map(|(from, (to, _))| (from, to)).collect();
        f.debug_struct("Upcasters").field("current", &self.current).field("steps", &steps).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A step that leaves its mark.
    fn mark(mark: &'static str) -> impl Fn(Bytes) -> Result<Bytes, String> {
        move |state| Ok([&state[..], mark.as_bytes()].concat().into())
    }

    fn chain() -> Upcasters {
        let upcasters = Upcasters::new(4).register(2, 4, mark(">4")).unwrap();
        upcasters.register(0, 1, mark(">1")).unwrap().register(1, 2, mark(">2")).unwrap()
    }

    #[test]
    fn every_earlier_version_goes_through_its_steps_in_order() {
        let states = [0, 1, 2].map(|version| chain().upcast(version, Bytes::from("s")).unwrap());
        assert_eq!(states, ["s>1>2>4", "s>2>4", "s>4"]);
    }

    #[test]
    fn a_state_of_the_current_version_is_left_alone() {
        let state = Bytes::from(vec![1, 2, 3]);
        assert_eq!(chain().upcast(4, state.clone()).unwrap().as_ptr(), state.as_ptr());
    }

    #[test]
    fn old_code_does_not_open_new_state() {
        let error = chain().upcast(5, Bytes::new()).unwrap_err();
        assert_eq!(error, UpcastError::Newer { found: 5, current: 4 });
        assert!(error.to_string().contains("has format version 5, and this code knows versions up to 4"));
    }

    #[test]
    fn a_gap_in_the_way_is_named() {
        let error = chain().upcast(3, Bytes::new()).unwrap_err();
        assert_eq!(error, UpcastError::NoWay { found: 3, current: 4, missing: 3 });
        let upcasters = Upcasters::new(3).register(1, 2, mark(">2")).unwrap();
        let error = upcasters.upcast(1, Bytes::new()).unwrap_err();
        assert_eq!(error, UpcastError::NoWay { found: 1, current: 3, missing: 2 });
        assert!(error.to_string().contains("no way from format version 1 to 3: no step leads on from version 2"));
    }

    #[test]
    fn a_state_without_a_version_needs_a_step_of_its_own() {
        let upcasters = Upcasters::new(2).register(1, 2, mark(">2")).unwrap();
        assert!(matches!(upcasters.upcast(0, Bytes::new()), Err(UpcastError::NoWay { missing: 0, .. })));
        assert_eq!(Upcasters::new(0).upcast(0, Bytes::from("s")).unwrap(), "s");
    }

    #[test]
    fn a_step_that_fails_is_named_with_its_reason_and_ends_the_way() {
        let upcasters = Upcasters::new(3).register(1, 2, |_| Err("no JSON")).unwrap();
        let upcasters =
            upcasters.register(2, 3, |_| -> Result<Bytes, String> { panic!("the step before failed") }).unwrap();
        let error = upcasters.upcast(1, Bytes::new()).unwrap_err();
        assert_eq!(error.to_string(), "the step from format version 1 to 2 failed: no JSON");
    }

    #[test]
    fn a_version_has_one_step() {
        for to in [1, 4] {
            let error = chain().register(0, to, mark("")).unwrap_err();
            assert_eq!(error, UpcastError::Twice { from: 0, to, registered: 1 });
        }
    }

    #[test]
    fn a_step_leads_up_and_not_beyond_the_current_version() {
        for (from, to) in [(3, 3), (3, 2), (3, 5), (4, 5)] {
            let error = chain().register(from, to, mark("")).unwrap_err();
            assert_eq!(error, UpcastError::NotUp { from, to, current: 4 });
        }
    }
}
