//! The table of a budget, and the function that takes a beat.

/// SQL that creates the schema `pool_autotune`, with the tables and functions that a
/// [`Budget`](super::Budget) needs. May be run again, and by several at once.
///
/// Run it with your migrations, as one script, then [`grants`] for the role of the service; or let the
/// first process create it (`Config::create`), which needs the right to create a
/// schema. A table created while the fleet runs gives no rights for one lease time.
pub const MIGRATION: &str = include_str!("beat_v1.sql");

/// SQL that lets `role` take part, for a schema that another role has created.
///
/// ```
/// let sql = pool_autotune::fleet::grants("web");
/// assert!(sql.contains("usage on schema pool_autotune to \"web\""));
/// ```
#[must_use]
pub fn grants(role: &str) -> String {
    let role = format!("\"{}\"", role.replace('"', "\"\""));
    format!(
        "grant usage on schema pool_autotune to {role};\n\
         grant select on pool_autotune.installed to {role};\n\
         grant select, insert, update, delete on pool_autotune.budget, pool_autotune.lease to {role};\n\
         grant execute on all functions in schema pool_autotune to {role};\n"
    )
}
