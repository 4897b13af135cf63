//! Header values of numbers, without allocating.
//!
//! Numbers up to 9 999 are exact, larger ones are rounded up to four significant digits: a caller
//! asked to wait 43 210 s (12 hours) instead of 43 201 s loses nothing.

use std::time::Duration;

use http::HeaderValue;

/// `wait` in whole seconds, rounded up and at least 1: a `retry-after` of 0 invites the caller to
/// come straight back (RFC 9110 §10.2.3 knows no fractions).
pub(super) fn seconds(wait: Duration) -> HeaderValue {
    let up = u64::from(wait.subsec_nanos() > 0);
    number(wait.as_secs().saturating_add(up).max(1))
}

/// `wait` in milliseconds, rounded up and at least 1.
pub(super) fn millis(wait: Duration) -> HeaderValue {
    let up = wait.subsec_nanos().div_ceil(1_000_000);
    let millis = wait.as_secs().saturating_mul(1_000);
    number(millis.saturating_add(up.into()).max(1))
}

/// A number as it is.
pub(super) fn small(value: u8) -> HeaderValue {
    if value == 0 {
        HeaderValue::from_static("0")
    } else {
        number(value.into())
    }
}

#[inline]
fn number(number: u64) -> HeaderValue {
    let (mut leading, mut zeros) = (number, 0);
    while leading > LARGEST as u64 {
        leading = leading.div_ceil(10);
        zeros += 1;
    }
    if zeros > ZEROS {
        // 317 years in seconds, 115 days in milliseconds.
        return HeaderValue::from(number);
    }
    let leading = leading as usize;
    let (first, digits, start) = match leading {
        ..10 => (1, 1, 0),
        10..100 => (10, 2, TENS),
        100..1_000 => (100, 3, HUNDREDS),
        1_000.. => (1_000, 4, THOUSANDS),
    };
    let at = start + (leading - first) * (digits + ZEROS);
    HeaderValue::from_static(&DIGITS[at..at + digits + zeros])
}

const LARGEST: usize = 9_999;
const ZEROS: usize = 6;
const TENS: usize = 9 * (1 + ZEROS);
const HUNDREDS: usize = TENS + 90 * (2 + ZEROS);
const THOUSANDS: usize = HUNDREDS + 900 * (3 + ZEROS);
const LENGTH: usize = THOUSANDS + 9_000 * (4 + ZEROS);

/// The numbers from 1 to 9 999, each followed by six zeros, one after the other.
static DIGITS: &str = match std::str::from_utf8(&BYTES) {
    Ok(digits) => digits,
    Err(_) => panic!("digits are ASCII"),
};

static BYTES: [u8; LENGTH] = {
    let mut digits = [b'0'; LENGTH];
    let (mut number, mut at) = (1, 0);
    while number <= LARGEST {
        let mut divisor = 1_000;
        while divisor > number {
            divisor /= 10;
        }
        while divisor > 0 {
            digits[at] = b'0' + (number / divisor % 10) as u8;
            at += 1;
            divisor /= 10;
        }
        at += ZEROS;
        number += 1;
    }
    digits
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_up_to_9_999_are_exact() {
        for n in 1..=9_999 {
            assert_eq!(number(n), n.to_string());
        }
    }

    #[test]
    fn larger_numbers_round_up_to_four_digits() {
        assert_eq!(number(10_000), "10000");
        assert_eq!(number(10_001), "10010");
        assert_eq!(number(43_201), "43210");
        assert_eq!(number(99_991), "100000");
        assert_eq!(number(31_536_000), "31540000");
        assert_eq!(number(9_999_000_000), "9999000000");
        assert_eq!(number(9_999_000_001), "9999000001");
        assert_eq!(number(u64::MAX), u64::MAX.to_string());
    }

    #[test]
    fn seconds_round_up_and_are_never_zero() {
        assert_eq!(seconds(Duration::ZERO), "1");
        assert_eq!(seconds(Duration::from_nanos(1)), "1");
        assert_eq!(seconds(Duration::from_secs(1)), "1");
        assert_eq!(seconds(Duration::from_nanos(1_000_000_001)), "2");
        assert_eq!(seconds(Duration::MAX), u64::MAX.to_string());
    }

    #[test]
    fn milliseconds_round_up_and_are_never_zero() {
        assert_eq!(millis(Duration::ZERO), "1");
        assert_eq!(millis(Duration::from_micros(1_001)), "2");
        assert_eq!(millis(Duration::from_millis(9_999)), "9999");
        assert_eq!(millis(Duration::from_micros(10_001_001)), "10010");
    }
}
