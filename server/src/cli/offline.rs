//! `elanus verify`, `repair` and `inspect`: a data directory without its node.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args as ClapArgs, ValueEnum};
use elanus_storage::offline::{self, Kind, Report, Severity};

/// The exit code when damage was found.
const DAMAGED: u8 = 1;

/// Checks a data directory whose node is stopped, and names what is damaged. Changes nothing.
///
/// Exit status: 0 if nothing is lost, 1 if something is damaged, 2 if it could not be checked.
#[derive(Debug, ClapArgs)]
pub(crate) struct VerifyArgs {
    /// The data directory
    dir: PathBuf,
    /// Recompute all checksums, and check that the files agree with each other
    #[arg(long)]
    deep: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Goes back to the last good state of a damaged data directory, and says what that drops.
///
/// Without `--yes` nothing is changed. Damaged files are kept in DIR/damaged. Exit status: 0 if
/// nothing had to be dropped or it was, 1 if `--yes` would drop something, 2 if it cannot be
/// repaired.
#[derive(Debug, ClapArgs)]
pub(crate) struct RepairArgs {
    /// The data directory
    dir: PathBuf,
    /// Do it
    #[arg(long)]
    yes: bool,
}

/// Prints what a file of a data directory says, as JSON.
#[derive(Debug, ClapArgs)]
pub(crate) struct InspectArgs {
    /// What the file is
    kind: FileKind,
    /// The file; for a log, a manifest or the catalog also the directory
    path: PathBuf,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum FileKind {
    Log,
    Segment,
    Manifest,
    Catalog,
}

/// Prints the findings; the exit code tells whether data is lost.
pub(crate) fn verify(args: &VerifyArgs) -> anyhow::Result<ExitCode> {
    let report = offline::verify(&args.dir, args.deep)?;
    let out = &mut io::stdout().lock();
    if args.json {
        let mut shown = serde_json::to_value(&report)?;
        shown["sound"] = report.is_sound().into();
        writeln!(out, "{shown:#}")?;
    } else {
        print(&report, out)?;
    }
    Ok(if report.is_sound() { ExitCode::SUCCESS } else { DAMAGED.into() })
}

fn print(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    for finding in &report.findings {
        let kind = match finding.severity {
            Severity::Damage => "damaged",
            Severity::Index => "is built anew by the node",
            Severity::Leftover => "is removed by the node",
        };
        writeln!(out, "{}: {kind}: {}", finding.path.display(), finding.problem)?;
    }
    let Report { collections, segments, rows, records, .. } = report;
    let verdict = if report.is_sound() { "sound" } else { "damaged: see `elanus repair`" };
    writeln!(
        out,
        "{collections} collections, {segments} sealed segments with {rows} rows, {records} log \
         records: {verdict}"
    )?;
    if !report.deep {
        writeln!(out, "columns and relations between files were not checked: `--deep` does")?;
    }
    Ok(())
}

/// Prints what is dropped, and drops it if told to.
pub(crate) fn repair(args: &RepairArgs) -> anyhow::Result<ExitCode> {
    let plan = offline::repair(&args.dir, false)?;
    let out = &mut io::stdout().lock();
    if plan.dropped.is_empty() {
        writeln!(out, "nothing is damaged that a start would not mend by itself")?;
        return Ok(ExitCode::SUCCESS);
    }
    for what in &plan.dropped {
        writeln!(out, "{} {what}", if args.yes { "drops" } else { "would drop" })?;
    }
    if !args.yes {
        writeln!(out, "nothing was changed; `--yes` does it and keeps the files in DIR/damaged")?;
        return Ok(DAMAGED.into());
    }
    out.flush()?;
    offline::repair(&args.dir, true)?;
    writeln!(out, "done; the damaged files are in {}", args.dir.join("damaged").display())?;
    Ok(ExitCode::SUCCESS)
}

/// Prints the file.
pub(crate) fn inspect(args: &InspectArgs) -> anyhow::Result<ExitCode> {
    let kind = match args.kind {
        FileKind::Log => Kind::Log,
        FileKind::Segment => Kind::Segment,
        FileKind::Manifest => Kind::Manifest,
        FileKind::Catalog => Kind::Catalog,
    };
    let mut out = io::BufWriter::new(io::stdout().lock());
    let shown = offline::inspect(kind, &args.path, &mut out);
    out.flush()?;
    Ok(shown.map(|()| ExitCode::SUCCESS)?)
}
