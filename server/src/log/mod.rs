//! stub
#![allow(missing_docs, clippy::all, clippy::pedantic, dead_code)]
use bytes::{Bytes, BytesMut};
use fencepost::{LogIndex, Lsn};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;
pub struct EntryBuilder {
    index: LogIndex,
    facts: Vec<Bytes>,
    len: usize,
}
impl EntryBuilder {
    pub fn new(index: LogIndex) -> Self {
        EntryBuilder { index, facts: vec![], len: 0 }
    }
    pub fn push_with(&mut self, _hint: usize, f: impl FnOnce(&mut BytesMut)) {
        let mut b = BytesMut::new();
        f(&mut b);
        self.len += b.len() + 32;
        self.facts.push(b.freeze());
    }
    pub fn fact_count(&self) -> usize {
        self.facts.len()
    }
    pub fn len_bytes(&self) -> usize {
        self.len
    }
    pub fn finish(self, _based_on: LogIndex, _term: u64) -> Entry {
        Entry { index: self.index, facts: self.facts }
    }
}
pub struct Entry {
    index: LogIndex,
    facts: Vec<Bytes>,
}
#[derive(Debug, thiserror::Error)]
#[error("open")]
pub struct OpenError;
#[derive(Debug, thiserror::Error)]
#[error("read")]
pub struct ReadError;
#[derive(Debug, thiserror::Error)]
#[error("log")]
pub struct LogError;
#[derive(Debug, thiserror::Error)]
#[error("no space")]
pub struct NoSpace;
#[derive(Default)]
pub struct LogConfig {
    pub segment_bytes: u64,
    pub entry_bytes_max: usize,
    pub x: u8,
}
#[derive(Clone)]
pub struct Log {
    inner: Arc<Mutex<Vec<(Lsn, Bytes)>>>,
    durable: Arc<watch::Sender<LogIndex>>,
    id: uuid::Uuid,
}
pub struct LogStatus {
    pub segments: u64,
    pub bytes: u64,
    pub failure: Option<String>,
}
impl Log {
    pub fn open(
        _d: Arc<dyn crate::disk::Disk>,
        _p: &Path,
        _c: LogConfig,
        _k: crate::clock::Clock,
        id: uuid::Uuid,
    ) -> Result<Log, OpenError> {
        Ok(Log { inner: Default::default(), durable: Arc::new(watch::channel(LogIndex(0)).0), id })
    }
    pub fn log_id(&self) -> uuid::Uuid {
        self.id
    }
    pub fn last_index(&self) -> LogIndex {
        *self.durable.borrow()
    }
    pub fn durable(&self) -> watch::Receiver<LogIndex> {
        self.durable.subscribe()
    }
    pub fn first_lsn(&self) -> Lsn {
        Lsn::new(LogIndex(1), 0)
    }
    pub fn stalled_for(&self) -> Duration {
        Duration::ZERO
    }
    pub fn reserve(&self, _b: usize) -> Result<(), NoSpace> {
        Ok(())
    }
    pub fn append(&self, e: Entry, done: Box<dyn FnOnce(Result<LogIndex, LogError>) + Send>) {
        let mut i = self.inner.lock().unwrap();
        for (n, f) in e.facts.into_iter().enumerate() {
            i.push((Lsn::new(e.index, n as u16), f));
        }
        drop(i);
        self.durable.send_replace(e.index);
        done(Ok(e.index));
    }
    pub fn read(&self, lsn: Lsn) -> Result<Bytes, ReadError> {
        let i = self.inner.lock().unwrap();
        i.binary_search_by_key(&lsn, |x| x.0).map(|p| i[p].1.clone()).map_err(|_| ReadError)
    }
    pub fn scan(&self, from: Lsn) -> impl Iterator<Item = Result<(Lsn, Bytes), ReadError>> + use<> {
        let v: Vec<_> = self.inner.lock().unwrap().iter().filter(|x| x.0 >= from).cloned().map(Ok).collect();
        v.into_iter()
    }
    pub fn status(&self) -> LogStatus {
        LogStatus { segments: 0, bytes: 0, failure: None }
    }
    pub fn close(&self) {}
}
