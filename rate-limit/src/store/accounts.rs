//! What a key owes for one policy: one account for each quota that decided on it.
//!
//! A quota judges a key as if it alone had always been in force. Every charge, refund and
//! settlement goes to all accounts of the key and the policy, in cells, and each drains at the
//! pace of its own quota. So a debt is neither forgiven nor prolonged by a visit to another quota,
//! whether that is a plan, a quota of the request's own or a reload.
//!
//! A quota that decides on a key for the first time starts from the most cells that any account
//! owes, at most its own burst, so it never refuses for longer than its whole burst takes to come
//! back. Accounts of a quota that did not decide are charged up to one burst, for the same reason.

use super::scales::Scale;

/// The accounts of one key for one policy.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Debts(pub(super) [Option<Account>; ACCOUNTS]);

/// What is owed by one quota.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Account {
    pub(super) scale: Scale,
    pub(super) tat: u64,
}

impl PartialEq for Account {
    fn eq(&self, other: &Self) -> bool {
        (self.scale.number, self.tat) == (other.scale.number, other.tat)
    }
}

impl Debts {
    /// The TAT by which `scale` decides on the key.
    pub(crate) fn seen_by(&self, scale: &Scale, now: u64) -> u64 {
        let own = self.accounts().find(|a| a.scale.number == scale.number);
        match own {
            Some(account) => account.tat,
            None => self.carried_to(scale, now),
        }
    }

    /// Opens the account of a quota that decides on a key in debt for the first time.
    ///
    /// A key that owes nothing by any quota starts anew, as it does in a fleet, where Redis forgets
    /// it.
    pub(crate) fn open(&mut self, scale: &Scale, now: u64) -> &mut Account {
        if self.owe_nothing(now) {
            self.0 = Default::default();
        }
        let opened = Account {
            scale: *scale,
            tat: self.seen_by(scale, now),
        };
        let place = self.place_for(scale, now);
        self.0[place].insert(opened)
    }

    /// Charges `cells` that `scale` has admitted, or that are charged whether they conform or not;
    /// the debt stops at twice its burst.
    pub(crate) fn charge(&mut self, scale: &Scale, now: u64, cells: u64) {
        self.open(scale, now);
        for Account { scale: other, tat } in self.0.iter_mut().flatten() {
            *tat = if other.number == scale.number {
                other.gcra.charge_anyway(*tat, now, cells)
            } else {
                other.gcra.charge_along(*tat, now, cells)
            };
        }
    }

    /// Gives `cells` back.
    pub(crate) fn refund(&mut self, now: u64, cells: u64) {
        for Account { scale, tat } in self.0.iter_mut().flatten() {
            *tat = scale.gcra.refund(*tat, now, cells);
        }
    }

    /// Whether `scale` has an account.
    pub(crate) fn has(&self, scale: &Scale) -> bool {
        self.accounts().any(|a| a.scale.number == scale.number)
    }

    fn owe_nothing(&self, now: u64) -> bool {
        self.accounts()
            .all(|account| account.scale.gcra.debt_nanos(account.tat, now) == 0)
    }

    fn accounts(&self) -> impl Iterator<Item = &Account> {
        self.0.iter().flatten()
    }

    fn carried_to(&self, scale: &Scale, now: u64) -> u64 {
        let carried = self.accounts().map(|account| {
            let Account { scale: other, tat } = account;
            scale.gcra.carry(&other.gcra, *tat, now)
        });
        let none = scale.gcra.refund(0, now, 0);
        carried.fold(none, |a, b| scale.gcra.later(a, b, now))
    }

    /// Where the account of `scale` is or goes: the first place is the column's own quota's, and
    /// of the others the account that is paid off first makes room.
    fn place_for(&self, scale: &Scale, now: u64) -> usize {
        if scale.number == 0 {
            return 0;
        }
        let is_own = |account: &Option<Account>| {
            account.is_some_and(|account| account.scale.number == scale.number)
        };
        if let Some(own) = self.0.iter().position(is_own) {
            return own;
        }
        let paid_in = |place: &usize| {
            self.0[*place].map(|account| account.scale.gcra.debt_nanos(account.tat, now))
        };
        (1..ACCOUNTS).min_by_key(paid_in).unwrap_or(1)
    }
}

/// The column's own quota and four others, so that at least four are kept apart at a time.
pub(super) const ACCOUNTS: usize = 5;
