//! The trait `ObjectStore`. This file is compiled once for each version of object_store that is
//! asked for: `super::object_store` is the version.

use std::error::Error;
use std::fs::File;
use std::future::Future;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use blocking::unblock;
use bytes::Bytes;
use futures_lite::future::block_on;
use futures_lite::stream::{self, Boxed, Stream, StreamExt};

use super::object_store::{
    local::LocalFileSystem, path::Path, CopyOptions, Error as StoreError, GetOptions, GetRange,
    GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result, UploadPart,
};
use super::{get_result, local, E_TAG};
use crate::drops::{DropOnPool, Unstarted};
use crate::generation::{ETags, Generation, Identity, Opened};
use crate::ranges;
use crate::store::{MappedFileSystem, Shared};
use crate::streams::{copied, mapped, Chunks};

/// What an object was found to be.
enum Found {
    Mapped(Arc<Generation>),
    /// There is no map: what the local file system has answered, whose payload is empty, and the
    /// file.
    Local(GetResult, Option<DropOnPool<File>>),
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl ObjectStore for MappedFileSystem {
    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let shared = &*self.shared;
        if options.head {
            if let Some(generation) = shared.current(location.as_ref()).await {
                if let Some(result) = answer(self, &generation, location, &options).await? {
                    return Ok(result);
                }
            }
            return Ok(open(local(self), location, options).await?.0);
        }
        let (mut result, file) = match find(self, location, options.clone()).await? {
            Found::Mapped(generation) => {
                if let Some(result) = answer(self, &generation, location, &options).await? {
                    return Ok(result);
                }
                // The range lies outside the object. The local file system knows the error; or the
                // object was replaced.
                let (result, opened) = open(local(self), location, options.clone()).await?;
                (result, opened.map(|opened| opened.file))
            }
            Found::Local(result, file) => (result, file),
        };
        if let Some(file) = file {
            let chunks = chunks(shared, &options, &result.range);
            let stream = copied(file, result.range.clone(), chunks);
            result.payload = GetResultPayload::Stream(fallible(stream));
        }
        Ok(result)
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        if let Some(range) = ranges.iter().find(|range| range.start > range.end) {
            let problem = format!("the range {range:?} ends before it starts");
            return Err(generic(problem.into()));
        }
        if let Found::Mapped(generation) = find(self, location, GetOptions::default()).await? {
            if ranges.iter().all(|range| range.end <= generation.len()) {
                let wrap = |bytes| generation.counted(bytes);
                let read = ranges::read(&generation.file, ranges, wrap).await;
                return read.map_err(|error| generic(Box::new(error)));
            }
            // The local file system knows the error; or the object was replaced by a longer one.
        }
        let (location, ranges) = (location.clone(), ranges.to_vec());
        let local = local(self).clone();
        on_pool(async move {
            check_kind(&local, &location)?;
            local.get_ranges(&location, &ranges).await
        })
        .await
    }

    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        let (local, target) = (local(self).clone(), location.clone());
        let shared = Arc::clone(&self.shared);
        on_pool(async move {
            let put = local.put_opts(&target, payload, options).await;
            shared.cache.forget(target.as_ref());
            put
        })
        .await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let (local, target) = (local(self).clone(), location.clone());
        let upload = on_pool(async move {
            let upload = local.put_multipart_opts(&target, options).await;
            upload.map(DropOnPool::new)
        });
        Ok(Box::new(Upload {
            upload: upload.await?,
            shared: Arc::clone(&self.shared),
            location: location.clone(),
        }))
    }

    fn delete_stream(&self, locations: Boxed<Result<Path>>) -> Boxed<Result<Path>> {
        let shared = Arc::clone(&self.shared);
        let deleted = local(self).delete_stream(locations);
        let deleted = deleted.inspect(move |deleted| {
            if let Ok(location) = deleted {
                shared.cache.forget(location.as_ref());
            }
        });
        deleted.boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> Boxed<Result<ObjectMeta>> {
        local(self).list(prefix)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> Boxed<Result<ObjectMeta>> {
        local(self).list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let (local, prefix) = (local(self).clone(), prefix.cloned());
        on_pool(async move { local.list_with_delimiter(prefix.as_ref()).await }).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let (local, source, target) = (local(self).clone(), from.clone(), to.clone());
        let shared = Arc::clone(&self.shared);
        on_pool(async move {
            let copied = local.copy_opts(&source, &target, options).await;
            shared.cache.forget(target.as_ref());
            copied
        })
        .await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        let (local, source, target) = (local(self).clone(), from.clone(), to.clone());
        let shared = Arc::clone(&self.shared);
        on_pool(async move {
            let renamed = local.rename_opts(&source, &target, options).await;
            shared.cache.forget(source.as_ref());
            shared.cache.forget(target.as_ref());
            renamed
        })
        .await
    }
}

/// Returns the map of an object, which is made if there is room for it.
///
/// # Errors
///
/// Those of the local file system for `options`.
async fn find(store: &MappedFileSystem, location: &Path, options: GetOptions) -> Result<Found> {
    let shared = &*store.shared;
    if let Some(generation) = shared.current(location.as_ref()).await {
        return Ok(Found::Mapped(generation));
    }
    let _turn = shared.openings.turn(location.as_ref()).await;
    // The task whose turn it was before has perhaps mapped it.
    if let Some(generation) = shared.current(location.as_ref()).await {
        return Ok(Found::Mapped(generation));
    }
    let (result, opened) = open(local(store), location, options).await?;
    let Some(opened) = opened else {
        return Ok(Found::Local(result, None));
    };
    let meta = &result.meta;
    let file = match is_of(meta, &opened.identity) && meta.size > 0 {
        true => {
            let mut e_tags = ETags::default();
            e_tags[E_TAG] = meta.e_tag.clone().into();
            match shared.map(location.as_ref(), opened, e_tags).await {
                Ok(generation) => return Ok(Found::Mapped(generation)),
                Err(file) => file,
            }
        }
        // Empty, or another program changes it at this moment: it has no tag that holds.
        false => opened.file,
    };
    Ok(Found::Local(result, Some(file)))
}

/// Refuses what is neither a file nor a directory, as `list` hides it. The local file system opens
/// it, and a FIFO would hold up the thread of the pool until another program opens it as well.
///
/// Blocks. A FIFO that takes the place of a file right after this is still opened.
fn check_kind(local: &LocalFileSystem, location: &Path) -> Result<()> {
    let path = local.path_to_filesystem(location)?;
    match std::fs::metadata(&path) {
        Ok(metadata) if !metadata.is_file() && !metadata.is_dir() => {
            let source = io::Error::new(io::ErrorKind::NotFound, "not a regular file");
            Err(StoreError::NotFound {
                path: path.to_string_lossy().into_owned(),
                source: source.into(),
            })
        }
        // The local file system knows the error.
        _ => Ok(()),
    }
}

/// Whether what the local file system says of an object, before its file was asked for its
/// identity, is still true of that file.
fn is_of(meta: &ObjectMeta, identity: &Identity) -> bool {
    let modified = SystemTime::from(meta.last_modified);
    (meta.size, modified) == (identity.len, identity.modified)
}

/// Opens an object on the pool, through the local file system: its paths, preconditions, tags and
/// errors are the ones that hold. The payload of the result is empty. There is no file if only the
/// head was asked for.
async fn open(
    local: &LocalFileSystem,
    location: &Path,
    options: GetOptions,
) -> Result<(GetResult, Option<Opened>)> {
    let (local, location) = (local.clone(), location.clone());
    on_pool(async move {
        check_kind(&local, &location)?;
        let is_head = options.head;
        let mut result = local.get_opts(&location, options).await?;
        let nothing = GetResultPayload::Stream(stream::empty().boxed());
        let opened = match std::mem::replace(&mut result.payload, nothing) {
            GetResultPayload::File(file, path) if !is_head => Some(Opened::new(file, path)),
            _ => None,
        };
        let opened = opened.transpose().map_err(|error| generic(error.into()))?;
        Ok((result, opened))
    })
    .await
}

/// Returns the tag of a mapped object. If another version has mapped it, the local file system is
/// asked, once; `None` if the object was replaced before that.
async fn e_tag(
    local: &LocalFileSystem,
    generation: &Generation,
    location: &Path,
) -> Option<Option<String>> {
    let e_tag = &generation.e_tags[E_TAG];
    if let Some(e_tag) = e_tag.get() {
        return Some(e_tag.clone());
    }
    // An error may be that of a later object: the caller asks for the object itself, and gets it.
    let (result, opened) = open(local, location, GetOptions::default()).await.ok()?;
    let found = opened?.identity;
    let is_it = found == generation.identity && is_of(&result.meta, &found);
    is_it.then(|| e_tag.get_or_init(|| result.meta.e_tag).clone())
}

/// What `get` answers from a map; `None` if the range lies outside the object, or if the object was
/// replaced before its tag was known.
async fn answer(
    store: &MappedFileSystem,
    generation: &Arc<Generation>,
    location: &Path,
    options: &GetOptions,
) -> Result<Option<GetResult>> {
    let Some(e_tag) = e_tag(local(store), generation, location).await else {
        return Ok(None);
    };
    let meta = ObjectMeta {
        location: location.clone(),
        last_modified: generation.identity.modified.into(),
        size: generation.len(),
        e_tag,
        version: None,
    };
    options.check_preconditions(&meta)?;
    let range = match &options.range {
        Some(range) => match range.as_range(meta.size) {
            Ok(range) => range,
            Err(_) => return Ok(None),
        },
        None => 0..meta.size,
    };
    let payload = match options.head {
        true => stream::empty().boxed(),
        false => fallible(mapped(
            generation,
            range.clone(),
            chunks(&store.shared, options, &range),
        )),
    };
    let payload = GetResultPayload::Stream(payload);
    Ok(Some(get_result(payload, meta, range)))
}

/// A range that the caller has bounded is one chunk; what is as long as the object makes it may be
/// several.
fn chunks(shared: &Shared, options: &GetOptions, range: &Range<u64>) -> Chunks {
    match &options.range {
        Some(GetRange::Bounded(_)) => Chunks::One,
        _ if range.end - range.start <= shared.one_chunk() => Chunks::One,
        _ => Chunks::Several,
    }
}

/// Runs a future of the local file system on the pool. There it finds no runtime of tokio, and
/// blocks instead of waiting for a job.
async fn on_pool<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> T {
    let job = Unstarted::new(future);
    unblock(move || block_on(job.start())).await
}

fn fallible<E>(
    stream: impl Stream<Item = Result<Bytes, E>> + Send + 'static,
) -> Boxed<Result<Bytes>>
where
    E: Error + Send + Sync + 'static,
{
    stream
        .map(|item| item.map_err(|error| generic(Box::new(error))))
        .boxed()
}

fn generic(source: Box<dyn Error + Send + Sync>) -> StoreError {
    StoreError::Generic {
        store: "MappedFileSystem",
        source,
    }
}

/// An upload of several parts, at whose end the map of the object that it replaces is dropped.
#[derive(Debug)]
struct Upload {
    upload: DropOnPool<Box<dyn MultipartUpload>>,
    shared: Arc<Shared>,
    location: Path,
}

#[async_trait]
impl MultipartUpload for Upload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let mut part = DropOnPool::new(self.upload.put_part(data));
        Box::pin(async move { part.as_mut().await })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let result = self.upload.complete().await;
        self.shared.cache.forget(self.location.as_ref());
        result
    }

    async fn abort(&mut self) -> Result<()> {
        self.upload.abort().await
    }
}
