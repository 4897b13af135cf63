//! Compares the public API of a crate with a listing, and the crates that it names with those allowed.
//!
//! `public-api-listing RUSTDOC.json LISTING.txt [--update]`. The listing opens with a line that names
//! the crates that types in the API may come from: a new major version of one of them is a new major
//! version of ours.

use std::{collections::BTreeSet, env, error::Error, fs, process::ExitCode};

const NAMES: &str = "# may name: ";

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let (json, listing, update) = match &arguments[..] {
        [json, listing] => (json, listing, false),
        [json, listing, flag] if flag == "--update" => (json, listing, true),
        _ => return Err("usage: public-api-listing RUSTDOC.json LISTING.txt [--update]".into()),
    };
    let api = public_api::Builder::from_rustdoc_json(json)
        .omit_auto_derived_impls(true)
        .omit_auto_trait_impls(true)
        .omit_blanket_impls(true)
        .build();
    let api = match api {
        Ok(api) => api,
        Err(error) => {
            println!(
                "not compared with {listing}: rustdoc of this toolchain writes what public-api cannot read ({error})"
            );
            return Ok(ExitCode::SUCCESS);
        }
    };
    let items = api.items().map(ToString::to_string);
    // Bounds that a macro writes and no user can.
    let items: Vec<String> = items.filter(|item| !item.contains("__private")).collect();

    let before = fs::read_to_string(listing).unwrap_or_default();
    let names = before
        .lines()
        .next()
        .and_then(|line| line.strip_prefix(NAMES));
    let names: BTreeSet<&str> = names.unwrap_or_default().split(", ").collect();
    let strangers = roots(&items);
    let strangers: Vec<&str> = strangers.difference(&names).copied().collect();
    if !strangers.is_empty() {
        println!(
            "{listing}: the API names types of {}, which its first line does not allow",
            strangers.join(", ")
        );
        return Ok(ExitCode::FAILURE);
    }
    let names: Vec<&str> = names.into_iter().collect();
    let now = format!("{NAMES}{}\n{}\n", names.join(", "), items.join("\n"));
    if update {
        fs::write(listing, now)?;
        return Ok(ExitCode::SUCCESS);
    }
    if now == before {
        return Ok(ExitCode::SUCCESS);
    }
    println!(
        "{listing}: the public API differs; if that is meant, run `.ci/public-api/run --update`"
    );
    let (before, now): (BTreeSet<_>, BTreeSet<_>) =
        (before.lines().collect(), now.lines().collect());
    for gone in before.difference(&now) {
        println!("- {gone}");
    }
    for new in now.difference(&before) {
        println!("+ {new}");
    }
    Ok(ExitCode::FAILURE)
}

/// The crates that paths of the API start with.
fn roots(items: &[String]) -> BTreeSet<&str> {
    let mut roots = BTreeSet::new();
    for item in items {
        let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
        for word in item.split(|c| !is_path(c)) {
            if let Some((root, _)) = word.split_once("::")
                && !matches!(root, "f64" | "u64" | "usize")
                && root.chars().next().is_some_and(char::is_lowercase)
                && !root.ends_with(':')
            {
                roots.insert(root);
            }
        }
    }
    roots
}
