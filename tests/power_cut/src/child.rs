//! Runs this program again, as a child that is killed when its parent ends.

use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};
use std::{ffi::OsStr, io, io::Read};

use anyhow::{bail, Result};

/// A child whose output is read line by line; dropping it kills the child.
pub(crate) struct Helper {
    child: Child,
    output: ChildStdout,
    unread: Vec<u8>,
}

impl Helper {
    pub(crate) fn spawn<S: AsRef<OsStr>>(arguments: &[S]) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        // SAFETY: `prctl` is async-signal-safe, and takes no pointer here.
        unsafe {
            command.pre_exec(|| {
                // It would keep the mount namespace alive.
                match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                    0 => Ok(()),
                    _ => Err(io::Error::last_os_error()),
                }
            });
        }
        let mut child = command.spawn()?;
        let output = child.stdout.take().expect("it is piped");
        Ok(Self {
            child,
            output,
            unread: Vec::new(),
        })
    }

    /// Returns the lines that arrive, until none has arrived for `quiet`.
    pub(crate) fn lines(&mut self, quiet: Duration) -> Result<Vec<String>> {
        while self.wait_readable(quiet)? {
            let mut part = [0; 65536];
            match self.output.read(&mut part)? {
                0 => bail!("the writer has ended: {}", self.child.wait()?),
                len => self.unread.extend_from_slice(&part[..len]),
            }
        }
        let Some(end) = self.unread.iter().rposition(|byte| *byte == b'\n') else {
            return Ok(Vec::new());
        };
        let whole: Vec<u8> = self.unread.drain(..=end).collect();
        Ok(String::from_utf8(whole)?.lines().map(Into::into).collect())
    }

    /// Returns the next line; `None` if it does not arrive in time.
    pub(crate) fn line(&mut self, patience: Duration) -> Result<Option<String>> {
        let until = Instant::now() + patience;
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                return Ok(Some(String::from_utf8(line)?.trim_end().into()));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            if self.wait_readable(left)? {
                let mut part = [0; 4096];
                match self.output.read(&mut part)? {
                    0 => bail!("the writer has ended: {}", self.child.wait()?),
                    len => self.unread.extend_from_slice(&part[..len]),
                }
            }
        }
    }

    pub(crate) fn tell(&mut self, line: &str) -> io::Result<()> {
        let input = self.child.stdin.as_mut().expect("it is piped");
        writeln!(input, "{line}")
    }

    fn wait_readable(&self, patience: Duration) -> io::Result<bool> {
        let mut waiting = libc::pollfd {
            fd: self.output.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: the array has one entry, as the call is told, and is live for the call.
        match unsafe { libc::poll(&mut waiting, 1, patience.as_millis() as libc::c_int) } {
            0 => Ok(false),
            1 => Ok(true),
            _ => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => Ok(false),
                error => Err(error),
            },
        }
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
