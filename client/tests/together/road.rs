//! A store of its own for each test, and the road to it: every call goes through here and can be lost before it arrives, or
//! after it was answered.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use fencepost_client::{Branch, Client, ClientBuilder, Pipeline, Resume, Takeover, Transport, Worker};
use fencepost_server::embedded::Embedded;
use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::io::DuplexStream;
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::service::Routes;
use tonic::transport::{Channel, Endpoint, Server};
use tower::{Layer, Service, ServiceExt as _};

pub(crate) const PIPELINE: &str = "test/flights";
/// Nothing here takes this long unless it hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// What is lost of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    Request,
    Answer,
}

/// A store of its own.
pub(crate) struct Store {
    pub(crate) embedded: Embedded,
    pub(crate) dir: TempDir,
}

impl Store {
    pub(crate) async fn open() -> Store {
        Store::open_in(tempfile::tempdir().unwrap()).await
    }

    async fn open_in(dir: TempDir) -> Store {
        let embedded = Embedded::open(dir.path()).await.unwrap();
        // Until the index is there some questions are refused and asked again, and calls are counted here.
        let client = embedded.client();
        while client.status().await.unwrap().store.unwrap().index_state != "READY" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Store { embedded, dir }
    }

    /// The same store after a restart.
    pub(crate) async fn restart(self) -> Store {
        let Store { embedded, dir } = self;
        embedded.close().await.unwrap();
        Store::open_in(dir).await
    }

    pub(crate) fn pipeline(&self) -> Pipeline {
        self.embedded.client().pipeline(PIPELINE)
    }

    pub(crate) fn branch(&self, branch: &str) -> Branch {
        self.pipeline().branch(branch)
    }

    pub(crate) async fn worker(&self, branch: &str) -> Worker {
        self.branch(branch).resume(fresh()).await.unwrap()
    }

    pub(crate) fn road(&self) -> Arc<Road> {
        self.road_with(&Fuse::new(usize::MAX))
    }

    pub(crate) fn road_with(&self, fuse: &Arc<Fuse>) -> Arc<Road> {
        let road = Road {
            end: Mutex::new(self.embedded.channel()),
            losses: Mutex::default(),
            calls: Mutex::default(),
            fuse: fuse.clone(),
        };
        Arc::new(road)
    }
}

/// A restarted worker of the same name, which does not wait for its ghost.
pub(crate) fn fresh() -> Resume {
    Resume::new("loader").start_fresh().takeover(Takeover::SameHolder)
}

/// The road to a store.
pub(crate) struct Road {
    /// The store at its end, which is another one after a restart.
    end: Mutex<Channel>,
    /// What happens to the next calls of these methods.
    losses: Mutex<VecDeque<(&'static str, Lost)>>,
    /// The methods of the calls that were made.
    calls: Mutex<Vec<String>>,
    /// A step before each call arrives, and one after it was answered.
    fuse: Arc<Fuse>,
}

impl Road {
    /// From now on the road leads to this store.
    pub(crate) fn lead_to(&self, store: &Store) {
        *self.end.lock().unwrap() = store.embedded.channel();
    }

    /// A client whose every call takes this road, each in a request of its own.
    pub(crate) fn client(self: &Arc<Road>) -> Client {
        self.client_with(Client::builder())
    }

    pub(crate) fn client_with(self: &Arc<Road>, builder: ClientBuilder) -> Client {
        let (connections, incoming) = mpsc::unbounded_channel::<std::io::Result<DuplexStream>>();
        let server = Server::builder().layer(Toll { road: self.clone() }).add_routes(Routes::default());
        tokio::spawn(server.serve_with_incoming(UnboundedReceiverStream::new(incoming)));
        let connector = tower::service_fn(move |_| {
            let (here, there) = tokio::io::duplex(1 << 20);
            let sent = connections.send(Ok(there)).map_err(std::io::Error::other);
            std::future::ready(sent.map(|()| TokioIo::new(here)))
        });
        let channel = Endpoint::from_static("http://road").connect_with_connector_lazy(connector);
        builder.transport(Transport::Unary).over(channel)
    }

    pub(crate) async fn worker(self: &Arc<Road>, branch: &str) -> Worker {
        self.client().pipeline(PIPELINE).branch(branch).resume(fresh()).await.unwrap()
    }

    /// Loses that of the next call of this method which is not lost already.
    pub(crate) fn lose(&self, method: &'static str, lost: Lost) {
        self.losses.lock().unwrap().push_back((method, lost));
    }

    /// Loses nothing more.
    pub(crate) fn mend(&self) {
        self.losses.lock().unwrap().clear();
    }

    /// How many calls of this method were made.
    pub(crate) fn count(&self, method: &str) -> usize {
        self.calls.lock().unwrap().iter().filter(|made| *made == method).count()
    }

    async fn carry(&self, request: Request<Body>) -> Response<Body> {
        let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        self.calls.lock().unwrap().push(method.clone());
        let lost = {
            let mut losses = self.losses.lock().unwrap();
            let place = losses.iter().position(|(of, _)| *of == method);
            place.and_then(|place| losses.remove(place)).map(|(_, lost)| lost)
        };
        // Leases are renewed whenever it pleases them.
        let is_step = method != "KeepAlive";
        if is_step {
            self.fuse.step().await;
        }
        let broken = || Status::unavailable("the connection broke").into_http();
        if lost == Some(Lost::Request) {
            return broken();
        }
        let mut channel = self.end.lock().unwrap().clone();
        let answer = async { channel.ready().await?.call(request).await }.await;
        if is_step {
            self.fuse.step().await;
        }
        match answer {
            Ok(answer) if lost.is_none() => answer,
            _ => broken(),
        }
    }
}

/// Where something stops for good, or until it is let go on: after so many steps.
pub(crate) struct Fuse {
    left: AtomicUsize,
    blown: Notify,
    mended: Notify,
}

impl Fuse {
    pub(crate) fn new(steps: usize) -> Arc<Fuse> {
        Arc::new(Fuse { left: AtomicUsize::new(steps), blown: Notify::new(), mended: Notify::new() })
    }

    /// One step. The one that blows the fuse does not come back before it is mended; those after it are not counted.
    pub(crate) async fn step(&self) {
        let before = self.left.fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| left.checked_sub(1));
        if before == Ok(1) {
            self.blown.notify_one();
            self.mended.notified().await;
        }
    }

    /// Resolves when the fuse has blown.
    pub(crate) async fn blown(&self) {
        self.blown.notified().await;
    }

    /// Lets what has stopped go on.
    pub(crate) fn mend(&self) {
        self.mended.notify_one();
    }
}

#[derive(Clone)]
struct Toll {
    road: Arc<Road>,
}

impl<S> Layer<S> for Toll {
    type Service = Toll;

    fn layer(&self, _nobody: S) -> Toll {
        self.clone()
    }
}

impl Service<Request<Body>> for Toll {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let road = self.road.clone();
        Box::pin(async move { Ok(road.carry(request).await) })
    }
}
