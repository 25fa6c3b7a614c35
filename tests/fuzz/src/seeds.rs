//! Writes the inputs that fuzzing begins with.

use std::path::PathBuf;

use fencepost_server::disk::{Disk as _, RealDisk};

/// Names the folder that the seeds go to. Without it none are written.
const FOLDER: &str = "FENCEPOST_FUZZ_SEEDS";

/// Called when a target starts, before it looks at its corpus.
pub fn write(seeds: fn() -> Vec<Vec<u8>>) {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    RealDisk.create_dir_all(&folder).expect("a folder for seeds");
    for (number, seed) in seeds().into_iter().enumerate() {
        let path = folder.join(format!("seed-{number:03}"));
        let file = RealDisk.open_rw(&path).or_else(|_| RealDisk.create(&path)).expect("a file for a seed");
        file.set_size(0).and_then(|()| file.write_at(&seed, 0)).expect("room for a seed");
    }
}
