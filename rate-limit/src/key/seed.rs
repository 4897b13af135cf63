//! The secret that keys are hashed with.

use std::hash::{BuildHasher, Hash, Hasher, RandomState};

/// Makes hashes of keys that callers cannot choose.
///
/// One process makes up its own secret. The processes of a fleet have to agree on the hashes, so
/// theirs is given, and the algorithm is one that stays the same in every build.
#[derive(Clone)]
pub(crate) enum Seed {
    Process(RandomState),
    #[cfg(feature = "redis")]
    Fleet(u64, u64),
}

impl Seed {
    pub(crate) fn random() -> Self {
        Self::Process(RandomState::new())
    }

    #[inline]
    pub(crate) fn hash_one(&self, value: impl Hash) -> u64 {
        match self {
            Self::Process(state) => state.hash_one(value),
            #[cfg(feature = "redis")]
            &Self::Fleet(a, b) => {
                let mut hasher = siphasher::sip::SipHasher13::new_with_keys(a, b);
                value.hash(&mut hasher);
                hasher.finish()
            }
        }
    }

    /// Hashes what `write` feeds to the hasher, if it returns `true`.
    pub(crate) fn hash_written(&self, write: impl FnOnce(&mut dyn Hasher) -> bool) -> Option<u64> {
        match self {
            Self::Process(state) => {
                let mut hasher = state.build_hasher();
                write(&mut hasher).then(|| hasher.finish())
            }
            #[cfg(feature = "redis")]
            &Self::Fleet(a, b) => {
                let mut hasher = siphasher::sip::SipHasher13::new_with_keys(a, b);
                write(&mut hasher).then(|| hasher.finish())
            }
        }
    }
}
