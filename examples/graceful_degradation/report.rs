//! The numbers, as a table, as JSON and as a page.

use std::{
    env, fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use crate::{
    cli::Problem,
    measure::{Machine, Outcome, Report, Run},
};

/// The page; the report replaces the marker.
const PAGE: &str = include_str!("../assets/report.html");
const MARKER: &str = "/*REPORT_JSON*/null";
/// What is read without scripts replaces this one.
const STATIC: &str = "<!--STATIC-->";

pub(crate) fn write_json(path: &Path, report: &Report) -> Result<(), Problem> {
    let json = serde_json::to_string_pretty(report).map_err(Problem::new)?;
    write(path, &json)
}

pub(crate) fn write_html(path: &Path, report: &Report) -> Result<(), Problem> {
    // Inside a script element only `<` can do harm.
    let json = serde_json::to_string(report)
        .map_err(Problem::new)?
        .replace('<', "\\u003c");
    let page = explained(PAGE).replacen(MARKER, &json, 1);
    write(path, &page.replacen(STATIC, &crate::page::page(report), 1))
}

/// A page with what the words of decisions mean.
pub(crate) fn explained(page: &str) -> String {
    const GLOSSARY: &str = include_str!("../assets/glossary.js");
    page.replacen("/*GLOSSARY*/", GLOSSARY, 1)
}

pub(crate) fn write_svg(path: &Path, report: &Report) -> Result<(), Problem> {
    write(path, &crate::chart::svg(report))
}

fn write(path: &Path, text: &str) -> Result<(), Problem> {
    fs::write(path, text)
        .map_err(|error| Problem::new(format_args!("cannot write {}: {error}", path.display())))
}

/// Fails if the file could not be written after the run, without leaving one behind.
pub(crate) fn check_writable(path: &Path) -> Result<(), Problem> {
    let written = if path.exists() {
        fs::OpenOptions::new().append(true).open(path).map(drop)
    } else {
        let parent = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        tempfile::tempfile_in(parent.unwrap_or_else(|| Path::new("."))).map(drop)
    };
    written.map_err(|error| Problem::new(format_args!("cannot write {}: {error}", path.display())))
}

/// Beside what cargo built, or here.
pub(crate) fn default_html() -> PathBuf {
    const NAME: &str = "graceful-degradation.html";
    let built = env::current_exe().ok().and_then(|exe| {
        let target = exe
            .ancestors()
            .find(|folder| folder.join("CACHEDIR.TAG").is_file())?;
        Some(target.join(NAME))
    });
    built.unwrap_or_else(|| NAME.into())
}

pub(crate) fn machine() -> Machine {
    let cpu = fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("model name"))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    });
    let memory = fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let kib = text.lines().next()?.split_whitespace().nth(1)?;
        Some(kib.parse::<u64>().ok()?.div_ceil(1 << 20))
    });
    Machine {
        cpu: cpu.unwrap_or_else(|| env::consts::ARCH.to_owned()),
        cores: cores(),
        memory_gib: memory,
        os: env::consts::OS,
    }
}

pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// One table for each run, then the checks.
pub(crate) fn print(report: &Report) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for run in &report.runs {
        print_run(&mut out, run)?;
    }
    writeln!(out)?;
    for problem in &report.conditions.problems {
        writeln!(out, "NOT MEASURABLE  this machine is busy: {problem}")?;
    }
    for check in &report.checks {
        let mark = match report.result(check) {
            Outcome::Met => "met    ",
            Outcome::NotMet => "NOT MET",
            Outcome::NotMeasurable => "unknown",
        };
        writeln!(
            out,
            "{mark}  {}: {} (expected {})",
            check.name, check.measured, check.expected
        )?;
    }
    Ok(())
}

fn print_run(out: &mut impl Write, run: &Run) -> io::Result<()> {
    writeln!(
        out,
        "\n{}\n{:>6} {:>9} {:>9} {:>7} {:>7} {:>7} {:>7} {:>8} {:>8} {:>8} {:>11}",
        run.name,
        "load",
        "offered/s",
        "goodput/s",
        "late/s",
        "503/s",
        "429/s",
        "fail/s",
        "P50 ms",
        "P95 ms",
        "P99 ms",
        "connections"
    )?;
    let number =
        |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1}"));
    for phase in &run.phases {
        writeln!(
            out,
            "{:>5}x {:>9.0} {:>9.0} {:>7.0} {:>7.0} {:>7.0} {:>7.0} {:>8} {:>8} {:>8} {:>11}",
            phase.multiplier,
            phase.offered_rps,
            phase.goodput_rps,
            phase.late_rps,
            phase.shed_rps,
            phase.limited_rps,
            phase.error_rps,
            number(phase.p50_ms),
            number(phase.p95_ms),
            number(phase.p99_ms),
            number(phase.pool_size_mean),
        )?;
    }
    Ok(())
}
