//! What processes have used, from `/proc`. Where there is none, nothing is known.

use std::collections::HashMap;
use std::fs;

use serde_json::{Value, json};

/// Ticks of the kernel's clock in a second, on every architecture that Linux has.
const TICKS_PER_SECOND: f64 = 100.0;

/// Seconds of CPU time that a process and those it started have used.
pub(super) fn cpu_seconds(pid: u32) -> Option<f64> {
    let family = family(pid);
    if family.is_empty() { None } else { Some(family.iter().map(|one| one.cpu_s).sum()) }
}

/// Seconds of CPU time that this thread has used.
pub(super) fn thread_cpu_seconds() -> Option<f64> {
    // The kernel brings the figure up to date when the thread offers its place.
    std::thread::yield_now();
    let stat = fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    let nanos: u64 = stat.split_whitespace().next()?.parse().ok()?;
    Some(nanos as f64 / 1e9)
}

/// Megabytes that a process and those it started keep in memory: of their own, and mapped files.
pub(super) fn memory(pid: u32) -> Value {
    let of = |key: &str| -> f64 {
        let sizes = family(pid).into_iter().filter_map(|one| {
            let status = fs::read_to_string(format!("/proc/{}/status", one.pid)).ok()?;
            let line = status.lines().find_map(|line| line.strip_prefix(key))?;
            line.split_whitespace().next()?.parse::<f64>().ok()
        });
        super::round(sizes.sum::<f64>() / 1000.0, 1)
    };
    json!({ "resident_mb": of("RssAnon:"), "mapped_resident_mb": of("RssFile:") })
}

struct Process {
    pid: u32,
    parent: u32,
    cpu_s: f64,
}

/// A process and all that descend from it.
fn family(pid: u32) -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let mut all: HashMap<u32, Process> =
        pids.filter_map(|pid| Some((pid, process(pid)?))).collect();
    let mut family: Vec<Process> = all.remove(&pid).into_iter().collect();
    let mut at = 0;
    while let Some(parent) = family.get(at).map(|one| one.pid) {
        let children: Vec<u32> =
            all.values().filter(|one| one.parent == parent).map(|one| one.pid).collect();
        family.extend(children.iter().filter_map(|child| all.remove(child)));
        at += 1;
    }
    family
}

fn process(pid: u32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field, the name, may hold anything. Parent is the fourth, user and system time
    // the fourteenth and fifteenth.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    let ticks = number(11)? + number(12)?;
    Some(Process { pid, parent: number(1)? as u32, cpu_s: ticks as f64 / TICKS_PER_SECOND })
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_used_memory_and_knows_its_children() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let own = std::process::id();
        let family: Vec<u32> = family(own).into_iter().map(|one| one.pid).collect();
        assert!(family.contains(&own) && family.contains(&child.id()));
        assert!(memory(own)["resident_mb"].as_f64().unwrap() > 0.0);
        assert!(cpu_seconds(own).is_some() && thread_cpu_seconds().is_some());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
