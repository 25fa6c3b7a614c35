//! The program's output: passed on as it comes, and its last line remembered.
//!
//! What is known of the last line depends on the program alone. It does not wait for whoever reads the output of `run`,
//! nor for a process that the program left behind with the pipe open.

use std::io::{self, Write as _};

use tokio::io::AsyncReadExt as _;
use tokio::process::ChildStdout;
use tokio::sync::{mpsc, oneshot};

use super::super::error::CliError;

/// Most that is read at a time.
const PIECE_BYTES: usize = 16 << 10;
/// Pieces that wait to be printed. Few: a program that is ahead of its reader has to wait, as it would without `run`.
const PIECES_WAITING_MAX: usize = 2;
/// At least as much as a pipe can hold, unless root has made it larger.
const PIPE_BYTES_MAX: usize = 1 << 20;
/// No position is as long; of a longer line only this much is kept.
const LINE_BYTES_MAX: usize = 128 << 10;

/// The way from the program's output to that of `run`.
pub(super) struct Output {
    /// `None` before the program runs and after its output has ended.
    program: Option<ChildStdout>,
    /// Read and not yet on its way to the printer.
    piece: Vec<u8>,
    printer: mpsc::Sender<Vec<u8>>,
    /// Closed when all is printed.
    printed: oneshot::Receiver<()>,
    lines: Lines,
}

impl Output {
    /// Starts a thread that prints: a reader that does not read blocks it, and nothing else.
    pub(super) fn start() -> Result<Output, CliError> {
        let (printer, pieces) = mpsc::channel(PIECES_WAITING_MAX);
        let (done, printed) = oneshot::channel();
        let thread = std::thread::Builder::new().name("print".to_owned());
        thread.spawn(move || print(pieces, done)).map_err(|cause| CliError::io("starting a thread", cause))?;
        Ok(Output { program: None, piece: Vec::new(), printer, printed, lines: Lines::default() })
    }

    pub(super) fn follow(&mut self, program: Option<ChildStdout>) {
        self.program = program;
    }

    /// Reads or passes on one piece; waits for ever once the output has ended. Nothing is lost if it is dropped half-way.
    pub(super) async fn pass_on(&mut self) {
        if !self.piece.is_empty() {
            let place = self.printer.reserve().await;
            let piece = std::mem::take(&mut self.piece);
            if let Ok(place) = place {
                place.send(piece);
            }
            return;
        }
        let Some(program) = &mut self.program else { return std::future::pending().await };
        self.piece.reserve(PIECE_BYTES);
        match program.read_buf(&mut self.piece).await {
            Ok(read) if read > 0 => self.lines.add(&self.piece),
            _ => self.program = None,
        }
    }

    /// The last line that is not blank, without the white space around it. To be asked once the program is gone: all that
    /// it wrote is in the pipe then, so that there is nothing to wait for.
    pub(super) fn last_line(&mut self) -> Option<Vec<u8>> {
        let (mut buffer, mut left) = (vec![0; PIECE_BYTES], PIPE_BYTES_MAX);
        while let (Some(program), 1..) = (&self.program, left) {
            match rustix::io::read(program, &mut buffer) {
                Err(rustix::io::Errno::INTR) => {}
                // The pipe is empty, which does not block, or it has ended.
                Ok(0) | Err(_) => break,
                Ok(read) => {
                    self.lines.add(&buffer[..read]);
                    self.piece.extend_from_slice(&buffer[..read]);
                    left = left.saturating_sub(read);
                }
            }
        }
        self.program = None;
        self.lines.last()
    }

    /// Waits until all that was read is printed.
    pub(super) async fn finish(self) {
        let Output { piece, printer, printed, .. } = self;
        let _ = printer.send(piece).await;
        drop(printer);
        let _ = printed.await;
    }
}

/// Prints what comes; drops `done` with the last of it.
fn print(mut pieces: mpsc::Receiver<Vec<u8>>, done: oneshot::Sender<()>) {
    while let Some(piece) = pieces.blocking_recv() {
        let mut own = io::stdout().lock();
        // Who does not want our output does not stop the program.
        let _ = own.write_all(&piece).and_then(|()| own.flush());
    }
    drop(done);
}

/// Finds the last line that is not blank in output that comes in pieces.
#[derive(Default)]
struct Lines {
    last: Option<Vec<u8>>,
    /// What came since the last end of a line.
    begun: Vec<u8>,
}

impl Lines {
    fn add(&mut self, piece: &[u8]) {
        for part in piece.split_inclusive(|byte| *byte == b'\n') {
            let room = LINE_BYTES_MAX.saturating_sub(self.begun.len());
            self.begun.extend_from_slice(&part[..part.len().min(room)]);
            if part.ends_with(b"\n") {
                self.end_line();
            }
        }
    }

    fn end_line(&mut self) {
        let text = self.begun.trim_ascii();
        if !text.is_empty() {
            self.last = Some(text.to_vec());
        }
        self.begun.clear();
    }

    fn last(&mut self) -> Option<Vec<u8>> {
        self.end_line();
        self.last.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last_of(pieces: &[&[u8]]) -> Option<String> {
        let mut lines = Lines::default();
        for piece in pieces {
            lines.add(piece);
        }
        lines.last().map(|line| String::from_utf8(line).unwrap())
    }

    #[test]
    fn a_line_may_come_in_pieces() {
        assert_eq!(last_of(&[b"1\n pa", b"ge", b" 7 \n", b"\n  \n"]).as_deref(), Some("page 7"));
        assert_eq!(last_of(&[b"1\n2\n", b"3"]).as_deref(), Some("3"), "the last line needs no end");
        assert_eq!(last_of(&[b"\n", b" \n"]), None);
    }

    #[test]
    fn an_endless_line_takes_no_endless_memory() {
        let mut lines = Lines::default();
        (0..100).for_each(|_| lines.add(&[b'x'; PIECE_BYTES]));
        assert_eq!(lines.last().unwrap().len(), LINE_BYTES_MAX);
    }
}
