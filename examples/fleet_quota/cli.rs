//! The command line, and what is refused in it.

use std::{
    fmt,
    fs::OpenOptions,
    ops::Range,
    path::{Path, PathBuf},
    str::FromStr,
};

use clap::{Parser, error::ErrorKind};

/// Runs several servers that share one quota on a private Redis, kills the Redis in the middle,
/// and compares what they admit with what the quota allows, second by second.
#[derive(Clone, Debug, Parser)]
#[command(name = "fleet_quota", version)]
pub(crate) struct Options {
    /// Server processes.
    #[arg(long, value_name = "N", default_value_t = 4, allow_negative_numbers = true,
          value_parser = within::<1, 16>)]
    pub(crate) processes: u32,

    /// Length of the run.
    #[arg(long, value_name = "N", default_value_t = 15, allow_negative_numbers = true,
          value_parser = within::<3, 600>)]
    pub(crate) seconds: u32,

    /// Requests a second that the quota allows.
    #[arg(long, value_name = "RPS", default_value_t = 400, allow_negative_numbers = true,
          value_parser = within::<1, 20_000>)]
    pub(crate) quota: u32,

    /// Requests that the quota allows at once; half of what it allows a second by default.
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = within::<1, 1_000_000>)]
    burst: Option<u32>,

    /// Requests a second that are sent; five times the quota by default, and at most 50,000.
    #[arg(long, value_name = "RPS", allow_negative_numbers = true, value_parser = within::<1, 50_000>)]
    offered: Option<u32>,

    /// Ask Redis for every request instead of leasing ahead.
    #[arg(long)]
    pub(crate) exact: bool,

    /// The seconds in which there is no Redis; the second third by default.
    #[arg(long, value_name = "FROM..TO", conflicts_with = "no_outage")]
    outage: Option<Outage>,

    /// Leave Redis alone.
    #[arg(long)]
    no_outage: bool,

    /// Write the numbers to this file.
    #[arg(long, value_name = "PATH")]
    pub(crate) json: Option<PathBuf>,

    /// Be one of the servers, on the Redis at this URL.
    #[arg(long, value_name = "URL", hide = true)]
    pub(crate) node: Option<String>,
}

impl Options {
    pub(crate) fn burst(&self) -> u32 {
        self.burst.unwrap_or_else(|| (self.quota / 2).max(1))
    }

    pub(crate) fn offered(&self) -> u32 {
        self.offered.unwrap_or(5 * self.quota).min(50_000)
    }

    /// The seconds without Redis.
    pub(crate) fn outage(&self) -> Option<Range<u32>> {
        let third = self.seconds / 3;
        let asked = self.outage.as_ref().map(|outage| outage.0.clone());
        (!self.no_outage).then(|| asked.unwrap_or(third..2 * third))
    }
}

fn within<const MIN: u32, const MAX: u32>(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(number) if (MIN..=MAX).contains(&number) => Ok(number),
        _ => Err(format!("expected a whole number in {MIN}..={MAX}")),
    }
}

/// `FROM..TO`, the last exclusive.
#[derive(Clone, Debug)]
struct Outage(Range<u32>);

impl FromStr for Outage {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let range = text
            .split_once("..")
            .and_then(|(from, to)| Some(from.parse().ok()?..to.parse().ok()?));
        match range {
            Some(range) if range.start >= 1 && range.start < range.end => Ok(Self(range)),
            _ => Err("expected FROM..TO in seconds with 1 <= FROM < TO, such as 5..10".to_owned()),
        }
    }
}

/// One line: which value is invalid, why, and what was expected.
#[derive(Debug)]
pub(crate) struct Problem(String);

impl Problem {
    pub(crate) fn new(text: impl fmt::Display) -> Self {
        // One line, even of a wrapped text.
        let text = text.to_string();
        Self(text.lines().map(str::trim).collect::<Vec<_>>().join(" "))
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

pub(crate) fn parse() -> Result<Options, Problem> {
    let options = Options::try_parse().map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => error.exit(),
        _ => {
            let text = error.to_string();
            let said = text.split("\n\n").next().unwrap_or("unusable arguments");
            Problem::new(said.trim_start_matches("error: "))
        }
    })?;
    if let Some(outage) = options.outage()
        && outage.end >= options.seconds
    {
        return Err(Problem::new(format_args!(
            "outage {}..{} of a run of {} s, expected it to end before the run does",
            outage.start, outage.end, options.seconds
        )));
    }
    if let Some(path) = &options.json {
        // Said before the run, not after it.
        let parent = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        if let Some(parent) = parent.filter(|parent| !parent.is_dir()) {
            return Err(Problem::new(format_args!(
                "cannot write {}: {} is not a directory that exists",
                path.display(),
                parent.display()
            )));
        }
        let parent = parent.unwrap_or_else(|| Path::new("."));
        let written = match path.exists() {
            true => OpenOptions::new().append(true).open(path).map(drop),
            false => tempfile::tempfile_in(parent).map(drop),
        };
        written.map_err(|error| {
            Problem::new(format_args!("cannot write {}: {error}", path.display()))
        })?;
    }
    Ok(options)
}
