//! Accepting connections: as many as configured, and only those that say something.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::{Connected, TcpConnectInfo};

/// What every client of HTTP/2 says first. The transport waits for it without end, so it is waited for here.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A connection that has not said it by then is closed. The keepalive of HTTP/2 watches it from there on.
const PREFACE_TIME: Duration = Duration::from_secs(10);

/// Between two looks at a preface that has come in part. Clients send it whole, so that hardly anybody waits.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// How long accepting rests when the system has no more sockets to give.
const NO_SOCKETS: Duration = Duration::from_secs(1);

/// The connections of a listener, ready to be served. Accepting ends when the stream is dropped.
pub fn accept(listener: TcpListener, connections_max: usize) -> impl Stream<Item = io::Result<Connection>> + use<> {
    let (ready, connections) = mpsc::channel(16);
    let free = Arc::new(Semaphore::new(connections_max));
    tokio::spawn(async move {
        while let Ok(permit) = Arc::clone(&free).acquire_owned().await {
            let accepted = tokio::select! {
                biased;
                () = ready.closed() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((socket, _)) => drop(tokio::spawn(await_preface(socket, permit, ready.clone()))),
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted: allow more open files (ulimit -n), or lower connections_max");
                    tokio::time::sleep(NO_SOCKETS).await;
                }
            }
        }
    });
    ReceiverStream::new(connections)
}

async fn await_preface(socket: TcpStream, permit: OwnedSemaphorePermit, ready: mpsc::Sender<io::Result<Connection>>) {
    // Small answers must not wait for each other; if the system cannot do it they are merely slower.
    let _ = socket.set_nodelay(true);
    let spoke = tokio::time::timeout(PREFACE_TIME, speaks(&socket)).await;
    if spoke.unwrap_or(false) {
        // If the server is stopping nobody takes the connection, and it is closed.
        let _ = ready.send(Ok(Connection { socket, _permit: permit })).await;
    }
}

/// Done when the transport need not wait to know what this is: a preface, something else, or a socket that was closed.
async fn speaks(socket: &TcpStream) -> bool {
    let mut seen = [0; PREFACE.len()];
    loop {
        match socket.peek(&mut seen).await {
            Ok(0) | Err(_) => return false,
            // What is no preface the transport refuses at once.
            Ok(bytes) if bytes == PREFACE.len() || seen[..bytes] != PREFACE[..bytes] => return true,
            Ok(_) => tokio::time::sleep(LOOK_AGAIN).await,
        }
    }
}

/// A socket that counts against the limit until it is closed.
#[derive(Debug)]
pub struct Connection {
    socket: TcpStream,
    _permit: OwnedSemaphorePermit,
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.socket.connect_info()
    }
}

mod io_by_delegation {
    use std::io::{self, IoSlice};
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

    use super::Connection;

    impl AsyncRead for Connection {
        fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.socket).poll_read(cx, buf)
        }
    }

    impl AsyncWrite for Connection {
        fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.socket).poll_write(cx, buf)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.socket).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.socket).poll_shutdown(cx)
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bufs: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.socket).poll_write_vectored(cx, bufs)
        }

        fn is_write_vectored(&self) -> bool {
            self.socket.is_write_vectored()
        }
    }
}
