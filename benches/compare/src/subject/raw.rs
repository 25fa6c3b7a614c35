//! The loop that the others are measured by: a queue, one writer thread, one write and one fdatasync for all that is
//! queued, over and over on one file of zeros that were written before. No framing, CRCs, index or rotation.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, mpsc};
use std::thread::{self, JoinHandle};

use super::{Subject, payload};

const FILE_BYTES: u64 = 64 << 20;

pub(super) struct Raw {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    work: Condvar,
}

#[derive(Default)]
struct Queue {
    waiting: Vec<(Vec<u8>, mpsc::Sender<()>)>,
    is_closed: bool,
}

impl Raw {
    pub(super) fn open(dir: &Path) -> Raw {
        let file = zeros(&dir.join("raw"));
        let shared = Arc::new(Shared::default());
        let writer = thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.write(&file)
        });
        Raw { shared, writer: Some(writer) }
    }
}

impl Subject for Raw {
    fn caller(&self, number: usize, bytes: usize) -> Box<dyn FnMut() + '_> {
        let payload = payload(number, bytes);
        let (done, durable) = mpsc::channel();
        Box::new(move || {
            let mut queue = self.shared.queue();
            queue.waiting.push((payload.clone(), done.clone()));
            let was_empty = queue.waiting.len() == 1;
            drop(queue);
            if was_empty {
                self.shared.work.notify_one();
            }
            durable.recv().expect("the writer answers for every payload");
        })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        self.shared.queue().is_closed = true;
        self.shared.work.notify_one();
        if let Some(writer) = self.writer.take() {
            writer.join().expect("the disk works");
        }
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("nobody panics with the queue")
    }

    fn write(&self, file: &File) {
        let (mut offset, mut taken, mut gathered) = (0, Vec::new(), Vec::new());
        loop {
            let mut queue = self.queue();
            while queue.waiting.is_empty() {
                if queue.is_closed {
                    return;
                }
                queue = self.work.wait(queue).expect("nobody panics with the queue");
            }
            std::mem::swap(&mut queue.waiting, &mut taken);
            drop(queue);
            gathered.clear();
            for (payload, _) in &taken {
                gathered.extend_from_slice(payload);
            }
            let bytes = gathered.len() as u64;
            if offset + bytes > FILE_BYTES {
                offset = 0;
            }
            file.write_all_at(&gathered, offset).expect("the disk works");
            file.sync_data().expect("the disk works");
            offset += bytes;
            for (_, done) in taken.drain(..) {
                // A caller that is gone no longer needs its answer.
                let _ = done.send(());
            }
        }
    }
}

fn zeros(path: &Path) -> File {
    let file = File::create_new(path).expect("a file can be made");
    let chunk = vec![0; 1 << 20];
    for offset in (0..FILE_BYTES).step_by(chunk.len()) {
        file.write_all_at(&chunk, offset).expect("the disk has space");
    }
    file.sync_all().expect("the disk works");
    file
}
