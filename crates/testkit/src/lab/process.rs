//! A child process that does not outlive its test. Its log is printed if the test fails.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use super::{Dir, PATIENCE, eventually};

/// Lines of the log that a failed test prints.
const LOG_TAIL: usize = 40;

/// Longest wait for a process to end after SIGTERM.
const FAREWELL: Duration = Duration::from_secs(5);

/// A running child.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    output: PathBuf,
    log: PathBuf,
    /// Contains the files.
    _dir: Dir,
}

impl Process {
    /// Starts `command`, and writes its output and log to files.
    pub fn start(name: impl Into<String>, command: &mut Command) -> Self {
        let name = name.into();
        let dir = Dir::new();
        let file = |name: &str| {
            let path = dir.path().join(name);
            let file = File::create(&path).expect("a file for a child's output");
            (path, file)
        };
        let ((output, stdout), (log, stderr)) = (file("stdout"), file("stderr"));
        let child = command
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr)
            .spawn()
            .unwrap_or_else(|error| panic!("{name} does not start: {error}"));
        Self {
            name,
            child,
            output,
            log,
            _dir: dir,
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its output so far.
    pub fn output(&self) -> String {
        read(&self.output)
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        read(&self.log)
    }

    /// Sends a signal, by its name for `kill`.
    pub fn signal(&self, signal: &str) {
        // The shell's `kill` is a safe way to send a signal, and it exists everywhere.
        let pid = self.pid();
        self.sh(&format!("kill -{signal} {pid}"));
    }

    /// Sets a limit of the running process, by its name for prlimit(1). `None` removes it.
    pub fn limit(&self, name: &str, soft: Option<u64>) {
        let soft = soft.map_or_else(|| "$hard".to_owned(), |soft| soft.to_string());
        let pid = self.pid();
        let hard = format!("prlimit --pid {pid} --{name} --raw --noheadings --output HARD");
        self.sh(&format!(
            "hard=$({hard}) && prlimit --pid {pid} --{name}={soft}:"
        ));
    }

    fn sh(&self, line: &str) {
        let done = Command::new("sh").arg("-c").arg(line).status();
        let done = done.is_ok_and(|status| status.success());
        assert!(done, "{}: this fails: {line}", self.name);
    }

    /// Its exit status, if it has ended.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be waited for")
    }

    /// Waits for its end.
    pub async fn exit(&mut self) -> ExitStatus {
        self.exit_within(PATIENCE).await
    }

    /// Like [`exit`](Self::exit), with another limit.
    pub async fn exit_within(&mut self, limit: Duration) -> ExitStatus {
        let what = format!("the end of {}", self.name);
        eventually(&what, limit, async || {
            self.exited().ok_or_else(|| "still running".to_owned())
        })
        .await
    }

    /// Sends SIGTERM and waits a while. Needed for a process whose children survive its SIGKILL.
    pub fn say_goodbye(&mut self) {
        let deadline = Instant::now() + FAREWELL;
        if self.exited().is_none() {
            self.signal("TERM");
        }
        while self.exited().is_none() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Sends SIGKILL and waits for the end.
    pub fn kill(&mut self) {
        // An error means that it has already ended.
        self.child.kill().ok();
        self.child.wait().expect("a child can be waited for");
    }

    fn show_log(&self) {
        // Redis logs to its standard output.
        let log = self.output() + &self.log();
        let lines: Vec<_> = log.lines().collect();
        let tail = &lines[lines.len().saturating_sub(LOG_TAIL)..];
        eprintln!("--- end of the log of {}:\n{}", self.name, tail.join("\n"));
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
        if thread::panicking() {
            self.show_log();
        }
    }
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}
