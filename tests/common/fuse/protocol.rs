//! The requests of the kernel, and the files that answer them.
//!
//! Numbers and layouts are those of the kernel's `include/uapi/linux/fuse.h`. All of it is made of
//! words of 8 bytes, in the byte order of the machine; some hold two numbers.

use std::fs::File;
use std::io::{IoSlice, Write};

/// Most bytes that a file can have: more is a full disk.
const CAPACITY: usize = 4 << 20;

/// Most bytes of one [`WRITE`].
pub(super) const MAX_WRITE: usize = 128 << 10;

/// A kind of request, by its number.
pub(crate) type Kind = u32;

pub(crate) const LOOKUP: Kind = 1;
const FORGET: Kind = 2;
/// Stands for [`STATX`], too.
pub(crate) const GETATTR: Kind = 3;
pub(crate) const SETATTR: Kind = 4;
pub(crate) const UNLINK: Kind = 10;
pub(crate) const OPEN: Kind = 14;
pub(crate) const READ: Kind = 15;
pub(crate) const WRITE: Kind = 16;
pub(crate) const STATFS: Kind = 17;
pub(crate) const RELEASE: Kind = 18;
pub(crate) const FSYNC: Kind = 20;
pub(crate) const FLUSH: Kind = 25;
const INIT: Kind = 26;
const OPENDIR: Kind = 27;
const READDIR: Kind = 28;
const RELEASEDIR: Kind = 29;
const FSYNCDIR: Kind = 30;
pub(crate) const CREATE: Kind = 35;
const INTERRUPT: Kind = 36;
const DESTROY: Kind = 38;
const BATCH_FORGET: Kind = 42;
pub(crate) const FALLOCATE: Kind = 43;
pub(crate) const LSEEK: Kind = 46;
const STATX: Kind = 52;

/// The first bytes of a request: all of it, but for what is to be written.
#[derive(Clone, Copy)]
pub(super) struct Head([u8; Self::LEN]);

impl Head {
    const LEN: usize = 128;
    pub(super) const EMPTY: Self = Self([0xee; Self::LEN]);

    pub(super) fn of(request: &[u8]) -> Self {
        let mut head = Self([0; Self::LEN]);
        let len = request.len().min(Self::LEN);
        head.0[..len].copy_from_slice(&request[..len]);
        head
    }

    pub(super) fn kind(&self) -> Kind {
        match self.number(4) {
            STATX => GETATTR,
            kind => kind,
        }
    }

    /// The thread that has asked.
    pub(super) fn thread(&self) -> u32 {
        self.number(32)
    }

    fn node(&self) -> u64 {
        self.word(16)
    }

    fn word(&self, at: usize) -> u64 {
        u64::from_ne_bytes(self.0[at..at + 8].try_into().unwrap())
    }

    fn number(&self, at: usize) -> u32 {
        u32::from_ne_bytes(self.0[at..at + 4].try_into().unwrap())
    }

    fn name(&self, at: usize) -> &str {
        let name = self.0[at..].split(|byte| *byte == 0).next().unwrap();
        std::str::from_utf8(name).unwrap_or_default()
    }
}

/// The root directory, and the files in it.
pub(super) struct Files {
    /// The node number of each is its index and 2; the root directory is 1.
    files: Vec<OneFile>,
    /// Links of each file, unless it is unlinked.
    pub(super) links: u32,
    /// All files have one inode number.
    pub(super) one_inode: bool,
    /// Seconds for which the kernel may remember attributes.
    pub(super) attributes_last: u64,
}

struct OneFile {
    /// Empty once it is unlinked.
    name: String,
    content: Vec<u8>,
}

impl OneFile {
    fn new(name: &str, content: &[u8]) -> Self {
        // All of it is touched, so that nothing is left to fault in.
        let mut all = vec![0xee; CAPACITY];
        all.truncate(content.len());
        all.copy_from_slice(content);
        Self {
            name: name.to_owned(),
            content: all,
        }
    }
}

impl Files {
    pub(super) fn new<'a>(files: impl Iterator<Item = (&'a str, Vec<u8>)>) -> Self {
        Self {
            files: files
                .map(|(name, content)| OneFile::new(name, &content))
                .collect(),
            links: 1,
            one_inode: false,
            attributes_last: 3600,
        }
    }

    pub(super) fn content(&self, name: &str) -> &[u8] {
        &self.files[self.index(name).unwrap()].content
    }

    /// Does what a [`WRITE`] asks for.
    pub(super) fn write(&mut self, request: &[u8]) {
        let head = Head::of(request);
        let (start, data) = (head.word(48) as usize, &request[80..]);
        let end = start + data.len();
        if let Ok(file) = self.file(head.node()) {
            if end <= CAPACITY {
                file.content.resize(end.max(file.content.len()), 0);
                file.content[start..end].copy_from_slice(data);
            }
        }
    }

    /// Answers a request, with an error if `refused` is one, unless it is of a kind that has no
    /// answer.
    pub(super) fn answer(&mut self, head: &Head, refused: i32, mut device: &File) {
        if [FORGET, BATCH_FORGET, INTERRUPT].contains(&head.kind()) {
            return;
        }
        let mut body = Words::EMPTY;
        let result = match refused {
            0 => self.serve(head, &mut body),
            errno => Err(errno),
        };
        let (bytes, errno) = match result {
            Ok(Some(content)) => (content, 0),
            Ok(None) => (body.bytes(), 0),
            Err(errno) => (&[][..], errno),
        };
        let mut header = Words::EMPTY;
        let len = 16 + bytes.len() as u32;
        header.put(&[pair(len, -errno as u32), head.word(8)]);
        // Fails if the request was withdrawn, or the file system unmounted.
        let _ = device.write_vectored(&[header.bytes(), bytes].map(IoSlice::new));
    }

    /// Fills the answer in, or returns bytes that are the answer.
    fn serve(&mut self, head: &Head, body: &mut Words) -> Result<Option<&[u8]>, i32> {
        /// Pages are cached, and stay so when the file is opened again.
        const KEEP_CACHE: u32 = 1 << 1;
        let opened = [0, pair(KEEP_CACHE, 0)];
        let (node, offset) = (head.node(), head.word(48));
        match head.number(4) {
            INIT => {
                const MINOR: u32 = 39;
                const ASYNC_READ: u32 = 1;
                const BIG_WRITES: u32 = 1 << 5;
                /// Requests in the background, twice.
                const MANY: u32 = 1000 << 16 | 1000;
                let read_ahead = head.number(48);
                body.put(&[pair(7, MINOR), pair(read_ahead, ASYNC_READ | BIG_WRITES)]);
                body.put(&[pair(MANY, MAX_WRITE as u32), pair(1, 0), 0, 0, 0, 0]);
            }
            LOOKUP => {
                let index = self.index(head.name(40)).ok_or(libc::ENOENT)?;
                self.entry(index, body)?;
            }
            CREATE => {
                self.files.push(OneFile::new(head.name(56), &[]));
                self.entry(self.files.len() - 1, body)?;
                body.put(&opened);
            }
            UNLINK => {
                let index = self.index(head.name(40)).ok_or(libc::ENOENT)?;
                self.files[index].name.clear();
            }
            GETATTR => self.attributes(node, body)?,
            STATX => self.statx(node, body)?,
            SETATTR => {
                const SIZE: u32 = 1 << 3;
                if head.number(40) & SIZE != 0 {
                    self.set_len(node, head.word(56))?;
                }
                self.attributes(node, body)?;
            }
            OPEN | OPENDIR => body.put(&opened),
            READ => {
                let content = &self.file(node)?.content;
                let start = content.len().min(offset as usize);
                let end = content.len().min(start + head.number(56) as usize);
                return Ok(Some(&content[start..end]));
            }
            // It was done when it came in.
            WRITE => match (offset as usize, head.number(56)) {
                (start, len) if start + len as usize <= CAPACITY => body.put(&[pair(len, 0)]),
                _ => return Err(libc::ENOSPC),
            },
            FALLOCATE => {
                let end = offset + head.word(56);
                let file_len = self.file(node)?.content.len() as u64;
                match head.number(64) as i32 {
                    0 => self.set_len(node, end.max(file_len))?,
                    libc::FALLOC_FL_KEEP_SIZE => {}
                    _ => return Err(libc::EOPNOTSUPP),
                }
            }
            STATFS => {
                let (blocks, files) = (1 << 20, 1 << 10);
                body.put(&[blocks, blocks, blocks, files, files, pair(4096, 255)]);
                body.put(&[pair(4096, 0), 0, 0, 0]);
            }
            RELEASE | FSYNC | FLUSH | READDIR | RELEASEDIR | FSYNCDIR | DESTROY => {}
            _ => return Err(libc::ENOSYS),
        }
        Ok(None)
    }

    fn index(&self, name: &str) -> Option<usize> {
        self.files.iter().position(|file| file.name == name)
    }

    fn file(&mut self, node: u64) -> Result<&mut OneFile, i32> {
        let index = (node as usize).checked_sub(2).ok_or(libc::EISDIR)?;
        self.files.get_mut(index).ok_or(libc::ESTALE)
    }

    fn set_len(&mut self, node: u64, len: u64) -> Result<(), i32> {
        if len > CAPACITY as u64 {
            return Err(libc::ENOSPC);
        }
        self.file(node)?.content.resize(len as usize, 0);
        Ok(())
    }

    /// Inode number, length, links and mode.
    fn stat(&mut self, node: u64) -> Result<(u64, u64, u32, u32), i32> {
        if node == 1 {
            return Ok((1, 0, 2, libc::S_IFDIR | 0o755));
        }
        let (links, inode) = (self.links, if self.one_inode { 2 } else { node });
        let file = self.file(node)?;
        let links = if file.name.is_empty() { 0 } else { links };
        let len = file.content.len() as u64;
        Ok((inode, len, links, libc::S_IFREG | 0o644))
    }

    /// `struct fuse_entry_out`.
    fn entry(&mut self, index: usize, body: &mut Words) -> Result<(), i32> {
        let node = index as u64 + 2;
        body.put(&[node, 0, 3600, self.attributes_last, 0]);
        self.attr(node, body)
    }

    /// `struct fuse_attr_out`.
    fn attributes(&mut self, node: u64, body: &mut Words) -> Result<(), i32> {
        body.put(&[self.attributes_last, 0]);
        self.attr(node, body)
    }

    /// `struct fuse_attr`.
    fn attr(&mut self, node: u64, body: &mut Words) -> Result<(), i32> {
        let (inode, len, links, mode) = self.stat(node)?;
        body.put(&[inode, len, len.div_ceil(512), 0, 0, 0, 0]);
        body.put(&[pair(0, mode), pair(links, 0), 0, pair(4096, 0)]);
        Ok(())
    }

    /// `struct fuse_statx_out`, with a birth time of the file's own.
    fn statx(&mut self, node: u64, body: &mut Words) -> Result<(), i32> {
        let (inode, len, links, mode) = self.stat(node)?;
        let known = libc::STATX_BASIC_STATS | libc::STATX_BTIME;
        body.put(&[self.attributes_last, 0, 0, 0, pair(known, 4096), 0]);
        // Of 16 bits here.
        let [first, second] = (mode as u16).to_ne_bytes();
        let mode = u32::from_ne_bytes([first, second, 0, 0]);
        body.put(&[pair(links, 0), pair(0, mode)]);
        body.put(&[inode, len, len.div_ceil(512), 0]);
        // Of access, birth, change and modification; devices; room.
        body.put(&[0, 0, 1_000_000 + node, 0, 0, 0, 0, 0]);
        body.put(&[0; 16]);
        Ok(())
    }
}

/// What an answer is made of.
struct Words {
    bytes: [u8; 512],
    len: usize,
}

impl Words {
    const EMPTY: Self = Self {
        bytes: [0; 512],
        len: 0,
    };

    fn put(&mut self, words: &[u64]) {
        for word in words {
            self.bytes[self.len..][..8].copy_from_slice(&word.to_ne_bytes());
            self.len += 8;
        }
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Two numbers in one word, in the order in which they lie in memory.
fn pair(first: u32, second: u32) -> u64 {
    let mut word = [0; 8];
    word[..4].copy_from_slice(&first.to_ne_bytes());
    word[4..].copy_from_slice(&second.to_ne_bytes());
    u64::from_ne_bytes(word)
}
