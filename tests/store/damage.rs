//! What can happen to the files of a store, and which of their bytes mean what.

#![allow(clippy::single_range_in_vec_init)] // Ranges are meant, and not their numbers.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::drive::Random;
use crate::support::files_in;

/// One thing that happens to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// One bit changes.
    Flip,
    /// A sector turns into zeros.
    ZeroSector,
    /// All of it turns into zeros.
    ZeroFile,
    /// It ends early.
    Cut,
    /// It and another of its kind change places.
    SwapSame,
    /// It and one of another kind change places.
    SwapOther,
    /// It is gone.
    Delete,
    /// It is there twice.
    Duplicate,
    /// It is as it once was.
    Older,
}

impl Fault {
    /// Those that happen at one place in a file, and those that happen to it as a whole.
    pub(crate) const PLACED: [Fault; 3] = [Fault::Flip, Fault::ZeroSector, Fault::Cut];
    pub(crate) const WHOLE: [Fault; 6] =
        [Fault::ZeroFile, Fault::SwapSame, Fault::SwapOther, Fault::Delete, Fault::Duplicate, Fault::Older];
}

/// A file, or a part of one.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// What it is, for people.
    pub(crate) what: &'static str,
    /// Which of a store's kinds of files.
    pub(crate) kind: Kind,
    /// Its path in the data directory.
    pub(crate) file: PathBuf,
    /// The bytes that the part has; none: the whole file.
    pub(crate) ranges: Vec<Range<u64>>,
}

/// Kinds of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// A segment that was sealed and never compacted.
    Sealed,
    Compacted,
    /// The segment that is written to.
    Active,
    State,
    Index,
    Reserve,
    Lock,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Sealed => "sealed segment",
            Kind::Compacted => "compacted segment",
            Kind::Active => "newest segment",
            Kind::State => "state.seg",
            Kind::Index => "index",
            Kind::Reserve => "reserve",
            Kind::Lock => "LOCK",
        })
    }
}

/// What kind of file this is.
fn kind(data_dir: &Path, file: &Path) -> Option<Kind> {
    let name = file.to_string_lossy();
    Some(match &*name {
        "state.seg" => Kind::State,
        "reserve" => Kind::Reserve,
        "log/LOCK" => Kind::Lock,
        _ if name.starts_with("index/") => Kind::Index,
        _ if name.ends_with(".seg") => {
            let bytes = std::fs::read(data_dir.join(file)).unwrap();
            let is_newest = segments(data_dir).last().is_some_and(|newest| newest == file);
            match u64::from_le_bytes(bytes[72..80].try_into().unwrap()) {
                _ if is_newest => Kind::Active,
                0 => Kind::Sealed,
                _ => Kind::Compacted,
            }
        }
        _ => return None,
    })
}

/// The segments, by their paths in the data directory.
fn segments(data_dir: &Path) -> Vec<PathBuf> {
    let files = files_in(&data_dir.join("log")).into_iter();
    let files = files.filter(|file| file.extension().is_some_and(|it| it == "seg"));
    files.map(|file| file.strip_prefix(data_dir).unwrap().to_owned()).collect()
}

/// All files of a store, and those of their parts that are damaged each for itself.
pub(crate) fn targets(data_dir: &Path) -> (Vec<Target>, Vec<Target>) {
    let (mut files, mut parts) = (Vec::new(), Vec::new());
    for path in files_in(data_dir) {
        let file = path.strip_prefix(data_dir).unwrap().to_owned();
        let Some(kind) = kind(data_dir, &file) else { continue };
        let of = |what, ranges| Target { what, kind, file: file.clone(), ranges };
        files.push(of("the file", Vec::new()));
        let bytes = std::fs::read(&path).unwrap();
        match kind {
            Kind::Sealed | Kind::Compacted | Kind::Active | Kind::State => {
                let layout = layout(&bytes);
                parts.extend(layout.into_iter().map(|(what, ranges)| of(what, ranges)));
            }
            Kind::Index | Kind::Reserve if !bytes.is_empty() => {
                parts.push(of("anywhere", vec![0..bytes.len() as u64]));
            }
            Kind::Index | Kind::Reserve | Kind::Lock => {}
        }
    }
    (files, parts)
}

/// The parts of a segment file: see docs/log-format.md.
fn layout(bytes: &[u8]) -> BTreeMap<&'static str, Vec<Range<u64>>> {
    let mut layout: BTreeMap<_, Vec<_>> = BTreeMap::from([("header", vec![0..512_u64])]);
    let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let mut at = 512;
    while bytes[at..].starts_with(&[0xfe, 0x9c]) {
        let payload_bytes = u32_at(at + 20) as usize;
        let end = at + 32 + payload_bytes.next_multiple_of(8);
        let place = at as u64;
        let mut add = |what, range: Range<u64>| layout.entry(what).or_default().push(range);
        match bytes[at + 2] {
            1 => {
                add("fact header", place..place + 32);
                if payload_bytes > 0 {
                    add("payload", place + 32..place + 32 + payload_bytes as u64);
                }
            }
            2 => add("commit", place..end as u64),
            _ => break,
        }
        at = end;
    }
    let file_bytes = bytes.len() as u64;
    if bytes.ends_with(&[0xfe, 0x73, 0x65, 0x61, 0x6c, 0xa5, 0x9c, 0xfe]) {
        let trailer = bytes.len() - 64;
        let table = u64::from(u32_at(trailer + 8)) | u64::from(u32_at(trailer + 12)) << 32;
        layout.insert("table", vec![table..trailer as u64]);
        layout.insert("trailer", vec![trailer as u64..file_bytes]);
        if at as u64 != table {
            layout.insert("zeros", vec![at as u64..table]);
        }
    } else {
        layout.insert("zeros", vec![at as u64..file_bytes]);
    }
    layout
}

/// What was done to a store: to which files, and between which offsets if it was at one place.
#[derive(Debug)]
pub(crate) struct Done {
    /// Any of these may be named as the culprit.
    pub(crate) files: Vec<PathBuf>,
    pub(crate) offsets: Option<Range<u64>>,
}

/// Does it to a copy of a store, none of whose files is changed in place. `older` is the store as it once was. `None`: it
/// cannot be done, or would change nothing.
pub(crate) fn damage(
    data_dir: &Path,
    older: &Path,
    target: &Target,
    fault: Fault,
    random: &mut Random,
) -> Option<Done> {
    let path = data_dir.join(&target.file);
    let before = std::fs::read(&path).unwrap();
    let mut bytes = before.clone();
    let mut done = Done { files: vec![path.clone()], offsets: None };
    let place = |random: &mut Random| {
        let range = target.ranges[random.below(target.ranges.len() as u64) as usize].clone();
        range.start + random.below(range.end - range.start)
    };
    match fault {
        Fault::Flip => {
            let at = place(random);
            bytes[at as usize] ^= 1 << random.below(8);
            done.offsets = Some(at..at + 1);
        }
        Fault::ZeroSector => {
            let sector = place(random) / 512 * 512;
            let end = (sector + 512).min(bytes.len() as u64);
            bytes[sector as usize..end as usize].fill(0);
            done.offsets = Some(sector..end);
        }
        Fault::Cut => {
            let at = place(random);
            bytes.truncate(at as usize);
            done.offsets = Some(at..before.len() as u64);
        }
        Fault::ZeroFile => bytes.fill(0),
        Fault::SwapSame | Fault::SwapOther => {
            let is_segment = |kind| matches!(kind, Kind::Sealed | Kind::Compacted | Kind::Active);
            let is_same = |kind| kind == target.kind || is_segment(kind) && is_segment(target.kind);
            let (files, _) = targets(data_dir);
            let wanted = |it: &&Target| it.file != target.file && is_same(it.kind) == (fault == Fault::SwapSame);
            let others: Vec<&Target> = files.iter().filter(wanted).collect();
            if others.is_empty() {
                return None;
            }
            let other = data_dir.join(&others[random.below(others.len() as u64) as usize].file);
            bytes = std::fs::read(&other).unwrap();
            if bytes == before {
                return None;
            }
            replace(&other, &before);
            done.files.push(other);
        }
        Fault::Delete => {
            std::fs::remove_file(&path).unwrap();
            return Some(done);
        }
        Fault::Duplicate => {
            done.files.extend(duplicate(data_dir, target, random)?);
            return Some(done);
        }
        Fault::Older if target.kind == Kind::Index => {
            std::fs::remove_dir_all(data_dir.join("index")).unwrap();
            crate::support::copy_store(&older.join("index"), &data_dir.join("index"));
            return Some(done);
        }
        Fault::Older => {
            bytes = std::fs::read(older.join(&target.file)).ok()?;
            if target.kind == Kind::Compacted {
                // It stood for the one after it.
                let number: u64 = target.file.file_stem()?.to_str()?.parse().ok()?;
                done.files.push(data_dir.join(format!("log/{:020}.seg", number + 1)));
            }
        }
    }
    if bytes == before {
        return None;
    }
    replace(&path, &bytes);
    Some(done)
}

/// Puts a file in the place of another, whose bytes may have other names elsewhere.
fn replace(path: &Path, bytes: &[u8]) {
    std::fs::remove_file(path).unwrap();
    std::fs::write(path, bytes).unwrap();
}

/// Copies a file, or what it belongs to, to another name. Answers all files that may be named because of that.
fn duplicate(data_dir: &Path, target: &Target, random: &mut Random) -> Option<Vec<PathBuf>> {
    let path = data_dir.join(&target.file);
    match target.kind {
        Kind::Sealed | Kind::Compacted | Kind::Active => {
            let mut known: Vec<PathBuf> = segments(data_dir).iter().map(|it| data_dir.join(it)).collect();
            let newest: u64 = known.last()?.file_stem()?.to_str()?.parse().unwrap();
            let free: Vec<PathBuf> = (1..newest + 3).map(|it| data_dir.join(format!("log/{it:020}.seg"))).collect();
            let free: Vec<&PathBuf> = free.iter().filter(|it| !it.exists()).collect();
            let copy = free[random.below(free.len() as u64) as usize].clone();
            std::fs::copy(&path, &copy).unwrap();
            known.push(copy);
            // One that is missing before a later one.
            known.push(data_dir.join(format!("log/{:020}.seg", newest + 1)));
            Some(known)
        }
        Kind::State => {
            std::fs::copy(&path, data_dir.join(["state.tmp", "state.seg.bak"][random.below(2) as usize])).unwrap();
            Some(Vec::new())
        }
        Kind::Index => {
            let folder = target.file.parent()?;
            let number: u64 = folder.file_name()?.to_str()?.parse().ok()?;
            let copy = data_dir.join(format!("index/{:010}", number + 1));
            std::fs::create_dir_all(&copy).unwrap();
            // The whole database, or this file of it alone.
            let all = files_in(&data_dir.join(folder));
            let copied = if random.below(2) == 0 { all } else { vec![path] };
            for file in copied {
                std::fs::copy(&file, copy.join(file.file_name()?)).unwrap();
            }
            Some(Vec::new())
        }
        Kind::Reserve | Kind::Lock => None,
    }
}
