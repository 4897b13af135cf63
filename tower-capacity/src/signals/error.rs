use std::{error, fmt, io, path::PathBuf};

/// A signal cannot be read from the system.
#[derive(Debug)]
pub struct SignalError {
    pub(super) name: &'static str,
    pub(super) path: PathBuf,
    pub(super) kind: Kind,
}

#[derive(Debug)]
pub(super) enum Kind {
    Read(io::Error),
    /// What was looked for.
    Format(&'static str),
}

impl fmt::Display for SignalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, path) = (self.name, self.path.display());
        match &self.kind {
            Kind::Read(error) => write!(f, "cannot read {name} from {path}: {error}"),
            Kind::Format(expected) => write!(f, "no {name} in {path}: expected {expected}"),
        }
    }
}

impl error::Error for SignalError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match &self.kind {
            Kind::Read(error) => Some(error),
            Kind::Format(_) => None,
        }
    }
}
