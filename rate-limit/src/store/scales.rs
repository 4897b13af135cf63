//! The quotas that debts are kept by, by number.

use std::{
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher},
    sync::OnceLock,
};

use crate::gcra::Gcra;

/// A quota and the number that an account in the table names it by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scale {
    pub(crate) gcra: Gcra,
    /// 0 for the first quota of a column, which needs no number.
    pub(super) number: u16,
}

impl Scale {
    /// Whether it is the first quota of its column: its TATs need no account.
    pub(crate) fn is_first(&self) -> bool {
        self.number == 0
    }
}

/// An append-only hash table of quotas. The number of a quota is its place, so it is found without
/// a lock and read back without a search.
#[derive(Debug, Default)]
pub(super) struct Scales(OnceLock<Box<[OnceLock<Gcra>]>>);

impl Scales {
    /// The quota as accounts name it; `None` when there are too many quotas to number.
    pub(super) fn number(&self, gcra: Gcra) -> Option<Scale> {
        let places = self
            .0
            .get_or_init(|| (0..MOST).map(|_| OnceLock::new()).collect());
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(gcra) as usize;
        // At most `PROBES` places from where it should be: a table so full counts as full.
        let place = (0..PROBES)
            .map(|step| hash.wrapping_add(step) % MOST)
            .find(|&place| *places[place].get_or_init(|| gcra) == gcra)?;
        Some(Scale {
            gcra,
            number: place as u16 + 1,
        })
    }

    /// The quota of this number.
    pub(super) fn get(&self, number: u16) -> Option<&Gcra> {
        let place = usize::from(number.checked_sub(1)?);
        self.0.get()?.get(place)?.get()
    }
}

/// How many quotas can be told apart, besides the first of each policy.
const MOST: usize = 1 << 14;

const PROBES: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Quota, SECOND};

    #[test]
    fn a_quota_keeps_its_number_and_ten_thousand_have_their_own() {
        let scales = Scales::default();
        let gcra = |count| Gcra::new(&Quota::count(count).per(SECOND)).unwrap();
        for count in 1..=10_000 {
            let number = scales.number(gcra(count)).unwrap().number;
            assert_eq!(scales.number(gcra(count)).unwrap().number, number);
        }
        for count in 1..=10_000 {
            let number = scales.number(gcra(count)).unwrap().number;
            assert_eq!(scales.get(number), Some(&gcra(count)));
        }
    }

    #[test]
    fn more_quotas_than_there_are_numbers_are_refused_and_the_others_stay() {
        let scales = Scales::default();
        let gcra = |count| Gcra::new(&Quota::count(count).per(SECOND)).unwrap();
        let kept = (1..20_000).filter(|&count| scales.number(gcra(count)).is_some());
        let kept: Vec<_> = kept.collect();
        assert!(
            kept.len() <= MOST && kept.len() > MOST / 2,
            "{}",
            kept.len()
        );
        assert!(
            kept.iter()
                .all(|&count| scales.number(gcra(count)).is_some())
        );
    }
}
