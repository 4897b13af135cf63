//! Which request matters more.

use std::fmt;

/// How much a request matters, from the criticalities of the SRE book (chapter 21).
///
/// A permit that comes free goes to the highest class that waits for one. The lower classes may
/// fill only a part of the limit, so that under pressure they stop first, in order, and what
/// matters more still finds room: [`share`](Self::share) says which part. They need no tuning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Priority {
    /// Work that no caller is waiting for, such as a batch job or a prefetch.
    Background,
    /// Work that a response can do without, and is poorer for.
    Sheddable,
    /// What users ask for.
    #[default]
    Default,
    /// What must be served as long as anything is.
    Critical,
}

impl Priority {
    /// All classes, the one that matters most first.
    pub const ALL: [Self; 4] = [
        Self::Critical,
        Self::Default,
        Self::Sheddable,
        Self::Background,
    ];

    /// The part of the limit that requests of this class may fill, with those above it.
    ///
    /// All of it for `Critical` and `Default`, nine tenths for `Sheddable`, three quarters for
    /// `Background`: room for a burst of what matters more, and no more than that.
    #[must_use]
    pub const fn share(self) -> f64 {
        1.0 - self.kept_free() as f64 / 20.0
    }

    /// Permits of `limit` that this class may fill, if so many are reserved for the highest.
    #[inline]
    pub(super) const fn room_in(self, limit: usize, reserved: usize) -> usize {
        // Most requests, without a division.
        if self.kept_free() == 0 && reserved == 0 {
            return limit;
        }
        // Rounded so that a class that may enter at all may enter a small limit too.
        let room = limit - limit * self.kept_free() / 20;
        if matches!(self, Self::Critical) || reserved == 0 {
            return room;
        }
        // One permit is for every class, whatever is reserved.
        let left = limit.saturating_sub(reserved);
        let left = if left == 0 && limit > 0 { 1 } else { left };
        if room < left { room } else { left }
    }

    /// Twentieths of the limit.
    #[inline]
    const fn kept_free(self) -> usize {
        match self {
            Self::Critical | Self::Default => 0,
            Self::Sheddable => 2,
            Self::Background => 5,
        }
    }

    /// Position in [`ALL`](Self::ALL).
    pub(super) const fn rank(self) -> usize {
        3 - self as usize
    }

    /// The class as it stands in metrics, events and headers.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Critical => "critical",
            Self::Default => "default",
            Self::Sheddable => "sheddable",
            Self::Background => "background",
        }
    }

    /// Reads what [`as_str`](Self::as_str) writes, in any case.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|class| class.as_str().eq_ignore_ascii_case(text.trim()))
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_follow_the_order_of_all() {
        for (rank, class) in Priority::ALL.into_iter().enumerate() {
            assert_eq!(class.rank(), rank);
            assert_eq!(Priority::parse(class.as_str()), Some(class));
        }
        assert!(Priority::Critical > Priority::Background);
        assert_eq!(Priority::parse(" CRITICAL "), Some(Priority::Critical));
        assert_eq!(Priority::parse("urgent"), None);
    }

    #[test]
    fn every_class_may_enter_the_smallest_limit_and_lower_ones_stop_first() {
        for class in Priority::ALL {
            assert_eq!(class.room_in(1, 0), 1);
        }
        let rooms = Priority::ALL.map(|class| class.room_in(100, 0));
        assert_eq!(rooms, [100, 100, 90, 75]);
        let shares = Priority::ALL.map(Priority::share);
        assert_eq!(shares, [1.0, 1.0, 0.9, 0.75]);
    }

    #[test]
    fn what_is_reserved_is_only_for_the_critical_but_one_permit_is_for_everybody() {
        let rooms = |limit| Priority::ALL.map(|class| class.room_in(limit, 2));
        assert_eq!(rooms(20), [20, 18, 18, 15]);
        assert_eq!(rooms(3), [3, 1, 1, 1]);
        assert_eq!(rooms(2), [2, 1, 1, 1]);
        assert_eq!(rooms(0), [0; 4]);
    }
}
