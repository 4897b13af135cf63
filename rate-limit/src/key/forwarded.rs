//! The client's address as the proxies in front of the service report it.
//!
//! A forwarding header is a list to which each proxy appends the address it was called from. What
//! a proxy of ours appended is true; everything to the left of that is whatever the caller wrote.
//! So the list is read *from the right*, and reading stops at the first address that is not a
//! proxy of ours, or that cannot be read. Reading from the left, or skipping what cannot be read,
//! lets any client choose its own address, and with it a fresh quota for each request.

use std::{fmt, net::IpAddr, str, sync::Arc};

use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::{
    Key, Network, NetworkError, RequestHead,
    address::FindIp,
    peer::{DEFAULT_IPV6_PREFIX, found_peer},
};

/// The address of the client, found through the proxies that `trust` names.
///
/// Reads `x-forwarded-for`, all of its lines, and no other header; see
/// [`ForwardedKey::header`]. Where the peer is not a trusted proxy, its own address is the
/// client's and no header is read.
///
/// ```
/// use rate_limit::key::{self, Trust};
///
/// let client = key::forwarded(Trust::networks(["10.0.0.0/8", "2001:db8::/32"])?);
/// let behind_one_load_balancer = key::forwarded(Trust::hops(1));
/// # Ok::<(), rate_limit::key::NetworkError>(())
/// ```
pub fn forwarded(trust: Trust) -> ForwardedKey {
    ForwardedKey {
        trust,
        header: ForwardedHeader::XForwardedFor,
        peer: Arc::new(found_peer),
        unix_socket: false,
        ipv6_prefix: DEFAULT_IPV6_PREFIX,
    }
}

/// Which of the addresses that a request came through are our own proxies.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Trust(Rule);

#[derive(Clone, Debug, Eq, PartialEq)]
enum Rule {
    Networks(Box<[Network]>),
    Hops(usize),
}

impl Trust {
    /// Trusts the proxies with addresses in `networks`.
    ///
    /// # Errors
    ///
    /// Fails on the first text that is not an address or a range of addresses.
    pub fn networks<T: AsRef<str>>(
        networks: impl IntoIterator<Item = T>,
    ) -> Result<Self, NetworkError> {
        let networks = networks.into_iter().map(|network| network.as_ref().parse());
        Ok(Self(Rule::Networks(networks.collect::<Result<_, _>>()?)))
    }

    /// Trusts the last `count` proxies, whatever their addresses: exactly that many must stand
    /// between every client and the service. A client that can reach the service around them can
    /// choose its address. The peer is the first of them; 0 trusts none. Where fewer addresses are
    /// listed, the leftmost is the client's: some proxy did not append, and anything further left
    /// would be an address of ours.
    #[must_use]
    pub fn hops(count: usize) -> Self {
        Self(Rule::Hops(count.min(MAX_HOPS)))
    }

    /// Whether the proxy `distance` hops away (0 is the peer), at `ip`, is ours.
    fn covers(&self, distance: usize, ip: IpAddr) -> bool {
        match &self.0 {
            Rule::Networks(networks) => networks.iter().any(|network| network.contains(ip)),
            Rule::Hops(count) => distance < *count,
        }
    }
}

/// The header in which proxies report the client.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum ForwardedHeader {
    /// `x-forwarded-for`, a list of addresses.
    XForwardedFor,
    /// `forwarded` (RFC 7239), a list of elements with a `for` parameter.
    Forwarded,
    /// A header with one address or a list of them, such as `x-real-ip` or `cf-connecting-ip`.
    /// The proxies must *set* it: a header that they pass through is the client's word.
    Named(HeaderName),
    /// `cloudfront-viewer-address`: an address and a port, without brackets around IPv6.
    CloudFront,
}

/// A key from the client's address, made by [`forwarded`].
///
/// Addresses are grouped as [`PeerKey`](super::PeerKey) does.
#[derive(Clone)]
#[must_use = "a key does nothing until a layer gets it"]
pub struct ForwardedKey {
    trust: Trust,
    header: ForwardedHeader,
    peer: Arc<FindIp>,
    unix_socket: bool,
    ipv6_prefix: u8,
}

impl ForwardedKey {
    /// Sets the one header that is read. Proxies usually maintain one and pass the others
    /// through, so choose the one that yours maintains.
    ///
    /// Defaults to [`ForwardedHeader::XForwardedFor`].
    pub fn header(mut self, header: ForwardedHeader) -> Self {
        self.header = header;
        self
    }

    /// Sets where the peer address is found.
    ///
    /// Defaults to where [`peer`](super::peer) looks.
    pub fn peer_from(
        mut self,
        find: impl Fn(&RequestHead<'_>) -> Option<IpAddr> + Send + Sync + 'static,
    ) -> Self {
        self.peer = Arc::new(find);
        self
    }

    /// Sets how many leading bits of an IPv6 address make the key, at most 128.
    ///
    /// Defaults to 64.
    pub fn ipv6_prefix(mut self, bits: u8) -> Self {
        self.ipv6_prefix = bits.min(128);
        self
    }

    /// Trusts the peer where it has no address: one that is connected through a unix socket can only
    /// be a proxy on the same machine. It counts as the first of [`Trust::hops`].
    ///
    /// Set this only where the service listens on a unix socket alone. Without it such requests have
    /// no key.
    ///
    /// Defaults to `false`.
    pub fn unix_socket(mut self, unix_socket: bool) -> Self {
        self.unix_socket = unix_socket;
        self
    }

    /// The client's address, for logs and for middleware of your own; `None` if even the peer's
    /// is unknown.
    ///
    /// Reads at most 64 hops of at most 512 bytes, whatever the client sent.
    #[must_use]
    pub fn client_ip(&self, request: &RequestHead<'_>) -> Option<IpAddr> {
        let peer = (self.peer)(request).map(|ip| ip.to_canonical());
        if peer.is_none() && !self.unix_socket {
            return None;
        }
        let mut client = peer;
        let mut hops = Hops::new(request.headers(), &self.header);
        for distance in 0..MAX_HOPS {
            let is_ours = match client {
                Some(ip) => self.trust.covers(distance, ip),
                None => !matches!(self.trust.0, Rule::Hops(0)),
            };
            if !is_ours {
                return client;
            }
            match hops.next() {
                Some(Some(hop)) => client = Some(hop),
                // Unreadable, or nothing left: the last proxy we know is all we know.
                Some(None) | None => return client,
            }
        }
        client
    }
}

impl From<ForwardedKey> for Key {
    fn from(forwarded: ForwardedKey) -> Self {
        let ipv6_prefix = forwarded.ipv6_prefix;
        Self::by_ip(
            "forwarded",
            ipv6_prefix,
            Arc::new(move |head| forwarded.client_ip(head)),
        )
    }
}

impl fmt::Debug for ForwardedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ForwardedKey")
            .field("trust", &self.trust)
            .field("header", &self.header)
            .field("ipv6_prefix", &self.ipv6_prefix)
            .finish_non_exhaustive()
    }
}

/// The addresses of a forwarding header from right to left, over all its lines; `None` for one
/// that cannot be read.
struct Hops<'a> {
    lines: std::iter::Rev<header::ValueIter<'a, HeaderValue>>,
    /// What is left of the current line.
    rest: Option<&'a [u8]>,
    syntax: Syntax,
    /// Empty elements so far.
    empty: usize,
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum Syntax {
    /// Addresses between commas.
    List,
    /// An address that always has a port, the last colon's.
    Address,
    /// RFC 7239 elements between commas that are not inside quotes.
    Elements,
}

impl<'a> Hops<'a> {
    fn new(headers: &'a HeaderMap, header: &ForwardedHeader) -> Self {
        let (name, syntax) = match header {
            ForwardedHeader::XForwardedFor => (&X_FORWARDED_FOR, Syntax::List),
            ForwardedHeader::Forwarded => (&header::FORWARDED, Syntax::Elements),
            ForwardedHeader::Named(name) => (name, Syntax::List),
            ForwardedHeader::CloudFront => (&CLOUDFRONT_VIEWER_ADDRESS, Syntax::Address),
        };
        Self {
            lines: headers.get_all(name).iter().rev(),
            rest: None,
            syntax,
            empty: 0,
        }
    }
}

impl Iterator for Hops<'_> {
    type Item = Option<IpAddr>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let line = match self.rest.take() {
                Some(rest) => rest,
                None => self.lines.next()?.as_bytes(),
            };
            // No hop is longer than this, so nothing longer is searched.
            let from = line.len().saturating_sub(MAX_HOP_BYTES);
            let hop = match last_comma(&line[from..], self.syntax) {
                Some(comma) => {
                    self.rest = Some(&line[..from + comma]);
                    &line[from + comma + 1..]
                }
                None if from == 0 => line,
                None => return Some(None),
            };
            let Ok(hop) = str::from_utf8(hop) else {
                return Some(None);
            };
            let hop = hop.trim_matches([' ', '\t']);
            // Empty elements of a list mean nothing (RFC 9110 §5.6.1).
            if !hop.is_empty() {
                return Some(match self.syntax {
                    Syntax::List => parse_node(hop),
                    Syntax::Address => parse_viewer(hop),
                    Syntax::Elements => parse_element(hop),
                });
            }
            // A bounded number of them is read.
            self.empty += 1;
            if self.empty > MAX_HOPS {
                return Some(None);
            }
        }
    }
}

/// The last comma, in elements the last that is not inside quotes. Quotes are matched from the
/// right, so an unmatched one that a caller planted cannot swallow what a proxy appended.
fn last_comma(line: &[u8], syntax: Syntax) -> Option<usize> {
    let mut quoted = false;
    (0..line.len()).rev().find(|&at| {
        // Inside of quotes a quote is escaped.
        let escapes = || line[..at].iter().rev().take_while(|&&byte| byte == b'\\');
        if line[at] == b'"' && syntax == Syntax::Elements && escapes().count() % 2 == 0 {
            quoted = !quoted;
        }
        line[at] == b',' && !quoted
    })
}

/// The address in the `for` parameter of an RFC 7239 element, if there is exactly one.
fn parse_element(element: &str) -> Option<IpAddr> {
    let mut found = None;
    let mut rest = element;
    loop {
        let (pair, more) = split_unquoted_semicolon(rest);
        let pair = pair.trim_matches([' ', '\t']);
        // Pairs may be missing (RFC 7239 §4), but there is no space around the sign.
        if !pair.is_empty() {
            let (name, value) = pair.split_once('=')?;
            if name.eq_ignore_ascii_case("for") {
                let node = match value.strip_prefix('"') {
                    // No address needs escaping, and unescaping is where parsers disagree.
                    Some(quoted) => quoted
                        .strip_suffix('"')
                        .filter(|node| !node.contains('\\'))?,
                    None => value,
                };
                if found.replace(parse_node(node)?).is_some() {
                    return None;
                }
            }
        }
        match more {
            Some(more) => rest = more,
            None => return found,
        }
    }
}

fn split_unquoted_semicolon(text: &str) -> (&str, Option<&str>) {
    let (mut quoted, mut escaped) = (false, false);
    let semicolon = text.bytes().position(|byte| {
        if escaped {
            escaped = false;
            return false;
        }
        escaped = quoted && byte == b'\\';
        quoted ^= byte == b'"';
        byte == b';' && !quoted
    });
    match semicolon {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    }
}

/// An address and a port after the last colon.
fn parse_viewer(node: &str) -> Option<IpAddr> {
    let (address, port) = node.rsplit_once(':')?;
    let address = address
        .strip_prefix('[')
        .map_or(Some(address), |address| address.strip_suffix(']'))?;
    let digits = (1..=5).contains(&port.len()) && port.bytes().all(|b| b.is_ascii_digit());
    digits.then_some(())?;
    Some(address.parse::<IpAddr>().ok()?.to_canonical())
}

/// An address with or without a port: `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`,
/// `[2001:db8::1]`, `[2001:db8::1]:80`. `unknown` and obfuscated names are no addresses.
fn parse_node(node: &str) -> Option<IpAddr> {
    let (address, port) = if let Some(rest) = node.strip_prefix('[') {
        let (address, port) = rest.split_once(']')?;
        let address: std::net::Ipv6Addr = address.parse().ok()?;
        (IpAddr::V6(address), port)
    } else if let Ok(address) = node.parse::<IpAddr>() {
        (address, "")
    } else {
        let (address, _) = node.split_once(':')?;
        let address: std::net::Ipv4Addr = address.parse().ok()?;
        (IpAddr::V4(address), &node[node.find(':')?..])
    };
    valid_port(port).then(|| address.to_canonical())
}

/// Nothing, or a colon and a port: digits or, in RFC 7239, an obfuscated name.
fn valid_port(port: &str) -> bool {
    let Some(port) = port.strip_prefix(':') else {
        return port.is_empty();
    };
    match port.strip_prefix('_') {
        Some(name) => {
            let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
            !name.is_empty() && name.bytes().all(allowed)
        }
        None => (1..=5).contains(&port.len()) && port.bytes().all(|b| b.is_ascii_digit()),
    }
}

/// More proxies in a row than there are in practice.
const MAX_HOPS: usize = 64;

/// Longer than any RFC 7239 element that carries an address, a host and a protocol.
const MAX_HOP_BYTES: usize = 512;

const CLOUDFRONT_VIEWER_ADDRESS: HeaderName = HeaderName::from_static("cloudfront-viewer-address");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
