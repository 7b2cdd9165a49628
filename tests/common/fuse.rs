//! A file system that may be remote, as far as the crate knows: a server of [`fuse(4)`] inside the
//! test, whose answers the test holds back or refuses.
//!
//! The files are in memory. One thread reads the requests, and answers those that need not wait; a
//! second one answers the others when they are released, or when their time has come.
//!
//! A process that serves itself can lock itself up, in ways that no signal ends:
//! - A close waits for FLUSH even when the process is being killed, and the device is closed when
//!   the last thread that shares it has ended. So the serving threads have descriptor tables of
//!   their own, which hold only the device: when they die, the kernel answers for them.
//! - A core dump stops the serving threads before it waits for the other threads, so there is none.
//! - The kernel may wait for a page while it holds the lock of the address space. So the serving
//!   threads allocate nothing while they serve, and touch no mapping of the mount.
//! - A fork, and the exec after it, close copies of every descriptor, each with a FLUSH. So each
//!   test runs in a process of its own, and in a mount namespace of its own, which ends with it.
//!
//! [`fuse(4)`]: https://man7.org/linux/man-pages/man4/fuse.4.html

mod protocol;

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{mpsc, Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use self::protocol::{Files, Head, MAX_WRITE};
use super::child::Child;
use super::{pattern, skip, TIMEOUT};

pub(crate) use self::protocol::{
    Kind, CREATE, FALLOCATE, FLUSH, FSYNC, GETATTR, LOOKUP, LSEEK, OPEN, READ, RELEASE, SETATTR,
    STATFS, UNLINK, WRITE,
};

/// How long an answer is held back at most: a thread that waits for it has to fail, not to hang.
const PATIENCE: Duration = Duration::from_secs(20);

/// Above every number of a request.
const KINDS: usize = 64;

/// Runs the body of a test, of which `this` is the child, on a file system with `files` of those
/// lengths, which hold [`pattern`]s; or says why it cannot.
pub(crate) fn with_fuse(this: Child, files: &[(&str, usize)], body: impl FnOnce(&Fuse)) {
    const CHILD: &str = "MMAP_IO_TEST_FUSE";
    // SAFETY: the call takes nothing and cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        return skip(this.test(), "needs root, for a file system of its own");
    }
    if std::env::var_os(CHILD).is_none() {
        this.env(CHILD, "1").passes();
        return;
    }
    thread::spawn(|| {
        thread::sleep(3 * TIMEOUT);
        eprintln!("a thread waits forever");
        // SAFETY: the call takes no pointer, and does not return.
        unsafe { libc::_exit(1) };
    });
    match Fuse::mount(files) {
        Ok(fuse) => body(&fuse),
        Err(error) => skip(this.test(), &format!("no file system of its own: {error}")),
    }
}

/// A mounted file system. Dropping it answers what is held back, and unmounts it.
pub(crate) struct Fuse {
    dir: tempfile::TempDir,
    server: Arc<Server>,
    threads: Vec<JoinHandle<()>>,
}

impl Fuse {
    fn mount(files: &[(&str, usize)]) -> io::Result<Self> {
        let device = File::options().read(true).write(true).open("/dev/fuse")?;
        // SAFETY: the call takes no pointer.
        succeeded(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) })?;
        // SAFETY: the call takes no pointer.
        succeeded(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
        mount("/", "none", libc::MS_REC | libc::MS_PRIVATE, "")?;
        let dir = tempfile::tempdir()?;
        let number = device.as_raw_fd();
        let data = format!("fd={number},rootmode=40000,user_id=0,group_id=0");
        mount(dir.path(), "fuse", 0, &data)?;
        let server = Arc::new(Server::new(files));
        let mut threads = Vec::new();
        for serve in [Server::read_requests, Server::answer_what_was_held] {
            let (ready, is_ready) = mpsc::channel();
            let server = server.clone();
            threads.push(thread::spawn(move || {
                let device = keep_only(number);
                ready.send(()).unwrap();
                serve(&server, &device);
            }));
            is_ready.recv_timeout(TIMEOUT).unwrap();
        }
        Ok(Self {
            dir,
            server,
            threads,
        })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What the server has of a file.
    pub(crate) fn content(&self, name: &str) -> Vec<u8> {
        self.server.state().files.content(name).to_vec()
    }

    /// Holds the answers to requests of these kinds back.
    ///
    /// The drop of what it returns fails the test if the answers were given before, because it took
    /// too long: then a thread waited for an answer that it must not wait for.
    pub(crate) fn hold(&self, kinds: &[Kind]) -> Held<'_> {
        let kinds = kinds.iter().fold(0, |kinds, kind| kinds | bit(*kind));
        let mut state = self.server.state();
        state.held |= kinds;
        state.held_since = Instant::now();
        Held(self, kinds)
    }

    /// Lets the answer to each request of these kinds take that long from now on.
    pub(crate) fn slow_down(&self, kinds: &[Kind], takes: Duration) {
        let mut state = self.server.state();
        state.slow = kinds.iter().fold(0, |kinds, kind| kinds | bit(*kind));
        state.takes = takes;
    }

    /// Answers requests of a kind with an error from now on; with 0, as they should be.
    pub(crate) fn refuse(&self, kind: Kind, errno: i32) {
        self.server.state().errors[kind as usize] = errno;
    }

    /// Answers the next requests of a kind with an error.
    pub(crate) fn refuse_next(&self, count: u32, kind: Kind, errno: i32) {
        self.server.state().next_errors[kind as usize] = (count, errno);
    }

    /// Lets the kernel remember no attributes that it hears of from now on.
    pub(crate) fn expire_attributes(&self) {
        self.server.state().files.attributes_last = 0;
    }

    /// Reports this number of links for each file.
    pub(crate) fn set_links(&self, links: u32) {
        self.server.state().files.links = links;
    }

    /// Gives all files one inode number; their birth times differ.
    pub(crate) fn repeat_inode_number(&self) {
        self.server.state().files.one_inode = true;
    }

    /// Number of requests of a kind, answered or not.
    pub(crate) fn count(&self, kind: Kind) -> usize {
        let requests = &self.all_read().requests;
        requests.iter().filter(|(asked, _)| *asked == kind).count()
    }

    /// The thread that has made the last request of a kind.
    pub(crate) fn last_asker(&self, kind: Kind) -> u32 {
        let state = self.all_read();
        let mut latest = state.requests.iter().rev();
        latest.find(|(asked, _)| *asked == kind).unwrap().1
    }

    /// The requests that this thread has made since it was asked last. RELEASE is not among them,
    /// which the kernel makes for no thread.
    pub(crate) fn asked_here(&self) -> Vec<Kind> {
        // SAFETY: the call takes nothing and cannot fail.
        let this = unsafe { libc::gettid() } as u32;
        let mut asked = Vec::new();
        for (kind, thread) in &mut self.all_read().requests {
            if *thread == this {
                *thread = 0;
                asked.extend((*kind != STATFS).then_some(*kind));
            }
        }
        asked
    }

    /// The state when all requests are read that were made before: after one more, since they are
    /// read in their order.
    fn all_read(&self) -> MutexGuard<'_, State> {
        let path = c_string(self.dir.path());
        let mut stat = std::mem::MaybeUninit::<libc::statfs>::zeroed();
        // SAFETY: the string and `stat` are live for the call.
        succeeded(unsafe { libc::statfs(path.as_ptr(), stat.as_mut_ptr()) }).unwrap();
        self.server.state()
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        {
            let mut state = self.server.state();
            state.held = 0;
            state.slow = 0;
            state.is_over = true;
        }
        self.server.changed.notify_all();
        let path = c_string(self.dir.path());
        // By force: the kernel fails what is still asked, and the device comes to its end.
        // SAFETY: the string is live for the call.
        unsafe { libc::umount2(path.as_ptr(), libc::MNT_FORCE | libc::MNT_DETACH) };
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Answers that are held back until this is dropped.
#[must_use]
pub(crate) struct Held<'a>(&'a Fuse, u64);

impl Held<'_> {
    /// Whether a request waits for an answer.
    pub(crate) fn is_waited_for(&self) -> bool {
        !self.0.all_read().waiting.is_empty()
    }

    /// Gives the answers that are held back at the moment. Later ones are held back as before.
    pub(crate) fn answer(&self) {
        let mut state = self.0.server.state();
        state.released = state.waiting.len();
        drop(state);
        self.0.server.changed.notify_all();
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut state = self.0.server.state();
        let in_time = state.held & self.1 == self.1;
        state.held &= !self.1;
        drop(state);
        self.0.server.changed.notify_all();
        assert!(
            in_time || thread::panicking(),
            "a thread waited for an answer that was held back"
        );
    }
}

struct Server {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    files: Files,
    /// Kinds whose answers are held back, a bit each.
    held: u64,
    held_since: Instant,
    /// Kinds whose answers take their time, a bit each, and how long they take.
    slow: u64,
    takes: Duration,
    /// The requests that wait for one or the other, since when. The oldest is the first.
    waiting: Vec<(Head, Instant)>,
    /// How many of them are to be answered although they are held back.
    released: usize,
    errors: [i32; KINDS],
    /// How many of the next requests of a kind get an error, and which.
    next_errors: [(u32, i32); KINDS],
    /// Kind and thread of each request.
    requests: Vec<(Kind, u32)>,
    is_over: bool,
}

impl Server {
    fn new(files: &[(&str, usize)]) -> Self {
        let files = files.iter().map(|(name, len)| (*name, pattern(*len)));
        Self {
            state: Mutex::new(State {
                files: Files::new(files),
                held: 0,
                held_since: Instant::now(),
                slow: 0,
                takes: Duration::ZERO,
                waiting: with_room(1 << 10, (Head::EMPTY, Instant::now())),
                released: 0,
                errors: [0; KINDS],
                next_errors: [(0, 0); KINDS],
                requests: with_room(1 << 16, (1, 1)),
                is_over: false,
            }),
            changed: Condvar::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn read_requests(&self, mut device: &File) {
        let mut buffer = vec![1; MAX_WRITE + 4096];
        loop {
            let request = match device.read(&mut buffer) {
                Ok(len) => &buffer[..len],
                Err(error) => match error.raw_os_error() {
                    // ENOENT: it was withdrawn.
                    Some(libc::EINTR | libc::EAGAIN | libc::ENOENT) => continue,
                    // Unmounted.
                    _ => return,
                },
            };
            let head = Head::of(request);
            let kind = head.kind();
            let mut state = self.state();
            state.requests.push((kind, head.thread()));
            if kind == WRITE && state.error(kind) == 0 {
                state.files.write(request);
            }
            match (state.held | state.slow) & bit(kind) {
                0 => state.answer(&head, device),
                _ => {
                    state.waiting.push((head, Instant::now()));
                    self.changed.notify_all();
                }
            }
        }
    }

    fn answer_what_was_held(&self, device: &File) {
        let mut state = self.state();
        loop {
            let left = state.waiting.iter().map(|request| state.left(request));
            let next = left.enumerate().min_by_key(|(_, left)| *left);
            let (index, left) = next.unwrap_or((0, PATIENCE));
            if left == Duration::ZERO {
                let (head, _) = state.waiting.remove(index);
                state.released = state.released.saturating_sub(1);
                state.answer(&head, device);
                continue;
            }
            if state.is_over {
                return;
            }
            let left = left.min(PATIENCE / 10);
            (state, _) = self.changed.wait_timeout(state, left).unwrap();
            if state.held_since.elapsed() > PATIENCE {
                state.held = 0;
            }
        }
    }
}

impl State {
    /// How long a request still waits for its answer.
    fn left(&self, (head, asked): &(Head, Instant)) -> Duration {
        let kind = bit(head.kind());
        if self.held & kind != 0 && self.released == 0 {
            PATIENCE
        } else if self.slow & kind != 0 {
            self.takes.saturating_sub(asked.elapsed())
        } else {
            Duration::ZERO
        }
    }

    fn error(&self, kind: Kind) -> i32 {
        self.errors.get(kind as usize).copied().unwrap_or(0)
    }

    fn answer(&mut self, head: &Head, device: &File) {
        let mut refused = self.error(head.kind());
        if let Some((left @ 1.., errno)) = self.next_errors.get_mut(head.kind() as usize) {
            *left -= 1;
            refused = *errno;
        }
        self.files.answer(head, refused, device);
    }
}

/// A list that is empty, and has memory for that many.
fn with_room<T: Clone>(count: usize, filler: T) -> Vec<T> {
    // Written to, so that nothing is left to fault in.
    let mut list = vec![filler; count];
    list.clear();
    list
}

fn bit(kind: Kind) -> u64 {
    1_u64.checked_shl(kind).unwrap_or(0)
}

fn mount(target: impl AsRef<Path>, kind: &str, flags: libc::c_ulong, data: &str) -> io::Result<()> {
    let (target, kind, data) = (c_string(target), c_string(kind), c_string(data));
    let (target, kind) = (target.as_ptr(), kind.as_ptr());
    // SAFETY: the strings are live for the call.
    succeeded(unsafe { libc::mount(kind, target, kind, flags, data.as_ptr().cast()) })
}

/// Gives this thread a descriptor table with that descriptor, and the standard ones.
fn keep_only(number: RawFd) -> File {
    const CLOSE_RANGE_UNSHARE: libc::c_uint = 1 << 1;
    let kept = number as libc::c_uint;
    for (first, last) in [(kept + 1, libc::c_uint::MAX), (3, kept - 1)] {
        if first <= last {
            let flags = CLOSE_RANGE_UNSHARE;
            // SAFETY: the table becomes this thread's own, and it uses nothing of what is closed.
            let closed = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
            assert_eq!(closed, 0, "{}", io::Error::last_os_error());
        }
    }
    // SAFETY: the descriptor is open in this thread's table, and nothing else here owns it.
    unsafe { File::from_raw_fd(number) }
}

fn c_string(text: impl AsRef<Path>) -> CString {
    CString::new(text.as_ref().as_os_str().as_bytes()).unwrap()
}

fn succeeded(result: libc::c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
