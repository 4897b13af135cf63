//! Five capacity documents, run on real servers: with the numbers they tell their readers to copy, and
//! with none.
//!
//! ```text
//! cargo run --release -p overload-benches --bin profiles                      # all five
//! cargo run --release -p overload-benches --bin profiles -- --profile mina --quick
//! cargo run --release -p overload-benches --bin profiles -- --file mine.toml --html mine.html
//! ```
//!
//! A profile is a file like `benches/profiles/mina.toml`; another one needs no code. Pods are processes,
//! Postgres, its replicas, `PgBouncer` and Redis are private servers. The exit code is 0 if our defaults met
//! every target, 1 if not, and 2 if a profile could not be run.

mod api;
mod driver;
mod fleet;
mod judge;
mod load;
mod measure;
mod page;
mod pod;
mod profile;
mod report;
mod servers;
mod sockets;
mod target;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};

use crate::driver::{Driver, Played};
use crate::profile::Profile;

/// Runs capacity documents: with their own numbers, and with none.
#[derive(Debug, Parser)]
#[command(name = "profiles")]
struct Options {
    /// Only this profile; may be given again.
    #[arg(long, value_name = "NAME")]
    profile: Vec<String>,

    /// A profile of your own in place of the shipped ones; may be given again.
    #[arg(long, value_name = "PATH", conflicts_with = "profile")]
    file: Vec<PathBuf>,

    /// A few seconds for each level: to see it work, not to measure.
    #[arg(long)]
    quick: bool,

    /// Writes all numbers as JSON.
    #[arg(long, value_name = "PATH")]
    json: Option<PathBuf>,

    /// Where the page is written.
    #[arg(long, value_name = "PATH", default_value = "profiles.html")]
    html: PathBuf,

    /// Writes each filled document as markdown into this directory.
    #[arg(long, value_name = "DIRECTORY")]
    results: Option<PathBuf>,

    /// Writes how a pod explained itself after each level into this directory.
    #[arg(long, value_name = "DIRECTORY")]
    explain: Option<PathBuf>,

    /// Be one of the pods.
    #[arg(long, hide = true)]
    pod: bool,
}

/// The shipped profiles.
const SHIPPED: [&str; 5] = [
    include_str!("mina.toml"),
    include_str!("muejam.toml"),
    include_str!("voiceassist.toml"),
    include_str!("tripo04os.toml"),
    include_str!("hiremebahamas.toml"),
];

fn main() -> ExitCode {
    let options = Options::parse();
    let done = match options.pod {
        true => pod::serve().map(|()| true),
        false => run(&options),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(problem) => {
            eprintln!("error: {problem}");
            ExitCode::from(2)
        }
    }
}

fn chosen(options: &Options) -> Result<Vec<Profile>, Box<dyn Error>> {
    if !options.file.is_empty() {
        let read = |path: &PathBuf| {
            let at = |error: &dyn Error| format!("{}: {error}", path.display());
            let text = std::fs::read_to_string(path).map_err(|error| at(&error))?;
            Ok(Profile::parse(&text).map_err(|error| at(&error))?)
        };
        return options.file.iter().map(read).collect();
    }
    let all: Result<Vec<_>, _> = SHIPPED.iter().map(|text| Profile::parse(text)).collect();
    let mut all = all?;
    for name in &options.profile {
        if !all.iter().any(|profile| profile.name == *name) {
            let names: Vec<_> = all.iter().map(|profile| profile.name.as_str()).collect();
            let names = names.join(", ");
            return Err(format!("no profile is named {name:?}; expected one of {names}").into());
        }
    }
    if !options.profile.is_empty() {
        all.retain(|profile| options.profile.contains(&profile.name));
    }
    Ok(all)
}

fn run(options: &Options) -> Result<bool, Box<dyn Error>> {
    let profiles = chosen(options)?;
    for directory in options.results.iter().chain(&options.explain) {
        std::fs::create_dir_all(directory)?;
    }
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let style = ProgressStyle::with_template("{bar:30} {pos:>4}/{len} s  {msg}")?;
    let mut played: Vec<Played> = Vec::new();
    for profile in &profiles {
        let mut driver = Driver {
            profile,
            quick: options.quick,
            bar: ProgressBar::hidden(),
        };
        driver.bar = ProgressBar::new(driver.length()).with_style(style.clone());
        let one = runtime.block_on(driver.play())?;
        driver.bar.finish_and_clear();
        print!("{}", report::table(&one));
        if let Some(directory) = &options.results {
            let path = directory.join(format!("{}.md", profile.name));
            std::fs::write(path, report::document(&one))?;
        }
        if let Some(directory) = &options.explain {
            for run in &one.runs {
                for (level, text) in &run.explained {
                    let file = format!("{}-{}-{level}.txt", profile.name, run.way);
                    std::fs::write(directory.join(file), text)?;
                }
            }
        }
        played.push(one);
    }
    if let Some(path) = &options.json {
        std::fs::write(path, serde_json::to_string_pretty(&played)?)?;
    }
    std::fs::write(&options.html, page::page(&played))?;
    println!("page: {}", options.html.display());
    Ok(played.iter().all(report::is_met))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shipped_profile_parses_and_names_differ() {
        let mut names: Vec<_> = SHIPPED
            .iter()
            .map(|text| Profile::parse(text).map_or_else(|error| panic!("{error}"), |p| p.name))
            .collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), SHIPPED.len());
    }

    #[test]
    fn a_bad_value_is_refused_by_its_name_with_what_was_expected() {
        let mina = SHIPPED[0];
        for (from, to, named, expected) in [
            (
                "load = 0.25",
                "load = -1.0",
                "scale.load",
                "a number above 0",
            ),
            ("pods = 2", "pods = 99", "`pods` of level `low`", "1 to 32"),
            (
                "metric = \"p95_ms\"",
                "metric = \"p94_ms\"",
                "p94_ms",
                "one of",
            ),
            (
                "kind = \"beyond\"",
                "kind = \"above\"",
                "above",
                "`plan` or `beyond`",
            ),
            (
                "level = \"2x\"",
                "level = \"top\"",
                "sweep.level",
                "the name of a level",
            ),
            ("seconds = 12", "second = 12", "second", "seconds"),
        ] {
            assert!(mina.contains(from), "{from}");
            let error = Profile::parse(&mina.replacen(from, to, 1)).expect_err(to);
            let text = error.to_string();
            assert!(
                text.contains(named) && text.contains(expected),
                "{to}: {text}"
            );
        }
    }
}
