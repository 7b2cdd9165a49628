//! Serves a directory, and logs each request:
//!
//! ```sh
//! cargo run --release --example serve -- DIR [ADDRESS]
//! ```
//!
//! Links below the directory are followed as far as they stay below it. `page.html.gz` and
//! `page.html.br` are served for `page.html` to clients that accept them.

use std::convert::Infallible;
use std::error::Error;
use std::time::Instant;

use axum::body::Body;
use http::header::{CONTENT_LENGTH, RANGE};
use http::{HeaderMap, HeaderName, Request};
use mmap_io_http::MappedDir;
use tokio::net::TcpListener;
use tower::{Service, ServiceExt};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments.next().ok_or("usage: serve DIR [ADDRESS]")?;
    let address = arguments.next().unwrap_or("127.0.0.1:8080".to_string());
    if !std::fs::metadata(&directory)?.is_dir() {
        return Err(format!("{directory} is no directory").into());
    }
    let files = MappedDir::new(&directory)
        .follow_symlinks(true)
        .precompressed_br()
        .precompressed_gzip();
    let app = axum::Router::new().fallback_service(tower::service_fn(move |request| {
        logged(files.clone(), request)
    }));
    let listener = TcpListener::bind(&address)
        .await
        .map_err(|error| format!("{address}: {error}"))?;
    println!("{directory} is at http://{}/", listener.local_addr()?);
    Ok(axum::serve(listener, app).await?)
}

/// Serves a request, and prints what was asked for and what the answer is.
async fn logged(
    mut files: MappedDir,
    request: Request<Body>,
) -> Result<http::Response<mmap_io_http::ResponseBody>, Infallible> {
    let begin = Instant::now();
    let asked = format!("{} {}", request.method(), request.uri());
    let range = text(request.headers(), RANGE).to_string();
    let response = ServiceExt::<Request<Body>>::ready(&mut files)
        .await?
        .call(request)
        .await?;
    println!(
        "{asked} {range} -> {} {} bytes, {} us",
        response.status().as_u16(),
        text(response.headers(), CONTENT_LENGTH),
        begin.elapsed().as_micros(),
    );
    Ok(response)
}

fn text(headers: &HeaderMap, name: HeaderName) -> &str {
    let value = headers.get(name).and_then(|value| value.to_str().ok());
    value.unwrap_or("-")
}
