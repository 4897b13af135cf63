//! Ranges of addresses, as operators write them.

use std::{fmt, net::IpAddr, str::FromStr};

/// A range of addresses: `10.0.0.0/8`, `2001:db8::/32`, or one address.
///
/// Bits after the prefix are ignored. IPv4 written as IPv6 is IPv4 on both sides, so
/// `::ffff:10.0.0.0/104` is `10.0.0.0/8`.
///
/// ```
/// use rate_limit::key::Network;
///
/// let network: Network = "10.0.0.0/8".parse()?;
/// assert!(network.contains("::ffff:10.1.2.3".parse()?));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

impl Network {
    /// Whether `ip` is in the range.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        let (address, ip) = (self.address, ip.to_canonical());
        address.is_ipv4() == ip.is_ipv4() && masked(address, self.prefix) == masked(ip, self.prefix)
    }
}

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let text = text.trim();
        let error = || NetworkError(text.to_owned());
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| error())?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix: u8 = match prefix {
            Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => {
                digits.parse().map_err(|_| error())?
            }
            Some(_) => return Err(error()),
            None => bits,
        };
        if prefix > bits {
            return Err(error());
        }
        match (address, address.to_canonical()) {
            (IpAddr::V6(_), IpAddr::V4(mapped)) => {
                // A shorter prefix would take in addresses that are not IPv4.
                let prefix = prefix.checked_sub(96).ok_or_else(error)?;
                Ok(Self {
                    address: mapped.into(),
                    prefix,
                })
            }
            _ => Ok(Self { address, prefix }),
        }
    }
}

impl From<IpAddr> for Network {
    fn from(address: IpAddr) -> Self {
        let address = address.to_canonical();
        Self {
            address,
            prefix: if address.is_ipv4() { 32 } else { 128 },
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// Text that is not a range of addresses.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NetworkError(String);

impl fmt::Display for NetworkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "network {:?}, expected an address or a range like 10.0.0.0/8",
            self.0
        )
    }
}

impl std::error::Error for NetworkError {}

/// The first `prefix` bits of `ip`, the others cleared.
pub(super) fn masked(ip: IpAddr, prefix: u8) -> u128 {
    let (bits, width) = match ip {
        IpAddr::V4(ip) => (u128::from(u32::from(ip)), 32),
        IpAddr::V6(ip) => (u128::from(ip), 128),
    };
    let cleared = width - u32::from(prefix).min(width);
    bits.checked_shr(cleared)
        .unwrap_or(0)
        .checked_shl(cleared)
        .unwrap_or(0)
}
