//! A node from its settings to its end: open, listen, answer, drain, close.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use elanus_proto::milvus::milvus_service_server::MilvusServiceServer;
use futures::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tonic::codec::CompressionEncoding;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::bodies;
use crate::config::{Auth, Config, Durability};
use crate::grpc::Service;
use crate::http;
use crate::node::Node;
use crate::telemetry::ConnectionGuard;

/// How long requests under way may take to end once the node is told to stop. With the time to
/// close the engine this stays below two seconds.
const DRAIN: Duration = Duration::from_millis(1_200);

/// How often an idle connection is asked whether its other end still lives.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// The file that tells where a running node listens.
const ENDPOINT_FILE: &str = "endpoint.json";

/// Runs a node until SIGTERM or SIGINT, on threads of its own.
///
/// # Errors
/// When the data directory cannot be opened or an address cannot be listened on.
pub fn run(config: Config) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("elanus-io")
        .build()
        .context("cannot start the threads of the node")?;
    let outcome = runtime.block_on(async {
        let mut stop = std::pin::pin!(stop_signal()?);
        let running = tokio::select! {
            started = Running::start(config) => started?,
            // Nothing was promised to anybody yet.
            () = &mut stop => return Ok(()),
        };
        stop.await;
        running.stop().await;
        Ok(())
    });
    // Nothing acknowledged depends on what may still be running; do not wait for it.
    runtime.shutdown_background();
    outcome
}

/// A node that listens.
pub struct Running {
    node: Arc<Node>,
    grpc: SocketAddr,
    ops: SocketAddr,
    endpoint: PathBuf,
    stop: watch::Sender<bool>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Running {
    /// Opens the data directory, listens on both ports, and tells where in `endpoint.json`.
    ///
    /// # Errors
    /// When the data directory cannot be opened or an address cannot be listened on.
    pub async fn start(config: Config) -> anyhow::Result<Self> {
        let began = Instant::now();
        let auth = config.auth;
        let endpoint = config.data_dir.join(ENDPOINT_FILE);
        // Both ports first: an address in use must not cost a recovery.
        let grpc_listener = listen(config.listen).await?;
        let ops_listener = listen(config.ops_listen).await?;
        let (grpc, ops) = (grpc_listener.local_addr()?, ops_listener.local_addr()?);
        let node = Node::open(config).await?;
        let (stop, stopped) = watch::channel(false);
        let tasks = vec![
            tokio::spawn(serve_grpc(node.clone(), grpc_listener, stopped.clone())),
            tokio::spawn(serve_ops(node.clone(), ops_listener, stopped)),
        ];
        // Clients that were told the ports need no file, and on a full disk there is none.
        if let Err(error) = write_endpoint(&endpoint, grpc, ops) {
            tracing::warn!("nobody can read where this node listens: {error:#}");
        }
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            %grpc,
            %ops,
            data_dir = %node.config.data_dir.display(),
            memory_limit_bytes = node.engine.memory().limit,
            ms = began.elapsed().as_millis(),
            "ready"
        );
        if node.config.durability == Durability::Async {
            tracing::warn!(
                "durability is \"async\": the newest acknowledged writes may be lost with power"
            );
        }
        if auth == Auth::Off {
            tracing::warn!(
                "authorization is off: whoever reaches {grpc} may read and change everything"
            );
        }
        Ok(Self { node, grpc, ops, endpoint, stop, tasks })
    }

    /// Where clients connect.
    pub fn grpc(&self) -> SocketAddr {
        self.grpc
    }

    /// Where health and metrics are.
    pub fn ops(&self) -> SocketAddr {
        self.ops
    }

    /// The node behind the ports.
    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// Takes no more requests, lets those under way end, and closes the engine.
    pub async fn stop(self) {
        let began = Instant::now();
        tracing::info!("stopping");
        // Nobody is listening any more if both tasks ended by themselves.
        let _ = self.stop.send(true);
        for task in self.tasks {
            let abort = task.abort_handle();
            let left = DRAIN.saturating_sub(began.elapsed());
            if tokio::time::timeout(left, task).await.is_err() {
                abort.abort();
            }
        }
        self.node.engine.shutdown().await;
        if let Err(error) = std::fs::remove_file(&self.endpoint) {
            tracing::debug!(%error, "endpoint.json was not there to be removed");
        }
        tracing::info!(ms = began.elapsed().as_millis(), "stopped");
    }
}

async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}: is another node running there?"))
}

/// Written whole under another name first: a reader never sees half of it.
fn write_endpoint(path: &Path, grpc: SocketAddr, ops: SocketAddr) -> anyhow::Result<()> {
    let text = serde_json::json!({
        "grpc": grpc.to_string(),
        "ops": ops.to_string(),
        "pid": std::process::id(),
    });
    let draft = path.with_extension("json.tmp");
    std::fs::write(&draft, format!("{text}\n"))
        .and_then(|()| std::fs::rename(&draft, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

async fn serve_grpc(node: Arc<Node>, listener: TcpListener, stopped: watch::Receiver<bool>) {
    let settings = &node.config.grpc;
    let service = MilvusServiceServer::new(Service::new(node.clone()))
        .max_decoding_message_size(settings.max_receive_bytes)
        .max_encoding_message_size(settings.max_send_bytes)
        .accept_compressed(CompressionEncoding::Gzip);
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<MilvusServiceServer<Service>>().await;
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(elanus_proto::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let sound = "the descriptors were compiled into the binary";
    let stopping = {
        let stopped = stopped.clone();
        async move {
            wait(stopped).await;
            health.set_not_serving::<MilvusServiceServer<Service>>().await;
        }
    };
    let counted = Routes::new(service)
        .into_axum_router()
        .merge(http::models::router(node.clone()))
        .layer(axum::middleware::from_fn_with_state(node.clone(), bodies::count));
    let routes = Routes::from(counted)
        .add_service(health_service)
        .add_service(reflection().build_v1().expect(sound))
        // Older tools ask for this one only.
        .add_service(reflection().build_v1alpha().expect(sound));
    let outcome = Server::builder()
        // The models are served over HTTP/1 as well.
        .accept_http1(true)
        .tcp_nodelay(true)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_adaptive_window(Some(true))
        // A client that gives up on many calls at once is not an attack.
        .http2_max_pending_accept_reset_streams(Some(1_000))
        .add_routes(routes)
        .serve_with_incoming_shutdown(connections(node.clone(), listener), stopping)
        .await;
    if let Err(error) = outcome {
        tracing::error!(%error, "the gRPC port failed");
    }
}

async fn serve_ops(node: Arc<Node>, listener: TcpListener, stopped: watch::Receiver<bool>) {
    let outcome =
        axum::serve(listener, http::router(node)).with_graceful_shutdown(wait(stopped)).await;
    if let Err(error) = outcome {
        tracing::error!(%error, "the ops port failed");
    }
}

async fn wait(mut stopped: watch::Receiver<bool>) {
    // An error means that the sender is gone: the node is being torn down.
    let _ = stopped.wait_for(|stop| *stop).await;
}

/// Ends when the process is told to stop.
fn stop_signal() -> anyhow::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("got SIGTERM"),
            _ = interrupt.recv() => tracing::info!("got SIGINT"),
        }
    })
}

/// The connections of a listener, at most as many as the settings allow; those above are closed
/// at once.
fn connections(
    node: Arc<Node>,
    listener: TcpListener,
) -> impl Stream<Item = io::Result<Connection>> {
    let slots =
        Arc::new(Semaphore::new(node.config.grpc.max_connections.min(Semaphore::MAX_PERMITS)));
    futures::stream::unfold((node, listener, slots), |(node, listener, slots)| async move {
        let connection = loop {
            match listener.accept().await {
                Ok((stream, peer)) => {
                    let Ok(slot) = slots.clone().try_acquire_owned() else {
                        node.metrics.connection_refused();
                        tracing::warn!(%peer, "refused a connection: grpc.max_connections are open");
                        continue;
                    };
                    // Without it an answer may wait 40 ms for the other side's acknowledgement;
                    // a socket that refuses the option still works.
                    let _ = stream.set_nodelay(true);
                    break Connection { stream, _slot: slot, _counted: node.metrics.connection() };
                }
                Err(error) => {
                    // Out of file descriptors, or a client that left: neither ends the node.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        };
        Some((Ok(connection), (node, listener, slots)))
    })
}

/// A client's connection; holds its slot until it closes.
struct Connection {
    stream: TcpStream,
    _slot: OwnedSemaphorePermit,
    _counted: ConnectionGuard,
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
