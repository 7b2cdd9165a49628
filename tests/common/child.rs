//! Tests that need a process of their own: this test binary runs again, for one of its tests.
//!
//! The test that is run again is an ordinary test, so that it has a name. It returns at once where
//! [`child_dir`] is `None`: `cargo test` runs it as well.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The variable that names the directory of a child.
const DIR: &str = "MMAP_IO_TEST_CHILD";

/// The variable that names the emulator of a binary that the system cannot run by itself.
const EMULATOR: &str = "MMAP_IO_TEST_EMULATOR";

/// Makes a [`Child`] of a test in the same module.
macro_rules! child {
    ($test:ident) => {{
        // Does not compile if there is no such test.
        let _: fn() = $test;
        $crate::common::child::Child::new(concat!(module_path!(), "::", stringify!($test)))
    }};
}
pub(crate) use child;

/// A test of this binary that is to run in a process of its own.
#[must_use]
pub(crate) struct Child {
    test: &'static str,
    binary: PathBuf,
    program: Vec<OsString>,
    /// Values of environment variables; `None` unsets one.
    variables: Vec<(String, Option<OsString>)>,
}

impl Child {
    /// Takes the path of the test, which begins with the name of the binary.
    pub(crate) fn new(path: &'static str) -> Self {
        let (_, test) = path.split_once("::").unwrap();
        Self {
            test,
            binary: std::env::current_exe().unwrap(),
            program: Vec::new(),
            variables: Vec::new(),
        }
    }

    /// The name of the test in this binary.
    pub(crate) fn test(&self) -> &'static str {
        self.test
    }

    /// Gives the child a directory to work on, which it gets from [`child_dir`].
    pub(crate) fn dir(self, dir: &Path) -> Self {
        self.variable(DIR, Some(dir.into()))
    }

    pub(crate) fn env(self, name: &str, value: &str) -> Self {
        self.variable(name, Some(value.into()))
    }

    fn variable(mut self, name: &str, value: Option<OsString>) -> Self {
        self.variables.push((name.to_owned(), value));
        self
    }

    /// Limits the pool to one thread.
    pub(crate) fn one_pool_thread(self) -> Self {
        self.env("BLOCKING_MAX_THREADS", "1")
    }

    /// Lets the pool have as many threads as usual, whatever this process was told.
    pub(crate) fn usual_pool(self) -> Self {
        self.variable("BLOCKING_MAX_THREADS", None)
    }

    /// Runs a copy of this binary.
    pub(crate) fn binary(mut self, binary: &Path) -> Self {
        self.binary = binary.to_path_buf();
        self
    }

    /// Runs the binary under another program, whose arguments end with it.
    pub(crate) fn under(mut self, program: &[&str]) -> Self {
        self.program = program.iter().map(OsString::from).collect();
        self
    }

    /// The command that runs the child.
    pub(crate) fn command(self) -> Command {
        let mut words = self.program;
        words.extend(std::env::var_os(EMULATOR));
        words.push(self.binary.into());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        command.args(["--exact", "--nocapture", "--test-threads=1", self.test]);
        for (name, value) in self.variables {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command
    }

    /// Runs the child, which has to pass, and returns what it prints.
    #[track_caller]
    pub(crate) fn passes(self) -> String {
        self.passes_with(|_| ())
    }

    /// Does the same after `prepare` has changed the command.
    #[track_caller]
    pub(crate) fn passes_with(self, prepare: impl FnOnce(&mut Command)) -> String {
        let test = self.test;
        let mut command = self.command();
        prepare(&mut command);
        // A copy of the binary is busy for as long as a child that another test has just forked
        // has the descriptor through which it was written: until that child executes its program.
        let output = loop {
            match command.output() {
                Err(error) if error.raw_os_error() == Some(libc::ETXTBSY) => {
                    std::thread::yield_now()
                }
                output => break output.unwrap(),
            }
        };
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        let status = output.status;
        assert!(
            status.success(),
            "{test} failed, {status}:\n{printed}\n{errors}"
        );
        assert!(printed.contains("1 passed"), "there is no test {test}");
        // Among it is the reason why the child was skipped, if it was.
        print!("{printed}");
        printed
    }
}

/// Returns the directory to work on if this process is a child.
pub(crate) fn child_dir() -> Option<PathBuf> {
    std::env::var_os(DIR).map(PathBuf::from)
}

/// Ends a child that hangs: a thread that is stuck cannot be stopped in any other way.
pub(crate) fn abort_if_stuck() {
    std::thread::spawn(|| {
        std::thread::sleep(Duration::from_secs(120));
        eprintln!("the child hangs: a thread is blocked, or a future is never woken");
        std::process::abort();
    });
}

/// Runs the body of a test, of which `this` is the child, in a process of its own.
pub(crate) fn alone(this: Child, body: impl FnOnce()) {
    const IS_CHILD: &str = "MMAP_IO_TEST_ALONE";
    if std::env::var_os(IS_CHILD).is_some() {
        abort_if_stuck();
        return body();
    }
    this.env(IS_CHILD, "1").passes();
}

/// Does the same with a pool of one thread.
pub(crate) fn with_one_pool_thread(this: Child, body: impl FnOnce()) {
    alone(this.one_pool_thread(), body);
}
