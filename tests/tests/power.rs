//! Nothing acknowledged is lost when power is cut.
//!
//! The data directory lies on an ext4 file system of its own, in a file on a loop device. Under
//! four writers `EXT4_IOC_SHUTDOWN` takes the file system away at once, the journal unflushed:
//! what was not synced is gone, as with the power. The image is mounted again, the node reopened,
//! and everything it holds compared with what it acknowledged.
//!
//! This needs root and loop devices; where they are not to be had the test says so and passes.
//! `ELANUS_POWER_CUTS=30` cuts more often.
#![expect(unsafe_code, reason = "the shutdown of a file system is an ioctl that nobody wraps")]

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use elanus_tests::ledger::{self, End, Ledger};
use elanus_tests::{Random, TestNode, from_env};
use rustix::ioctl::{Setter, ioctl, opcode};

/// Whether this round's cut has begun.
static CUT: AtomicBool = AtomicBool::new(false);

const WRITERS: usize = 4;
const IMAGE_BYTES: u64 = 192 << 20;

/// Drop the journal that is not on disk yet (`EXT4_GOING_FLAGS_NOLOGFLUSH`).
const NO_LOG_FLUSH: u32 = 2;

/// An ext4 file system in a file; unmounted on drop.
struct Image {
    home: tempfile::TempDir,
    mounted: bool,
}

impl Image {
    fn new() -> Result<Self> {
        ensure!(rustix::process::geteuid().is_root(), "only root can mount");
        let image = Self { home: tempfile::tempdir()?, mounted: false };
        std::fs::File::create(image.file())?.set_len(IMAGE_BYTES)?;
        std::fs::create_dir(image.dir())?;
        command("mkfs.ext4", &["-q", "-F"], &[&image.file()])?;
        Ok(image)
    }

    fn file(&self) -> std::path::PathBuf {
        self.home.path().join("image")
    }

    fn dir(&self) -> std::path::PathBuf {
        self.home.path().join("mounted")
    }

    fn mount(&mut self) -> Result<()> {
        command("mount", &["-t", "ext4", "-o", "loop"], &[&self.file(), &self.dir()])?;
        self.mounted = true;
        Ok(())
    }

    fn unmount(&mut self) -> Result<()> {
        self.mounted = false;
        command("umount", &[], &[&self.dir()])
    }

    /// Everything that is not on the device by now never gets there.
    fn cut(&self) -> Result<()> {
        const SHUTDOWN: rustix::ioctl::Opcode = opcode::read::<u32>(b'X', 125);
        let dir = std::fs::File::open(self.dir())?;
        // SAFETY: the kernel's `EXT4_IOC_SHUTDOWN` is `_IOR('X', 125, __u32)` and, in spite of
        // that direction, only reads the flags that the pointer of `Setter` leads to.
        unsafe { ioctl(&dir, Setter::<SHUTDOWN, u32>::new(NO_LOG_FLUSH)) }?;
        Ok(())
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        if self.mounted {
            // A test that failed: the mount must not outlive it.
            let _ = command("umount", &["-l"], &[&self.dir()]);
        }
    }
}

fn command(name: &str, options: &[&str], paths: &[&Path]) -> Result<()> {
    let output = Command::new(name).args(options).args(paths).output().context(name.to_owned())?;
    if !output.status.success() {
        bail!("{name}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// The image mounted, if this machine can do it, and cut once to see that it can.
fn prepare() -> Result<Image> {
    let mut image = Image::new()?;
    image.mount()?;
    std::fs::write(image.dir().join("lost"), "never synced")?;
    image.cut()?;
    image.unmount()?;
    image.mount()?;
    ensure!(!image.dir().join("lost").exists(), "the file system kept what was not synced");
    Ok(image)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_find_every_acknowledged_row_after_power_was_cut() {
    let mut image = match prepare() {
        Ok(image) => image,
        Err(reason) => {
            eprintln!("SKIPPED: power cannot be cut here: {reason:#}");
            return;
        }
    };
    let seed = Random::seed_from_env(20_261_122);
    let rounds = from_env("ELANUS_POWER_CUTS", 5);
    let mut random = Random::new(seed);
    let data_dir = image.dir().join("data");
    let mut node = TestNode::start_in(&data_dir).unwrap();
    ledger::create(&mut node.client().await.unwrap()).await.unwrap();

    let mut ledgers: Vec<Ledger> = (0..WRITERS).map(|_| Ledger::default()).collect();
    for round in 0..rounds {
        CUT.store(false, Ordering::SeqCst);
        let mut tasks = Vec::new();
        for (writer, ledger) in ledgers.drain(..).enumerate() {
            let client = node.client().await.unwrap();
            let random = Random::new(random.bits());
            let write =
                ledger::write_until_cut_off(client, writer, ledger, random, End::Refusal(&CUT));
            tasks.push(tokio::spawn(write));
        }
        tokio::time::sleep(Duration::from_millis(20 + random.below(400) as u64)).await;
        CUT.store(true, Ordering::SeqCst);
        image.cut().unwrap();
        for task in tasks {
            ledgers.push(task.await.unwrap().unwrap());
        }
        node.kill9().unwrap();
        image.unmount().unwrap();
        image.mount().unwrap();
        node.reopen().unwrap();
        let mut client = node.client().await.unwrap();
        for (writer, ledger) in ledgers.iter_mut().enumerate() {
            ledger::verify(&mut client, writer, ledger, &mut random)
                .await
                .unwrap_or_else(|error| panic!("round {round}, writer {writer}: {error:#}"));
        }
    }
    node.kill9().unwrap();
    image.unmount().unwrap();
    let acknowledged: usize = ledgers.iter().map(Ledger::acknowledged).sum();
    let rows: usize = ledgers.iter().map(Ledger::rows).sum();
    eprintln!("{rounds} power cuts, {acknowledged} acknowledged calls, {rows} rows at the end");
    assert!(acknowledged > rounds * WRITERS, "the writers hardly wrote: the test proves nothing");
}
