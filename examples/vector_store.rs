//! Nearest neighbours in a file of embeddings, of which a query reads only a part.
//!
//! ```text
//! cargo run --release --example vector_store
//! ```
//!
//! Each eight words of this crate's documentation are a vector of 256 numbers: the words, hashed.
//! All vectors are in the file, and a short *sketch* of each is in memory: it says how similar to a
//! query the vector can be. A query reads vectors in the order of that bound, until no other can be
//! nearer. The result is compared with a plain computation over the whole file.

use std::collections::hash_map::DefaultHasher;
use std::error::Error;
use std::hash::{Hash, Hasher};
use std::io::Read;

use mmap_io::{MemoryMappedFile, MmapAdvice};

const TEXT: &str = concat!(
    include_str!("../CHANGELOG.md"),
    include_str!("../src/lib.rs")
);
const QUERY: &str = "a write waits for the views that overlap it";
const NEIGHBOURS: usize = 5;
const NUMBERS: usize = 256;
/// The length of a vector in the file, in bytes.
const LEN: usize = 4 * NUMBERS;
/// How many numbers of a vector one number of its sketch stands for.
const BLOCK: usize = 16;
/// How many vectors are read at a time.
const BATCH: usize = 64;

/// A similarity, and the number of a vector.
type Hit = (f32, usize);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<&str> = TEXT.split_whitespace().collect();
    let passages: Vec<String> = words.windows(8).map(|words| words.join(" ")).collect();
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("vectors");

    let len = (LEN * passages.len()) as u64;
    let store = MemoryMappedFile::create_rw(&path, len).await?;
    let mut places = store.as_slice_mut(0, len).await?;
    for (passage, place) in passages.iter().zip(places.chunks_exact_mut(LEN)) {
        place.copy_from_slice(bytemuck::cast_slice(&embed(passage)));
    }
    let vectors = places.chunks_exact(LEN).map(bytemuck::cast_slice);
    let sketches: Vec<Vec<f32>> = vectors.map(sketch).collect();
    drop(places);
    println!("store     {} vectors, {len} bytes", passages.len());
    // A vector that is read says nothing of those beside it: the kernel need not read them too.
    store.advise(0, len, MmapAdvice::Random).await?;
    // Written back, and out of memory: other programs can use that until the next query.
    store.evict(0, len).await?;

    let query = embed(QUERY);
    let bounds = sketches.iter().map(|it| dot(it, &sketch(&query)));
    let candidates = sorted(bounds.zip(0..).collect());
    let region = |hit: &Hit| ((LEN * hit.1) as u64, LEN as u64);
    let (mut best, mut count) = (Vec::<Hit>::new(), 0);
    for batch in candidates.chunks(BATCH) {
        // None of these is nearer than its bound, which rounding may have made a little smaller.
        if best.len() == NEIGHBOURS && batch[0].0 + 1e-4 < best[NEIGHBOURS - 1].0 {
            break;
        }
        // One trip to the pool; the disk is asked for all missing pages together.
        let regions: Vec<_> = batch.iter().map(region).collect();
        for (vector, hit) in store.read_regions(&regions).await?.iter().zip(batch) {
            best.push((dot(bytemuck::cast_slice(vector), &query), hit.1));
        }
        best = sorted(best);
        best.truncate(NEIGHBOURS);
        count += batch.len();
    }
    let bytes = store.stats().bytes_read_in;
    println!("query     {QUERY:?}: {count} vectors, {bytes} bytes from the disk");
    for (similarity, number) in &best {
        println!("{similarity:.3}     {}", passages[*number]);
    }

    let mut all = vec![0.0_f32; NUMBERS * passages.len()];
    std::fs::File::open(&path)?.read_exact(bytemuck::cast_slice_mut(&mut all))?;
    let plain = all.chunks(NUMBERS).map(|vector| dot(vector, &query));
    if best != sorted(plain.zip(0..).collect())[..NEIGHBOURS] {
        return Err("a plain computation finds other neighbours".into());
    }
    println!("verified  the neighbours, by a plain computation");
    Ok(())
}

/// The most similar first, and of equal ones the first in the file.
fn sorted(mut hits: Vec<Hit>) -> Vec<Hit> {
    hits.sort_by(|one, other| other.0.total_cmp(&one.0).then(one.1.cmp(&other.1)));
    hits
}

/// Hashes each word of a text to one of the numbers; the vector has the length 1.
fn embed(text: &str) -> Vec<f32> {
    let mut vector = vec![0.0; NUMBERS];
    for word in text.split_whitespace() {
        let mut hasher = DefaultHasher::new();
        word.hash(&mut hasher);
        vector[hasher.finish() as usize % NUMBERS] += 1.0;
    }
    let length = dot(&vector, &vector).sqrt();
    vector.iter().map(|number| number / length).collect()
}

/// The length of each block: two vectors are at most as similar as their sketches.
fn sketch(vector: &[f32]) -> Vec<f32> {
    let blocks = vector.chunks(BLOCK);
    blocks.map(|block| dot(block, block).sqrt()).collect()
}

fn dot(one: &[f32], other: &[f32]) -> f32 {
    one.iter().zip(other).map(|(a, b)| a * b).sum()
}
