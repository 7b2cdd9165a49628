//! Two servers around one service.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::thread::{self, JoinHandle};

use http::{Request, Response};
use mmap_io_http::ResponseBody;
use smol::channel::{self, Receiver, Sender};
use tower::util::BoxCloneSyncService;

/// A service whose requests have no body that counts.
pub(crate) type Service = BoxCloneSyncService<Request<()>, Response<ResponseBody>, Infallible>;

/// Boxes a service of this package.
pub(crate) fn boxed<S>(service: S) -> Service
where
    S: tower::Service<Request<()>, Response = Response<ResponseBody>, Error = Infallible>,
    S: Clone + Send + Sync + 'static,
    S::Future: Send,
{
    BoxCloneSyncService::new(service)
}

/// A server on a port of its own, which ends when this is dropped.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(serve: impl FnOnce(std::net::TcpListener, Receiver<()>) + Send + 'static) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        // Connections inherit it. The system would take megabytes for clients that do not read.
        rustix::net::sockopt::set_socket_send_buffer_size(&listener, 64 << 10).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = channel::bounded(1);
        Self {
            address,
            stop: Some(stop),
            thread: Some(thread::spawn(move || serve(listener, stopped))),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop = None;
        let _ = self.thread.take().unwrap().join();
    }
}

pub(crate) fn axum_tokio(service: Service) -> Server {
    Server::start(move |listener, stopped| {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let service = tower::util::MapRequest::new(service, without_body::<axum::body::Body>);
            let app = axum::Router::new().fallback_service(service);
            tokio::select! {
                served = axum::serve(listener, app) => served.unwrap(),
                _ = stopped.recv() => {}
            }
        });
        runtime.shutdown_background();
    })
}

pub(crate) fn hyper_smol(service: Service) -> Server {
    Server::start(move |listener, stopped| {
        let executor = smol::Executor::new();
        smol::block_on(executor.run(async {
            let listener = smol::net::TcpListener::from(smol::Async::new(listener).unwrap());
            let accept = async {
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    let service = service.clone();
                    let serve = hyper::service::service_fn(move |request| {
                        tower::ServiceExt::oneshot(service.clone(), without_body(request))
                    });
                    let stream = smol_hyper::rt::FuturesIo::new(stream);
                    // Else hyper would copy the bodies, also those of a file that is being cut.
                    let connection = hyper::server::conn::http1::Builder::new()
                        .writev(true)
                        .serve_connection(stream, serve);
                    // An error of a connection is the client's to see.
                    executor.spawn(async { drop(connection.await) }).detach();
                }
            };
            smol::future::or(accept, async {
                let _ = stopped.recv().await;
            })
            .await;
        }));
    })
}

fn without_body<B>(request: Request<B>) -> Request<()> {
    request.map(|_| ())
}
