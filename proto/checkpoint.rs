//! What the messages alone say about a checkpoint.

use crate::v1::Checkpoint;

impl Checkpoint {
    /// CRC-32 (IEEE) of the position followed by the state: what `payload_crc32` has to be.
    pub fn computed_crc32(&self) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&self.position);
        hasher.update(&self.state);
        hasher.finalize()
    }
}
