//! A node under test: the real binary, spawned, killed and reopened.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use elanus_proto::milvus::milvus_service_client::MilvusServiceClient;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

/// How long a node may take to become ready. Recovery of what the tests write takes a fraction
/// of a second; the rest is for machines that run everything at once.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// How long a node that was told to end may take before the test fails; what is measured
/// against the promise of two seconds is the time that [`TestNode::terminate`] returns.
const END_WITHIN: Duration = Duration::from_secs(20);

/// The largest message a test sends or reads.
const MESSAGE_BYTES: usize = 256 << 20;

/// A running node on a directory of its own. Dropping it kills the process and removes the
/// directory; if that happens while a test fails, the end of the node's log is printed.
pub struct TestNode {
    home: TempDir,
    data_dir: PathBuf,
    settings: Vec<String>,
    child: Option<Child>,
    grpc: String,
    ops: String,
}

impl TestNode {
    /// Starts a node on an empty directory and waits until it is ready.
    ///
    /// # Errors
    /// When the binary is missing, or the node ends or is not ready in time; with its log.
    pub fn start() -> Result<Self> {
        Self::start_with(&[])
    }

    /// As [`Self::start`], with settings of the form `KEY=VALUE`, which stay through restarts.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with(settings: &[&str]) -> Result<Self> {
        let home = home()?;
        let data_dir = home.path().join("data");
        Self::start_on(home, data_dir, settings)
    }

    /// Starts a node on a data directory that outlives it.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_in(data_dir: &Path) -> Result<Self> {
        Self::start_on(home()?, data_dir.to_owned(), &[])
    }

    fn start_on(home: TempDir, data_dir: PathBuf, settings: &[&str]) -> Result<Self> {
        let (grpc, ops) = (String::new(), String::new());
        let settings = settings.iter().map(|&setting| setting.to_owned()).collect();
        let mut node = Self { home, data_dir, settings, child: None, grpc, ops };
        node.reopen()?;
        Ok(node)
    }

    /// Starts the node again on its directory, after [`Self::kill9`] or [`Self::terminate`].
    ///
    /// # Errors
    /// As [`Self::start`]; also when the node is still running.
    pub fn reopen(&mut self) -> Result<()> {
        ensure!(self.child.is_none(), "the node is still running");
        let log = File::options().create(true).append(true).open(self.log())?;
        let child = self.command()?.stdout(log.try_clone()?).stderr(log).spawn()?;
        let pid = child.id();
        self.child = Some(child);
        let began = Instant::now();
        while !self.is_ready(pid) {
            if let Some(status) = self.child.as_mut().and_then(|c| c.try_wait().transpose()) {
                bail!("the node ended with {} before it was ready\n{}", status?, self.log_tail());
            }
            ensure!(
                began.elapsed() < READY_WITHIN,
                "the node was not ready within {READY_WITHIN:?}\n{}",
                self.log_tail()
            );
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Kills the process at once, as a power switch does to it.
    ///
    /// # Errors
    /// When the node is not running.
    pub fn kill9(&mut self) -> Result<()> {
        let mut child = self.child.take().context("the node is not running")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Sends SIGTERM and returns how long the process took to end, and how it ended.
    ///
    /// # Errors
    /// When the node is not running, or does not end at all.
    pub fn terminate(&mut self) -> Result<(Duration, ExitStatus)> {
        let mut child = self.child.take().context("the node is not running")?;
        let began = Instant::now();
        kill_process(Pid::from_child(&child), Signal::TERM)?;
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok((began.elapsed(), status));
            }
            if began.elapsed() > END_WITHIN {
                child.kill()?;
                child.wait()?;
                bail!("the node did not end within {END_WITHIN:?}\n{}", self.log_tail());
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// The command that runs a node on this directory and free ports.
    ///
    /// # Errors
    /// When the binary is missing.
    pub fn command(&self) -> Result<Command> {
        let mut command = Command::new(binary()?);
        command
            .arg("serve")
            .arg("--data-dir")
            .arg(self.data_dir())
            .args(["--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0"])
            .args(self.settings.iter().flat_map(|setting| ["--set", setting]))
            .env("RUST_BACKTRACE", "1")
            .stdin(Stdio::null());
        Ok(command)
    }

    /// A client of this node. Each has a connection of its own.
    ///
    /// # Errors
    /// When the node cannot be reached.
    pub async fn client(&self) -> Result<MilvusServiceClient<Channel>> {
        let channel = Endpoint::from_shared(format!("http://{}", self.grpc))?.connect().await?;
        Ok(MilvusServiceClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES)
            .max_encoding_message_size(MESSAGE_BYTES))
    }

    /// The process id.
    ///
    /// # Errors
    /// When the node is not running.
    pub fn pid(&self) -> Result<u32> {
        Ok(self.child.as_ref().context("the node is not running")?.id())
    }

    /// The directory that holds everything the node keeps.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// What the node has said so far, over all its lives.
    pub fn log_text(&self) -> String {
        std::fs::read(self.log())
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// The body of a page of the ops port, and whether its status is 200.
    ///
    /// # Errors
    /// When the port cannot be reached.
    pub fn ops_page(&self, path: &str) -> Result<(bool, String)> {
        get(&self.ops, path)
    }

    fn log(&self) -> PathBuf {
        self.home.path().join("node.log")
    }

    fn log_tail(&self) -> String {
        let text = self.log_text();
        let lines: Vec<&str> = text.lines().collect();
        let tail = &lines[lines.len().saturating_sub(60)..];
        format!("--- end of the node's log\n{}\n---", tail.join("\n"))
    }

    /// Reads where the process listens and asks whether it is ready. A file left behind by a
    /// killed process names another pid.
    fn is_ready(&mut self, pid: u32) -> bool {
        let Ok(text) = std::fs::read(self.data_dir().join("endpoint.json")) else { return false };
        let Ok(endpoint) = serde_json::from_slice::<serde_json::Value>(&text) else { return false };
        if endpoint["pid"] != pid {
            return false;
        }
        let (Some(grpc), Some(ops)) = (endpoint["grpc"].as_str(), endpoint["ops"].as_str()) else {
            return false;
        };
        (self.grpc, self.ops) = (grpc.to_owned(), ops.to_owned());
        get(&self.ops, "/readyz").is_ok_and(|(ok, _)| ok)
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself; then there is nothing to kill.
            let _ = child.kill();
            let _ = child.wait();
        }
        if thread::panicking() {
            eprintln!("{}", self.log_tail());
        }
    }
}

fn home() -> Result<TempDir> {
    Ok(tempfile::Builder::new().prefix("elanus-test-").tempdir()?)
}

/// The binary under test: `ELANUS_BIN`, or the one that cargo built next to this test.
fn binary() -> Result<PathBuf> {
    let path = match std::env::var_os("ELANUS_BIN") {
        Some(path) => PathBuf::from(path),
        // target/release/deps/crash-0123 -> target/release/elanus
        None => std::env::current_exe()?
            .ancestors()
            .nth(2)
            .map(|profile| profile.join("elanus"))
            .context("the test executable lies in no target directory")?,
    };
    ensure!(
        path.is_file(),
        "there is no node at {}: run `cargo build --release --bin elanus`, or set ELANUS_BIN",
        path.display()
    );
    Ok(path)
}

fn get(address: &str, path: &str) -> Result<(bool, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer has a head")?;
    Ok((head.starts_with("HTTP/1.1 200"), body.to_owned()))
}
