//! How connections are divided: water-filling, exactly.
//!
//! Used between the pools of one process. The function `pool_autotune.shares` does the same between
//! the processes of a fleet, and its tests compare the two.

use std::cmp::{Ordering, Reverse};

/// What one taker asks for.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Claim {
    /// In thousandths, at least 1.
    pub(crate) weight: u32,
    /// What it gets before the need of any other is looked at.
    pub(crate) floor: u32,
    /// What it uses or waits for.
    pub(crate) need: u32,
    /// What it would keep if there is enough.
    pub(crate) want: u32,
    /// What it holds. Decides only the units that are left over by rounding.
    pub(crate) held: u32,
}

/// Divides `total`: first every floor, then what is needed by weight, then what is wanted by weight.
///
/// Returns at least the floors (as far as they are wanted), even where they exceed the total.
pub(crate) fn shares(total: u32, claims: &[Claim]) -> Vec<u32> {
    let floor = |c: &Claim| c.floor.min(c.want);
    let need = |c: &Claim| c.need.clamp(floor(c), c.want.max(floor(c)));
    let needed: u64 = claims.iter().map(|c| u64::from(need(c))).sum();
    let is_scarce = needed > u64::from(total);
    let ranges: Vec<Range> = claims
        .iter()
        .map(|c| Range {
            weight: c.weight.max(1),
            least: if is_scarce { floor(c) } else { need(c) },
            most: if is_scarce { need(c) } else { c.want },
            held: c.held,
        })
        .collect();
    fill(total, &ranges)
}

#[derive(Clone, Copy)]
struct Range {
    weight: u32,
    least: u32,
    most: u32,
    held: u32,
}

impl Range {
    /// Its part at the water level `num / den`, times `den`.
    fn at(&self, num: u128, den: u128) -> u128 {
        let (least, most) = (u128::from(self.least) * den, u128::from(self.most) * den);
        (u128::from(self.weight) * num).clamp(least, most)
    }

    /// Whether it takes part in a rise of the level from `num / den`.
    fn rises(&self, num: u128, den: u128) -> bool {
        let level = u128::from(self.weight) * num;
        (u128::from(self.least) * den..u128::from(self.most) * den).contains(&level)
    }
}

/// `clamp(weight × level, least, most)` for the level at which they make up the total, rounded by the
/// largest remainder; units left over go first to their holders.
fn fill(total: u32, ranges: &[Range]) -> Vec<u32> {
    let sum = |part: fn(&Range) -> u32| -> u64 { ranges.iter().map(|r| u64::from(part(r))).sum() };
    if sum(|r| r.most) <= u64::from(total) {
        return ranges.iter().map(|r| r.most).collect();
    }
    if sum(|r| r.least) >= u64::from(total) {
        return ranges.iter().map(|r| r.least).collect();
    }
    // Levels at which a part begins or ceases to rise.
    let mut levels: Vec<(u128, u128)> = ranges
        .iter()
        .flat_map(|r| [(r.least, r.weight), (r.most, r.weight)])
        .chain([(0, 1)])
        .map(|(at, weight)| (u128::from(at), u128::from(weight)))
        .collect();
    levels.sort_by(|a, b| (a.0 * b.1).cmp(&(b.0 * a.1)));
    let fits = |&(num, den): &(u128, u128)| {
        let filled: u128 = ranges.iter().map(|r| r.at(num, den)).sum();
        filled <= u128::from(total) * den
    };
    let below = levels.partition_point(fits).saturating_sub(1);
    let (num, den) = levels[below];
    let is_rising: Vec<bool> = ranges.iter().map(|r| r.rises(num, den)).collect();
    let weights: u128 = (ranges.iter().zip(&is_rising))
        .filter(|(_, rises)| **rises)
        .map(|(r, _)| u128::from(r.weight))
        .sum();
    // What does not rise is whole there.
    let fixed: u128 = (ranges.iter().zip(&is_rising))
        .filter(|(_, rises)| !**rises)
        .map(|(r, _)| r.at(num, den) / den)
        .sum();
    let left = u128::from(total) - fixed;
    let mut shares: Vec<u32> = (ranges.iter().zip(&is_rising))
        .map(|(r, &rises)| match rises {
            true => (u128::from(r.weight) * left / weights) as u32,
            false => (r.at(num, den) / den) as u32,
        })
        .collect();
    let mut order: Vec<(bool, Reverse<u128>, usize)> = (ranges.iter().enumerate())
        .filter(|&(index, _)| is_rising[index])
        .map(|(index, r)| {
            let rest = u128::from(r.weight) * left % weights;
            (r.held <= shares[index], Reverse(rest), index)
        })
        .filter(|(_, rest, _)| rest.0 > 0)
        .collect();
    order.sort_by(|a, b| a.partial_cmp(b).unwrap_or(Ordering::Equal));
    let given: u64 = shares.iter().map(|&share| u64::from(share)).sum();
    let over = (u64::from(total) - given) as usize;
    for &(_, _, index) in order.iter().take(over) {
        shares[index] += 1;
    }
    shares
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn claim(weight: u32, floor: u32, need: u32, want: u32) -> Claim {
        Claim {
            weight: weight * 1000,
            floor,
            need,
            want,
            held: 0,
        }
    }

    #[test]
    fn with_enough_for_all_each_gets_what_it_wants() {
        let claims = [claim(1, 1, 2, 10), claim(1, 1, 20, 30)];
        assert_eq!(shares(90, &claims), [10, 30]);
    }

    #[test]
    fn what_idle_takers_want_goes_to_those_that_need_it() {
        let mut claims = vec![claim(1, 1, 0, 8); 9];
        claims.push(claim(1, 1, 60, 60));
        let given = shares(88, &claims);
        assert_eq!(given[9], 60);
        assert_eq!(given.iter().sum::<u32>(), 88);
        assert!(given[..9].iter().all(|share| (3..=4).contains(share)));
    }

    #[test]
    fn needs_beyond_the_total_are_met_by_weight_and_never_below_a_floor() {
        let claims = [claim(3, 1, 50, 50), claim(1, 1, 50, 50), claim(1, 2, 2, 50)];
        assert_eq!(shares(42, &claims), [30, 10, 2]);
        let floors = [claim(1, 3, 9, 9), claim(1, 3, 9, 9)];
        assert_eq!(
            shares(4, &floors),
            [3, 3],
            "reported as too small elsewhere"
        );
    }

    #[test]
    fn a_unit_that_is_left_over_stays_with_its_holder() {
        let mut claims = [claim(1, 0, 9, 9), claim(1, 0, 9, 9)];
        assert_eq!(shares(5, &claims), [3, 2]);
        claims[1].held = 3;
        assert_eq!(shares(5, &claims), [2, 3]);
    }

    /// The exact part of each at the level found by bisection over all fractions that can matter.
    fn is_level(total: u32, given: &[u32], ranges: &[(u32, u32, u32)]) -> bool {
        // No unit can be moved from one to another of lower level, by more than rounding.
        let level = |index: usize, share: u32| f64::from(share) / f64::from(ranges[index].0);
        let sum: u32 = given.iter().sum();
        if sum != total {
            return false;
        }
        (0..given.len()).all(|rich| {
            (0..given.len()).all(|poor| {
                let can_give = given[rich] > ranges[rich].1;
                let can_take = given[poor] < ranges[poor].2;
                let lower = || level(poor, given[poor] + 1) < level(rich, given[rich] - 1) - 1e-9;
                rich == poor || !can_give || !can_take || !lower()
            })
        })
    }

    proptest! {
        #[test]
        fn the_whole_total_is_divided_by_level(
            total in 1u32..200,
            claims in prop::collection::vec(
                (500u32..3000, 0u32..5, 0u32..60, 0u32..60, 0u32..60), 1..12),
        ) {
            let claims: Vec<Claim> = claims
                .into_iter()
                .map(|(weight, floor, need, more, held)| Claim {
                    weight, floor, need, want: need + more, held,
                })
                .collect();
            let given = shares(total, &claims);
            let floor = |c: &Claim| c.floor.min(c.want);
            let need = |c: &Claim| c.need.max(floor(c));
            let floors: u32 = claims.iter().map(floor).sum();
            let needs: u32 = claims.iter().map(need).sum();
            let wants: u32 = claims.iter().map(|c| c.want).sum();
            if wants <= total {
                prop_assert!(given.iter().zip(&claims).all(|(g, c)| *g == c.want));
            } else if floors >= total {
                prop_assert!(given.iter().zip(&claims).all(|(g, c)| *g == floor(c)));
            } else {
                let is_scarce = needs > total;
                let ranges: Vec<_> = claims.iter().map(|c| match is_scarce {
                    true => (c.weight, floor(c), need(c)),
                    false => (c.weight, need(c), c.want),
                }).collect();
                prop_assert!(given.iter().zip(&ranges).all(|(g, r)| (r.1..=r.2).contains(g)));
                prop_assert!(is_level(total, &given, &ranges), "{given:?} of {ranges:?}");
            }
        }
    }
}
