//! What the programs of this package have in common: how they end, what they choose, where they write.

use std::{
    fmt::Display,
    fs::{self, OpenOptions},
    path::PathBuf,
    process::ExitCode,
    str::FromStr,
};

/// Success, or the problem in one line and exit code 2, as for arguments that cannot be parsed.
pub fn ended(done: Result<(), impl Display>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("error: {problem}");
            ExitCode::from(2)
        }
    }
}

/// Checks that each of `parts` is a part of one of `names`, by `is`.
///
/// # Errors
///
/// Says which is not, for which option, and what the names are.
pub fn check(
    option: &str,
    parts: &[String],
    names: &[String],
    is: impl Fn(&str, &str) -> bool,
) -> Result<(), String> {
    match parts
        .iter()
        .find(|part| !names.iter().any(|name| is(part, name)))
    {
        Some(unknown) => {
            let names = names.join("`, `");
            Err(format!(
                "{option} is {unknown}: expected a part of `{names}`"
            ))
        }
        None => Ok(()),
    }
}

/// A file for results. That it can be written is known before they are computed.
#[derive(Clone, Debug)]
pub struct Output {
    path: PathBuf,
}

impl FromStr for Output {
    type Err = String;

    fn from_str(path: &str) -> Result<Self, String> {
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .map_err(|error| format!("it cannot be written: {error}"))?;
        Ok(Self { path: path.into() })
    }
}

impl Output {
    /// Replaces what the file holds.
    ///
    /// # Errors
    ///
    /// When the file cannot be written any more, with its path.
    pub fn write(&self, text: impl Display) -> Result<(), String> {
        fs::write(&self.path, text.to_string())
            .map_err(|error| format!("cannot write {}: {error}", self.path.display()))
    }
}
