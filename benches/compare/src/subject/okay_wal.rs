//! okaywal. It keeps entries until a checkpoint takes over what they say; here it takes over nothing, so that files are
//! used again as soon as they are full.

use std::path::Path;

use okaywal::{LogVoid, WriteAheadLog};

use super::{Subject, payload};

pub(super) struct OkayWal(WriteAheadLog);

impl OkayWal {
    pub(super) fn open(dir: &Path) -> OkayWal {
        OkayWal(WriteAheadLog::recover(dir, LogVoid).expect("a log can be made"))
    }
}

impl Subject for OkayWal {
    fn caller(&self, number: usize, bytes: usize) -> Box<dyn FnMut() + '_> {
        let payload = payload(number, bytes);
        Box::new(move || {
            let mut entry = self.0.begin_entry().expect("the disk works");
            entry.write_chunk(&payload).expect("the disk works");
            entry.commit().expect("the disk works");
        })
    }
}

impl Drop for OkayWal {
    fn drop(&mut self) {
        self.0.clone().shutdown().expect("the checkpoints worked");
    }
}
