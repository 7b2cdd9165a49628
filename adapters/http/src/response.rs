//! From a file to a response: conditions, ranges, headers.

use std::ffi::OsString;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use http::header::{
    HeaderName, HeaderValue, ACCEPT_RANGES, ALLOW, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE,
    CONTENT_TYPE, ETAG, IF_RANGE, LAST_MODIFIED, RETRY_AFTER, VARY,
};
use http::request::Parts;
use http::{Method, Response, StatusCode};

use crate::body::ResponseBody;
use crate::cache::Mapped;
use crate::conditional::{requested, Condition};
use crate::encoding::{Encoding, Precompressed};
use crate::files::{Files, Opened};
use crate::multipart::Multipart;
use crate::range::Requested;
use crate::validators::Validators;

/// Bytes of one frame, unless the caller chooses another number.
const CHUNK: usize = 256 << 10;

/// What serves files at paths.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    pub(crate) files: Arc<Files>,
    pub(crate) precompressed: Precompressed,
    pub(crate) chunk: usize,
}

/// A file, as the client is to see it.
struct Representation {
    mapped: Mapped,
    content_type: HeaderValue,
    encoding: Option<Encoding>,
    /// Whether another request could get another encoding.
    varies: bool,
}

/// What of the file is sent.
enum Content {
    Whole,
    Range(Range<u64>),
    Parts(Multipart),
}

impl Server {
    pub(crate) fn new(files: Files) -> Self {
        Self {
            files: Arc::new(files),
            precompressed: Precompressed::default(),
            chunk: CHUNK,
        }
    }

    pub(crate) fn with(self, encoding: Encoding) -> Self {
        Self {
            precompressed: self.precompressed.with(encoding),
            ..self
        }
    }

    /// Sets the length of a frame in bytes.
    ///
    /// # Panics
    ///
    /// If it is 0.
    pub(crate) fn with_chunk(self, chunk: usize) -> Self {
        assert!(chunk > 0, "a body of frames of 0 bytes would not end");
        Self { chunk, ..self }
    }

    /// The answer to a request for which there is no file.
    pub(crate) fn not_found(&self) -> Response<ResponseBody> {
        let mut response = status(StatusCode::NOT_FOUND);
        if !self.precompressed.is_none() {
            // For a client that accepts another encoding there may be one.
            insert(&mut response, VARY, "accept-encoding");
        }
        response
    }

    /// The answer to a request whose file cannot be opened or read.
    pub(crate) fn failed(&self, error: &io::Error) -> Response<ResponseBody> {
        match error.kind() {
            io::ErrorKind::NotFound => self.not_found(),
            // For a moment: another program has a lease on the file, or a body shows pages of a
            // file that an overlay has copied since.
            io::ErrorKind::WouldBlock => {
                let mut response = status(StatusCode::SERVICE_UNAVAILABLE);
                insert(&mut response, RETRY_AFTER, "1");
                response
            }
            _ => status(StatusCode::INTERNAL_SERVER_ERROR),
        }
    }

    /// Answers a GET or HEAD request for the file at `path`; `None` if a directory is there.
    ///
    /// # Errors
    ///
    /// `NotFound`: there is no file that may be served. Otherwise the file cannot be read.
    pub(crate) async fn serve(
        &self,
        request: &Parts,
        path: &Path,
        content_type: HeaderValue,
    ) -> io::Result<Option<Response<ResponseBody>>> {
        let plain = match self.files.open(path).await {
            Ok(Opened::Directory) => return Ok(None),
            Ok(Opened::File(mapped)) => Some(mapped),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let mut chosen = plain.map(|mapped| (mapped, None));
        for encoding in self.precompressed.accepted(&request.headers) {
            let mut name = OsString::from(path);
            name.push(encoding.suffix());
            match self.files.open(Path::new(&name)).await {
                Ok(Opened::File(mapped)) => {
                    chosen = Some((mapped, Some(encoding)));
                    break;
                }
                Ok(Opened::Directory) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        let (mapped, encoding) = chosen.ok_or(io::ErrorKind::NotFound)?;
        let representation = Representation {
            mapped,
            content_type,
            encoding,
            varies: !self.precompressed.is_none(),
        };
        self.answer(request, &representation).await.map(Some)
    }

    async fn answer(
        &self,
        request: &Parts,
        representation: &Representation,
    ) -> io::Result<Response<ResponseBody>> {
        let Mapped { file, identity, .. } = &representation.mapped;
        let len = identity.len;
        // Before the content is read: a change after this is one that the tag does not name.
        let validators = Validators::new(identity, file.is_mapped_for_writing(), SystemTime::now());
        match Condition::of(&request.headers, &validators) {
            Condition::Holds => {}
            Condition::Failed => return Ok(status(StatusCode::PRECONDITION_FAILED)),
            Condition::NotModified => {
                let mut response = status(StatusCode::NOT_MODIFIED);
                add_validators(&mut response, &validators, representation);
                return Ok(response);
            }
        }
        // Section 14.2: no other method has ranges.
        let requested = match request.method {
            Method::GET => requested(&request.headers, &validators, len),
            _ => Requested::Whole,
        };
        let content = match requested {
            Requested::Whole => Content::Whole,
            Requested::One(range) => Content::Range(range),
            // The header of the response would say that the parts are compressed together.
            Requested::Many(_) if representation.encoding.is_some() => Content::Whole,
            Requested::Many(ranges) => {
                let parts = Multipart::new(&ranges, len, &representation.content_type);
                parts.map_or(Content::Whole, Content::Parts)
            }
            Requested::Unsatisfiable => {
                let mut response = status(StatusCode::RANGE_NOT_SATISFIABLE);
                insert(&mut response, ACCEPT_RANGES, "bytes");
                insert(&mut response, CONTENT_RANGE, format!("bytes */{len}"));
                return Ok(response);
            }
        };

        let is_whole = matches!(content, Content::Whole);
        let mut response = status(match is_whole {
            true => StatusCode::OK,
            false => StatusCode::PARTIAL_CONTENT,
        });
        insert(&mut response, ACCEPT_RANGES, "bytes");
        add_validators(&mut response, &validators, representation);
        if is_whole || !request.headers.contains_key(IF_RANGE) {
            let content_type = representation.content_type.clone();
            response.headers_mut().insert(CONTENT_TYPE, content_type);
            if let Some(encoding) = representation.encoding {
                insert(&mut response, CONTENT_ENCODING, encoding.name());
            }
        } else {
            // Section 15.3.7: the client has the other fields from the response that it resumes.
            response.headers_mut().remove(LAST_MODIFIED);
        }
        let (content_len, body) = match content {
            Content::Whole if request.method == Method::HEAD => (len, ResponseBody::empty()),
            Content::Whole => (len, ResponseBody::range(file, 0..len, self.chunk).await?),
            Content::Range(range) => {
                let (first, last) = (range.start, range.end - 1);
                let content_range = format!("bytes {first}-{last}/{len}");
                insert(&mut response, CONTENT_RANGE, content_range);
                let content_len = range.end - range.start;
                let body = ResponseBody::range(file, range, self.chunk).await?;
                (content_len, body)
            }
            Content::Parts(multipart) => {
                let content_type = multipart.content_type;
                response.headers_mut().insert(CONTENT_TYPE, content_type);
                let body = ResponseBody::pieces(file, multipart.pieces, self.chunk);
                (multipart.len, body)
            }
        };
        let content_len = content_len.into();
        response.headers_mut().insert(CONTENT_LENGTH, content_len);
        *response.body_mut() = body;
        Ok(response)
    }
}

/// Adds what a 304 must have as well (section 15.4.5).
fn add_validators(
    response: &mut Response<ResponseBody>,
    validators: &Validators,
    representation: &Representation,
) {
    response.headers_mut().insert(ETAG, validators.tag.header());
    if let Some(date) = validators.last_modified {
        insert(response, LAST_MODIFIED, httpdate::fmt_http_date(date));
    }
    if representation.varies {
        insert(response, VARY, "accept-encoding");
    }
}

fn insert<V>(response: &mut Response<ResponseBody>, name: HeaderName, value: V)
where
    HeaderValue: TryFrom<V>,
{
    if let Ok(value) = HeaderValue::try_from(value) {
        response.headers_mut().insert(name, value);
    }
}

/// A response without a body.
pub(crate) fn status(status: StatusCode) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::empty());
    *response.status_mut() = status;
    response
}

pub(crate) fn is_allowed(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

pub(crate) fn method_not_allowed() -> Response<ResponseBody> {
    let mut response = status(StatusCode::METHOD_NOT_ALLOWED);
    insert(&mut response, ALLOW, "GET, HEAD");
    response
}

/// The content type of a file of this name.
pub(crate) fn content_type(path: &Path) -> HeaderValue {
    let guess = mime_guess::from_path(path).first_raw();
    HeaderValue::from_static(guess.unwrap_or("application/octet-stream"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passing_problems_are_to_be_tried_again() {
        let root = crate::lookup::Root::Anywhere;
        let server = Server::new(Files::new(root, crate::cache::Limits::default()));
        for (kind, status, retry) in [
            (io::ErrorKind::NotFound, 404, None),
            (io::ErrorKind::WouldBlock, 503, Some("1")),
            (io::ErrorKind::Other, 500, None),
        ] {
            let response = server.failed(&kind.into());
            assert_eq!(response.status(), status);
            let after = response.headers().get(RETRY_AFTER);
            assert_eq!(after.map(|value| value.to_str().unwrap()), retry);
        }
    }
}
