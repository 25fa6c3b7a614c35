//! Every setting of the server, with its default and its bounds.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Settings of one server. Flags of `fencepost serve` override the environment (`FENCEPOST_LISTEN`, ...), which overrides
/// the TOML file, which overrides the defaults.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where clients connect. Port 0: any free one.
    pub listen: SocketAddr,
    /// Where the log is.
    pub data_dir: PathBuf,
    /// Size of one segment file of the log.
    pub segment_bytes: u64,
    /// Size at which an entry of the log is closed although more is waiting.
    pub batch_bytes_max: usize,
    /// Memory of all requests in hand; more are refused with RATE_LIMITED.
    pub in_flight_bytes_max: usize,
    /// Size of one request; a larger one is refused with TOO_LARGE before it is read.
    pub request_bytes_max: usize,
    /// Connections at a time; more wait to be accepted.
    pub connections_max: usize,
    /// TTL of a lease whose holder asks for none.
    pub lease_ttl_default_ms: u64,
    /// Bytes that compaction reads and writes in a second, as long as it does not fall behind. 0: as many as it can.
    pub compaction_bytes_per_second: u64,
    /// Bytes of old segments that are read and checked in a second. 0: they are not.
    pub scrub_bytes_per_second: u64,
    /// How long that rests after all of them were checked.
    pub scrub_every_ms: u64,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            listen: SocketAddr::from(([127, 0, 0, 1], 7411)),
            data_dir: PathBuf::from("fencepost-data"),
            segment_bytes: 64 << 20,
            batch_bytes_max: 1 << 20,
            in_flight_bytes_max: 256 << 20,
            request_bytes_max: 8 << 20,
            connections_max: 10_000,
            lease_ttl_default_ms: 30_000,
            compaction_bytes_per_second: 64 << 20,
            scrub_bytes_per_second: 4 << 20,
            scrub_every_ms: 24 * 3_600_000,
        }
    }
}

/// A setting outside its bounds.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{setting} is {value}: expected {expected}")]
pub struct ConfigError {
    /// Its name, as in the file.
    pub setting: &'static str,
    /// What it was set to.
    pub value: u64,
    /// What would be right.
    pub expected: String,
}

impl Config {
    /// Checks every bound.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let bound = |setting, value: u64, min: u64, max: u64| {
            if (min..=max).contains(&value) {
                return Ok(());
            }
            Err(ConfigError { setting, value, expected: format!("{min} to {max}") })
        };
        bound("request_bytes_max", self.request_bytes_max as u64, 2 << 20, 64 << 20)?;
        bound("batch_bytes_max", self.batch_bytes_max as u64, 4 << 10, 16 << 20)?;
        let entry_bytes_max = self.entry_bytes_max() as u64;
        bound("segment_bytes", self.segment_bytes, 2 * entry_bytes_max, (4 << 30) - 512)?;
        bound("in_flight_bytes_max", self.in_flight_bytes_max as u64, self.request_bytes_max as u64, 1 << 40)?;
        bound("connections_max", self.connections_max as u64, 1, 1_000_000)?;
        let (ttl_min, ttl_max) = (limits::TTL_MIN.as_millis() as u64, limits::TTL_MAX.as_millis() as u64);
        bound("lease_ttl_default_ms", self.lease_ttl_default_ms, ttl_min, ttl_max)?;
        bound("compaction_bytes_per_second", self.compaction_bytes_per_second, 0, 1 << 40)?;
        bound("scrub_bytes_per_second", self.scrub_bytes_per_second, 0, 1 << 40)?;
        bound("scrub_every_ms", self.scrub_every_ms, 0, 366 * 24 * 3_600_000)
    }

    /// The largest entry of the log that can come about: a batch just short of its bound, and one more request.
    pub fn entry_bytes_max(&self) -> usize {
        self.batch_bytes_max + self.request_bytes_max + (1 << 20)
    }
}

/// Limits that are part of the API and the same on every server.
pub mod limits {
    use super::Duration;

    /// State of a checkpoint, in bytes.
    pub const STATE_BYTES_MAX: usize = 4 << 20;
    /// Position of a checkpoint, in bytes.
    pub const POSITION_BYTES_MAX: usize = 64 << 10;
    /// Fingerprint of a schema, in bytes.
    pub const FINGERPRINT_BYTES_MAX: usize = 64;
    /// Fingerprints in the scope of a checkpoint.
    pub const SCOPE_MAX: usize = 16;
    /// Dead letters in a commit, and those that a commit replays.
    pub const DEAD_LETTERS_MAX: usize = 1_000;
    /// Payloads of the dead letters in a commit, in bytes.
    pub const DEAD_LETTERS_BYTES_MAX: usize = 4 << 20;
    /// Open dead letters of a pipeline.
    pub const DEAD_LETTERS_OPEN_MAX: u64 = 100_000;
    /// Open barriers of a pipeline.
    pub const BARRIERS_OPEN_MAX: usize = 1_000;
    /// Longest time that a barrier waits: 30 days.
    pub const BARRIER_TIMEOUT_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
    /// Inputs of a merge.
    pub const MERGE_INPUTS_MAX: usize = 128;
    /// Declared schemas of a pipeline.
    pub const SCHEMAS_MAX: usize = 1_000;
    /// Branches in a commit.
    pub const BRANCHES_MAX: usize = 128;
    /// Reason of a resume or of a change of a pipeline's history, in bytes.
    pub const REASON_BYTES_MAX: usize = 1 << 10;
    /// Who asked for a change of a pipeline's history, in characters.
    pub const ACTOR_CHARS_MAX: usize = 128;
    /// Newest checkpoints of each branch that a policy can keep.
    pub const KEEP_LAST_MAX: u64 = 1_000_000;
    /// Newest checkpoints of each branch that a policy keeps that does not say how many.
    pub const KEEP_LAST_DEFAULT: u64 = 10;
    /// How long a policy that does not say keeps who did what and why.
    pub const AUDIT_FOR_DEFAULT: Duration = Duration::from_secs(30 * 24 * 3600);
    /// Longest time that a policy can name: ten years.
    pub const POLICY_AGE_MAX: Duration = Duration::from_secs(10 * 366 * 24 * 3600);
    /// Savepoints of a pipeline.
    pub const SAVEPOINTS_MAX: usize = 10_000;
    /// Leases in a keepalive.
    pub const KEEPALIVE_LEASES_MAX: usize = 10_000;
    /// Sessions on a commit stream at a time.
    pub const SESSIONS_MAX: usize = 100_000;
    /// Commits of a stream whose answers its caller has not read yet; further ones are not read from the socket.
    pub const STREAM_UNANSWERED_MAX: usize = 16_384;
    /// Rows of a page.
    pub const PAGE_SIZE_MAX: u32 = 1_000;
    /// Rows of a page that does not say how many.
    pub const PAGE_SIZE_DEFAULT: u32 = 100;
    /// Shortest TTL of a lease.
    pub const TTL_MIN: Duration = Duration::from_secs(1);
    /// Longest TTL of a lease.
    pub const TTL_MAX: Duration = Duration::from_secs(3600);
    /// Longest lock delay.
    pub const LOCK_DELAY_MAX: Duration = Duration::from_secs(60);
    /// Longest wait for a lease.
    pub const WAIT_MAX: Duration = Duration::from_secs(3600);
}
