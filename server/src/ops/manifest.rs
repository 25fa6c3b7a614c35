//! What a snapshot consists of: a JSON file that names every other file with its length and its digest, and itself ends
//! with a digest. A snapshot without a sound manifest is none: the manifest is written last.

use std::collections::BTreeSet;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use fencepost::Lsn;
use serde::{Deserialize, Serialize};

use crate::disk::Disk;
use crate::log::{CopyError, Damage, OpenError, ReadError, SegmentFileError};
use crate::upkeep::ReplayError;

/// The manifest's name in the snapshot's directory.
pub const MANIFEST: &str = "MANIFEST.json";

/// What it is called until it is written: there from the first step of a snapshot to the last, so that nobody takes what is
/// left of one for a store.
pub(super) const UNFINISHED: &str = "MANIFEST.tmp";

/// The format of manifests that this version writes, and the newest that it reads.
pub(super) const FORMAT_VERSION: u32 = 1;

/// How much of a file is digested at once.
const CHUNK_BYTES: usize = 1 << 20;

/// Everything that a snapshot is said to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Of this file, and of the directory's layout.
    pub format: u32,
    /// Whose history it is.
    pub cluster_id: String,
    /// Its generation when the snapshot was made.
    pub generation: u64,
    /// The last fact in it.
    pub lsn: u64,
    /// By the server's wall clock, for people.
    pub created_at_ms: u64,
    /// The version that made it.
    pub made_by: String,
    /// All files but this one, in the order of their names.
    pub files: Vec<ManifestFile>,
    /// BLAKE3, in hexadecimal digits, of this file in compact form with an empty `digest`.
    pub digest: String,
}

/// One file of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestFile {
    /// Its path inside the snapshot, with `/`.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// Its BLAKE3 digest in hexadecimal digits.
    pub blake3: String,
}

/// Why a directory is no sound snapshot.
#[derive(Debug, thiserror::Error)]
pub enum BadSnapshot {
    /// Something in it is not what was written.
    #[error("{}: {what}", .file.display())]
    Damaged {
        /// Which file.
        file: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// It was made by a newer version.
    #[error(
        "{} has format {found}, and this version reads up to format {supported}: use the Fencepost that wrote it, or a \
         newer one", .file.display()
    )]
    Newer {
        /// The manifest, or another file.
        file: PathBuf,
        /// The format it has.
        found: u32,
        /// The newest format that this version reads.
        supported: u32,
    },
    /// A file cannot be read.
    #[error("cannot {action} {}: {source}", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The directory is in use.
    #[error("{} has files already, {found} for one: name a directory that is empty or does not exist", .dir.display())]
    NotEmpty {
        /// Which.
        dir: PathBuf,
        /// One of its files.
        found: String,
    },
    /// The log refuses.
    #[error("{0}")]
    Log(String),
    /// What was asked for cannot be.
    #[error("{0}")]
    Refused(String),
    /// What is staged would be left behind, and done again elsewhere although its sink may have it.
    #[error(
        "'{pipeline}' has something staged on {branches}, which no export can take along, and the sinks may have it: ask them, \
         then commit or discard it ('fencepost staged {pipeline}' lists it), and export again"
    )]
    Staged {
        /// Of which pipeline.
        pipeline: String,
        /// On which branches, in words.
        branches: String,
    },
    /// The server stops.
    #[error("it was stopped before it was done")]
    Stopped,
}

impl BadSnapshot {
    /// Whether there was no room for what was to be written.
    pub fn is_full(&self) -> bool {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        matches!(self, BadSnapshot::Io { source, .. } if matches!(source.kind(), StorageFull | QuotaExceeded))
    }
}

impl From<SegmentFileError> for BadSnapshot {
    fn from(error: SegmentFileError) -> BadSnapshot {
        match error {
            SegmentFileError::Corrupt(Damage { file, offset, what, .. }) => {
                BadSnapshot::Damaged { file, what: format!("damaged at offset {offset}: {what}") }
            }
            SegmentFileError::NewerFormat { file, found, supported } => BadSnapshot::Newer { file, found, supported },
            SegmentFileError::Another { file, what } => {
                BadSnapshot::Damaged { file, what: format!("not the file that is wanted: {what}") }
            }
            SegmentFileError::TooLong { .. } => BadSnapshot::Refused(error.to_string()),
            SegmentFileError::Io { action, path, source } => BadSnapshot::Io { action, path, source },
        }
    }
}

impl From<OpenError> for BadSnapshot {
    fn from(error: OpenError) -> BadSnapshot {
        match error {
            OpenError::NewerFormat { file, found, supported } => BadSnapshot::Newer { file, found, supported },
            OpenError::Io { action, path, source } => BadSnapshot::Io { action, path, source },
            error => BadSnapshot::Log(error.to_string()),
        }
    }
}

impl From<CopyError> for BadSnapshot {
    fn from(error: CopyError) -> BadSnapshot {
        match error {
            CopyError::Source(error) => error.into(),
            // Not a file that somebody gave, but one of the log that is copied.
            CopyError::File(SegmentFileError::Corrupt(damage)) => BadSnapshot::Log(damage.to_string()),
            CopyError::File(error) => error.into(),
            CopyError::TooEarly { .. } | CopyError::TooLate { .. } => BadSnapshot::Refused(error.to_string()),
            CopyError::NotEmpty { dir, found } => BadSnapshot::NotEmpty { dir, found },
            CopyError::Stopped => BadSnapshot::Stopped,
        }
    }
}

impl From<ReadError> for BadSnapshot {
    fn from(error: ReadError) -> BadSnapshot {
        match error {
            ReadError::Io { file, source, .. } => BadSnapshot::Io { action: "read", path: file, source },
            error => BadSnapshot::Log(error.to_string()),
        }
    }
}

impl From<ReplayError> for BadSnapshot {
    fn from(error: ReplayError) -> BadSnapshot {
        match error {
            ReplayError::Read(error) => error.into(),
            ReplayError::Stopped => BadSnapshot::Stopped,
            error => BadSnapshot::Log(error.to_string()),
        }
    }
}

/// Turns an I/O error into one that says what was tried on what.
pub(super) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BadSnapshot {
    let path = path.to_owned();
    move |source| BadSnapshot::Io { action, path, source }
}

impl Manifest {
    /// The last fact in the snapshot.
    pub fn lsn(&self) -> Lsn {
        Lsn::from_u64(self.lsn)
    }

    /// Length of all files together.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    fn digested(&self) -> String {
        let unsigned = Manifest { digest: String::new(), ..self.clone() };
        let compact = serde_json::to_vec(&unsigned).expect("a manifest is plain data");
        blake3::hash(&compact).to_hex().to_string()
    }

    /// Says durably that a directory, which has no files yet, is to become a snapshot.
    pub fn begin(disk: &dyn Disk, dir: &Path) -> Result<(), BadSnapshot> {
        let path = dir.join(UNFINISHED);
        disk.create(&path).map_err(io_error("create", &path))?;
        disk.sync_dir(dir).map_err(io_error("sync the directory", dir))
    }

    /// Writes it to a directory that was [begun](Manifest::begin) and has all its files, durably. From then on the directory is a snapshot.
    pub fn write(&mut self, disk: &dyn Disk, dir: &Path) -> Result<(), BadSnapshot> {
        self.digest = self.digested();
        let text = serde_json::to_vec_pretty(self).expect("a manifest is plain data");
        let (path, temporary) = (dir.join(MANIFEST), dir.join(UNFINISHED));
        let file = disk.open_rw(&temporary).map_err(io_error("open", &temporary))?;
        file.write_at(&text, 0).map_err(io_error("write", &temporary))?;
        file.sync_data().map_err(io_error("sync", &temporary))?;
        disk.rename(&temporary, &path).map_err(io_error("rename", &temporary))?;
        disk.sync_dir(dir).map_err(io_error("sync the directory", dir))
    }

    /// Reads and checks the manifest of a snapshot; the files it names are not looked at.
    pub fn read(disk: &dyn Disk, dir: &Path) -> Result<Manifest, BadSnapshot> {
        let path = dir.join(MANIFEST);
        let damaged = |what: String| BadSnapshot::Damaged { file: path.clone(), what };
        let file = disk.open(&path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => {
                damaged("there is no manifest, so this is no snapshot, or an unfinished one".into())
            }
            _ => BadSnapshot::Io { action: "open", path: path.clone(), source },
        })?;
        let mut text = vec![0; file.size_bytes().map_err(io_error("read", &path))? as usize];
        file.read_at(&mut text, 0).map_err(io_error("read", &path))?;
        let not_readable = |error| damaged(format!("the manifest cannot be read: {error}"));
        // A newer format may have any other fields.
        let value: serde_json::Value = serde_json::from_slice(&text).map_err(not_readable)?;
        let format = value.get("format").and_then(serde_json::Value::as_u64).unwrap_or_default();
        if format > FORMAT_VERSION.into() {
            let found = u32::try_from(format).unwrap_or(u32::MAX);
            return Err(BadSnapshot::Newer { file: path, found, supported: FORMAT_VERSION });
        }
        let manifest: Manifest = serde_json::from_value(value).map_err(not_readable)?;
        if manifest.digest != manifest.digested() {
            return Err(damaged("the manifest does not match its own digest".to_owned()));
        }
        // The digest says that we wrote it; this says that nobody else did either.
        let strays_out =
            |name: &str| name.is_empty() || name.split('/').any(|part| part.is_empty() || part.starts_with('.'));
        if let Some(stray) = manifest.files.iter().find(|file| strays_out(&file.name)) {
            return Err(damaged(format!("the name '{}' leads out of the snapshot", stray.name)));
        }
        Ok(manifest)
    }

    /// Compares every file with what the manifest says of it, and finds files that it does not name. `pace` hears of the
    /// bytes read since its last call.
    pub fn check(
        &self,
        disk: &dyn Disk,
        dir: &Path,
        pace: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<(), BadSnapshot> {
        for file in &self.files {
            let path = dir.join(&file.name);
            let found = ManifestFile::of(disk, dir, &file.name, pace)?;
            let damaged = |what| Err(BadSnapshot::Damaged { file: path, what });
            if found.bytes != file.bytes {
                return damaged(format!("the file has {} bytes, and the manifest says {}", found.bytes, file.bytes));
            }
            if found.blake3 != file.blake3 {
                return damaged(format!(
                    "the file's digest is {}, and the manifest says {}",
                    found.blake3, file.blake3
                ));
            }
        }
        let named: BTreeSet<PathBuf> = self.files.iter().map(|file| dir.join(&file.name)).collect();
        let folders: BTreeSet<&Path> = named.iter().filter_map(|path| path.parent()).filter(|it| *it != dir).collect();
        for folder in folders {
            for name in disk.list(folder).map_err(io_error("list", folder))? {
                let path = folder.join(name);
                if !named.contains(&path) {
                    let what = "the file is not in the manifest: it is not part of the snapshot".to_owned();
                    return Err(BadSnapshot::Damaged { file: path, what });
                }
            }
        }
        Ok(())
    }
}

impl ManifestFile {
    /// Reads a file of a snapshot and says what it is.
    pub fn of(
        disk: &dyn Disk,
        dir: &Path,
        name: &str,
        pace: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<ManifestFile, BadSnapshot> {
        let path = dir.join(name);
        let file = disk.open(&path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => {
                BadSnapshot::Damaged { file: path.clone(), what: "the file is missing".to_owned() }
            }
            _ => BadSnapshot::Io { action: "open", path: path.clone(), source },
        })?;
        let bytes = file.size_bytes().map_err(io_error("read", &path))?;
        let (mut hasher, mut buffer, mut at) = (blake3::Hasher::new(), vec![0; CHUNK_BYTES], 0);
        while at < bytes {
            let chunk = &mut buffer[..CHUNK_BYTES.min((bytes - at) as usize)];
            file.read_at(chunk, at).map_err(io_error("read", &path))?;
            hasher.update(chunk);
            at += chunk.len() as u64;
            if pace(chunk.len() as u64).is_break() {
                return Err(BadSnapshot::Stopped);
            }
        }
        Ok(ManifestFile { name: name.to_owned(), bytes, blake3: hasher.finalize().to_hex().to_string() })
    }
}
