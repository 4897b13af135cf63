//! Where a server's programs are on this machine.

use std::env;
use std::path::{Path, PathBuf};

use crate::StartError;

/// A list of directories like `PATH`. If it is set, no others are searched.
const ONLY: &str = "PRIVATE_SERVERS_PATH";

/// The directory that holds all of `programs`.
///
/// Looks in `PATH` first, then in `elsewhere`, where a `*` stands for any one path component and
/// the highest name (the newest version) wins; or only in `PRIVATE_SERVERS_PATH` if that is set.
pub(crate) fn directory_of(
    programs: &[&str],
    elsewhere: &[&str],
    package: &str,
) -> Result<PathBuf, StartError> {
    let only = env::var_os(ONLY);
    let elsewhere = if only.is_some() { &[] } else { elsewhere };
    let place = if only.is_some() { ONLY } else { "PATH" };
    let path = only.or_else(|| env::var_os("PATH")).unwrap_or_default();
    env::split_paths(&path)
        .chain(elsewhere.iter().flat_map(|pattern| expand(pattern)))
        .find(|directory| {
            programs
                .iter()
                .all(|program| directory.join(program).is_file())
        })
        .ok_or_else(|| {
            StartError::new(format!(
                "no directory holds {}: looked in {}; install it, for example with \
                 `apt-get install {package}`",
                programs
                    .iter()
                    .map(|p| format!("`{p}`"))
                    .collect::<Vec<_>>()
                    .join(" and "),
                [&[place], elsewhere].concat().join(", "),
            ))
        })
}

fn expand(pattern: &str) -> Vec<PathBuf> {
    let Some((before, after)) = pattern.split_once('*') else {
        return vec![PathBuf::from(pattern)];
    };
    let (parent, prefix) = before.rsplit_once('/').unwrap_or(("", before));
    let mut found: Vec<_> = Path::new(parent)
        .read_dir()
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let version = name.strip_prefix(prefix)?.parse::<f64>().unwrap_or(0.0);
            Some((version, entry.path().join(after.trim_start_matches('/'))))
        })
        .collect();
    found.sort_by(|a, b| b.0.total_cmp(&a.0));
    found.into_iter().map(|(_, directory)| directory).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_names_what_was_looked_for_where_and_the_package() {
        let error = directory_of(&["no-such-server"], &["/no/such/*/bin"], "such-server")
            .expect_err("no machine has this program");
        let message = error.to_string();
        assert!(message.contains("`no-such-server`"), "{message}");
        assert!(message.contains("PATH, /no/such/*/bin"), "{message}");
        assert!(message.contains("apt-get install such-server"), "{message}");
        assert!(!message.contains('\n'), "{message}");
    }

    #[test]
    fn the_newest_version_directory_comes_first() {
        let root = tempfile::tempdir().expect("a temporary directory");
        for version in ["9", "14", "15"] {
            std::fs::create_dir_all(root.path().join(version).join("bin")).expect("a directory");
        }
        let pattern = format!("{}/*/bin", root.path().display());
        let versions: Vec<_> = expand(&pattern)
            .iter()
            .map(|bin| {
                bin.strip_prefix(root.path())
                    .expect("inside the root")
                    .to_owned()
            })
            .collect();
        assert_eq!(versions, ["15/bin", "14/bin", "9/bin"].map(PathBuf::from));
    }
}
