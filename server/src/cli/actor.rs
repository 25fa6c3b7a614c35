//! Who asks for a change, as the audit will show it.

use clap::Args;

/// Longest name that a server takes, in characters.
const ACTOR_CHARS_MAX: usize = 128;

#[derive(Args)]
pub(super) struct Actor {
    /// Who you are, for the audit. [default: USER@HOST]
    #[arg(long, env = "FENCEPOST_ACTOR", value_name = "NAME")]
    actor: Option<String>,
}

impl Actor {
    /// What was given, or else who runs this, and where.
    pub(super) fn name(self) -> String {
        let user = || std::env::var("USER").unwrap_or_else(|_| "operator".to_owned());
        let name = self.actor.unwrap_or_else(|| format!("{}@{}", user(), host()));
        name.chars().take(ACTOR_CHARS_MAX).collect()
    }
}

/// The machine's name.
pub(super) fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// What people append to a sentence.
pub(super) fn because(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(", because: {reason}") }
}
