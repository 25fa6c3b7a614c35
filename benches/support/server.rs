//! A real server on loopback, with a data directory of its own.

use fencepost_server::clock::Clock;
use fencepost_server::config::Config;
use fencepost_server::connections;
use fencepost_server::server::Server;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

pub(crate) struct TestServer {
    endpoint: String,
    _stop: oneshot::Sender<()>,
    _dir: TempDir,
}

impl TestServer {
    pub(crate) async fn start() -> TestServer {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let config = Config { data_dir: dir.path().to_owned(), ..Config::default() };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        let server = Server::open(config, Clock::real()).expect("a new store");
        let (stop, stopped) = oneshot::channel::<()>();
        tokio::spawn(server.serve(connections::accept(listener, 1000), async { drop(stopped.await) }));
        TestServer { endpoint, _stop: stop, _dir: dir }
    }

    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }
}
